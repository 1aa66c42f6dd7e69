//! The kernel that is run: from its file, or unpacked from the cache.

use std::{
    path::Path,
    thread::{self, JoinHandle},
};

use paravane_builder::image::{self, Image};

use super::kernel_cache::{KernelCache, Key};
use crate::failure::Failure;

/// How an ELF file begins. What is not packed is not worth keeping.
const ELF: &[u8] = b"\x7fELF";

/// A kernel file, or the ELF file that is known to be in it.
#[derive(Debug)]
pub(super) struct KernelFile {
    bytes: Vec<u8>,
    /// Where the ELF file is to be kept, if it is not there yet.
    wanted: Option<(KernelCache, Key)>,
}

impl KernelFile {
    /// Reads a kernel file, and looks for its contents in the cache.
    pub(super) fn read(path: &Path, cache: Option<KernelCache>) -> Result<Self, Failure> {
        let bytes = image::read_file(path)?;
        let Some(cache) = cache.filter(|_| !bytes.starts_with(ELF)) else {
            return Ok(Self { bytes, wanted: None });
        };
        let key = Key::of(&bytes);
        Ok(match cache.load(&key) {
            Some(bytes) => Self { bytes, wanted: None },
            None => Self { bytes, wanted: Some((cache, key)) },
        })
    }

    /// What there is to open as an image.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Keeps the image that was opened, if it is not kept yet, while the guest starts.
    pub(super) fn keep(&self, image: Image<'_>) -> Option<JoinHandle<()>> {
        let (cache, key) = self.wanted.clone()?;
        let elf = image.into_elf().into_owned();
        let keep = move || {
            // The next run unpacks it again; there is nothing else to be done, and nobody to be told.
            drop(cache.store(&key, &elf));
        };
        thread::Builder::new().name("cache".to_owned()).spawn(keep).ok()
    }
}
