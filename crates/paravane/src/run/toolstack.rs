//! What a toolstack puts into xenstore for a new guest.
//!
//! Source: `initiate_domain_create` and `libxl__domain_build` in `xen/tools/libs/light/`, `docs/misc/xenstore-paths.pandoc`.

use paravane_abi::units::{DomId, Mfn, PAGE_SIZE, Port};
use paravane_devices::xenstore::{Path, PathError, Permissions, Rights, Store};

/// What the keys say about the guest.
#[derive(Clone, Debug)]
pub struct GuestFacts {
    /// Its number.
    pub domain: DomId,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its memory, in pages.
    pub pages: u64,
    /// Its vCPUs.
    pub vcpus: u32,
    /// The xenstore ring and its port.
    pub store: (Mfn, Port),
    /// The console ring and its port.
    pub console: (Mfn, Port),
}

/// The control domain, which owns what the guest may not change.
const CONTROL: DomId = DomId(0);

/// Fills `store` for the guest.
///
/// # Errors
///
/// [`PathError`] for a key that is no path: the name of the guest does not become one, so none.
pub fn populate(store: &mut Store, facts: &GuestFacts) -> Result<(), PathError> {
    let read_only = Permissions::new(CONTROL, Rights::NONE).with(facts.domain, Rights::READ);
    let own = Permissions::new(facts.domain, Rights::NONE);
    let mut put = |key: &str, value: &str, permissions: &Permissions| {
        let path = Path::parse(key, facts.domain)?;
        // The control domain is refused nothing.
        let provided = store.provide(&path, value.as_bytes(), permissions);
        debug_assert!(provided.is_ok(), "{path}: {provided:?}");
        Ok(())
    };
    let kib = facts.pages * (PAGE_SIZE >> 10);
    let uuid = uuid_text(facts.uuid);
    put(Path::home(facts.domain).as_str(), "", &read_only)?;
    for (key, value) in [
        ("vm", format!("/vm/{uuid}")),
        ("name", facts.name.clone()),
        ("domid", facts.domain.0.to_string()),
        ("cpu", String::new()),
        ("memory", String::new()),
        ("memory/static-max", kib.to_string()),
        ("memory/target", kib.to_string()),
        ("memory/videoram", "0".to_owned()),
        ("device", String::new()),
        ("control", String::new()),
        ("control/platform-feature-multiprocessor-suspend", "1".to_owned()),
        ("control/platform-feature-xs_reset_watches", "1".to_owned()),
        ("store/port", facts.store.1.to_string()),
        ("store/ring-ref", facts.store.0.0.to_string()),
        ("console/backend-id", "0".to_owned()),
        ("console/type", "xenconsoled".to_owned()),
        ("console/output", "pty".to_owned()),
        ("console/limit", "1048576".to_owned()),
        ("console/port", facts.console.1.to_string()),
        ("console/ring-ref", facts.console.0.0.to_string()),
    ] {
        put(key, &value, &read_only)?;
    }
    for vcpu in 0..facts.vcpus {
        put(&format!("cpu/{vcpu}"), "", &read_only)?;
        put(&format!("cpu/{vcpu}/availability"), "online", &read_only)?;
    }
    for key in [
        "control/shutdown",
        "control/sysrq",
        "control/feature-poweroff",
        "control/feature-reboot",
        "control/feature-suspend",
        "device/suspend/event-channel",
        "data",
        "drivers",
        "feature",
        "attr",
        "error",
    ] {
        put(key, "", &own)?;
    }
    let vm = Permissions::new(CONTROL, Rights::NONE).with(facts.domain, Rights::READ);
    put(&format!("/vm/{uuid}"), "", &vm)?;
    put(&format!("/vm/{uuid}/name"), &facts.name, &vm)?;
    put(&format!("/vm/{uuid}/uuid"), &uuid, &vm)
}

/// A UUID as it is written: 8, 4, 4, 4 and 12 digits.
fn uuid_text(uuid: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(uuid));
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_reads_its_facts_and_writes_only_what_is_its_own() {
        let guest = DomId(1);
        let mut store = Store::new();
        let facts = GuestFacts {
            domain: guest,
            name: "test".to_owned(),
            uuid: *b"0123456789abcdef",
            pages: 49152,
            vcpus: 1,
            store: (Mfn(0x100), Port(1)),
            console: (Mfn(0x101), Port(2)),
        };
        populate(&mut store, &facts).unwrap();
        let path = |text: &str| Path::parse(text, guest).unwrap();
        for (key, value) in [
            ("memory/target", "196608"),
            ("cpu/0/availability", "online"),
            ("store/port", "1"),
            ("name", "test"),
        ] {
            assert_eq!(store.read(guest, 0, &path(key)), Ok(value.as_bytes().to_vec()), "{key}");
            assert!(store.write(guest, 0, &path(key), b"x").is_err(), "{key}");
        }
        let vm = b"/vm/30313233-3435-3637-3839-616263646566".to_vec();
        assert_eq!(store.read(guest, 0, &path("vm")), Ok(vm));
        for key in ["control/shutdown", "data/anything", "error/device"] {
            assert_eq!(store.write(guest, 0, &path(key), b"x"), Ok(()), "{key}");
        }
    }
}
