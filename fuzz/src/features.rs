//! The FEATURES string of a kernel image: any text can be read, and nothing in it is lost.

use paravane_abi::features::{Feature, parse};

/// Reads `data` as a FEATURES string.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let list = parse(&text);

    for feature in list.required.iter() {
        assert!(list.supported.contains(feature), "{feature} is required and not supported");
    }
    for element in text.split('|').filter(|element| !element.is_empty()) {
        let (name, unknown) = match element.strip_prefix('!') {
            Some(name) => (name, &list.unknown_required),
            None => (element, &list.unknown_optional),
        };
        let is_known = Feature::from_name(name).is_some_and(|feature| list.supported.contains(feature));
        assert!(is_known || unknown.iter().any(|unknown| unknown == name), "{element:?} was lost");
    }
}
