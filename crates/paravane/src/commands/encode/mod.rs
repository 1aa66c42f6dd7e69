//! `paravane encode`: from fields to values.

pub(super) mod descriptor;
mod fields;
mod limit;
pub(super) mod pte;
pub(super) mod selector;
