//! Unpacked kernels, kept from one run to the next.
//!
//! Unpacking a distribution's kernel takes most of the time until its first instruction. So what came out is kept in the
//! user's cache folder, under the hash of what went in, and a kernel that was seen before starts without unpacking.
//!
//! Pages of zeros are left out. An entry is written beside its place and renamed, so that no reader sees half of it, and
//! carries a checksum over everything else in it, which each reader verifies: what a full disk or a crash left is
//! removed, not run. Entries that were not used for longest go when the folder gets too large. Nobody depends on the
//! cache: where it cannot be read or written, the kernel is unpacked again.
//!
//! ```text
//!   magic      16 bytes
//!   length     of the ELF file                       8 bytes, little-endian, as all numbers
//!   extents    how many                              8 bytes
//!   extents    offset and length of each, in order   16 bytes each
//!   data       of all extents, one after another
//!   checksum   CRC-32 of all before                  4 bytes
//! ```

use std::{
    env,
    fmt::Write as _,
    fs::{self, DirBuilder, File},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process,
    time::{Duration, SystemTime},
};

use crc32fast::Hasher;
use paravane_builder::image::FILE_MAX_BYTES;
use sha2::{Digest, Sha512_256};

const MAGIC: &[u8; 16] = b"paravane-kernel\x01";
/// Zeros are left out by pages.
const PAGE: usize = 4096;
static ZEROS: [u8; PAGE] = [0; PAGE];
/// The most that all entries may take together: a dozen kernels.
const MAX_BYTES: u64 = 512 << 20;
/// What is being written for longer than this was left by a process that died.
const ABANDONED: Duration = Duration::from_hours(1);
/// How the names of entries, and of those being written, end.
const ENTRY: &str = "kernel";
const PARTIAL: &str = "partial";

/// A folder of unpacked kernels.
#[derive(Clone, Debug)]
pub struct KernelCache {
    folder: PathBuf,
    max_bytes: u64,
}

/// The hash of a kernel file, and so the name of its entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The key of a kernel file. Of the SHA-2 family this is the fastest without special instructions of the CPU.
    pub fn of(file: &[u8]) -> Self {
        let hash = Sha512_256::digest(file);
        Self(hash.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }
}

impl KernelCache {
    /// The folder of this user, by the XDG base directory specification; `None` if the user has no place for one.
    pub fn of_user() -> Option<Self> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(Self::at(caches.join("paravane")))
    }

    /// A cache in this folder, which is made when there is something to keep.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder, max_bytes: MAX_BYTES }
    }

    /// The unpacked kernel of that key, if it is there and whole.
    pub fn load(&self, key: &Key) -> Option<Vec<u8>> {
        let path = self.entry(key);
        let file = File::open(&path).ok()?;
        match read_entry(&file) {
            Ok(kernel) => {
                // The time of the last use. A cache that is read-only just does not learn it.
                drop(file.set_modified(SystemTime::now()));
                Some(kernel)
            }
            Err(_) => {
                drop(fs::remove_file(path));
                None
            }
        }
    }

    /// Keeps an unpacked kernel, and removes what was not used for longest if the folder gets too large.
    ///
    /// # Errors
    ///
    /// If the folder cannot be written; nothing but that is lost.
    pub fn store(&self, key: &Key, kernel: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let partial = self.folder.join(format!("{}-{}.{PARTIAL}", key.0, process::id()));
        let written = write_entry(&partial, kernel).and_then(|()| fs::rename(&partial, self.entry(key)));
        if written.is_err() {
            drop(fs::remove_file(&partial));
        }
        written?;
        self.make_room(key)
    }

    fn entry(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{}.{ENTRY}", key.0))
    }

    /// Removes entries, the least recently used first, until the rest fits; never that of `newest`.
    fn make_room(&self, newest: &Key) -> io::Result<()> {
        let keep = self.entry(newest);
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            // Another process may remove it at the same time.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let ends_in = |end: &str| path.extension().is_some_and(|extension| extension == end);
            if ends_in(PARTIAL) && used.elapsed().is_ok_and(|age| age > ABANDONED) {
                drop(fs::remove_file(&path));
            } else if ends_in(ENTRY) {
                entries.push((used, metadata.len(), path));
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in entries.iter().filter(|(_, _, path)| *path != keep) {
            if total <= self.max_bytes {
                break;
            }
            drop(fs::remove_file(path));
            total -= len;
        }
        Ok(())
    }
}

fn write_entry(path: &Path, kernel: &[u8]) -> io::Result<()> {
    let extents = extents(kernel);
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&(kernel.len() as u64).to_le_bytes());
    head.extend_from_slice(&(extents.len() as u64).to_le_bytes());
    for &(start, end) in &extents {
        head.extend_from_slice(&(start as u64).to_le_bytes());
        head.extend_from_slice(&((end - start) as u64).to_le_bytes());
    }
    let mut checksum = Hasher::new();
    let mut file = BufWriter::new(File::create(path)?);
    for part in std::iter::once(&head[..]).chain(extents.iter().map(|&(start, end)| &kernel[start..end])) {
        checksum.update(part);
        file.write_all(part)?;
    }
    file.write_all(&checksum.finalize().to_le_bytes())?;
    file.flush()
}

/// The runs of pages that are not all zeros, as start and end.
fn extents(kernel: &[u8]) -> Vec<(usize, usize)> {
    let mut extents: Vec<(usize, usize)> = Vec::new();
    for (index, page) in kernel.chunks(PAGE).enumerate() {
        if *page == ZEROS[..page.len()] {
            continue;
        }
        let start = index * PAGE;
        match extents.last_mut() {
            Some((_, end)) if *end == start => *end += page.len(),
            Some(_) | None => extents.push((start, start + page.len())),
        }
    }
    extents
}

fn read_entry(file: &File) -> io::Result<Vec<u8>> {
    let mut file = Checked { file: BufReader::new(file), checksum: Hasher::new() };
    let mut magic = [0; MAGIC.len()];
    file.read(&mut magic)?;
    let (len, count) = (file.number()?, file.number()?);
    require(magic == *MAGIC && len <= FILE_MAX_BYTES && count <= len.div_ceil(PAGE as u64))?;
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let mut extents = Vec::new();
    for _ in 0..count {
        let place = (usize::try_from(file.number()?), usize::try_from(file.number()?));
        let (Ok(start), Ok(size)) = place else { return Err(damaged()) };
        extents.push((start, size));
    }
    // Zeros come from the kernel and cost nothing until they are written.
    let mut kernel = vec![0; len];
    for (start, size) in extents {
        let end = start.checked_add(size).filter(|&end| end <= len).ok_or_else(damaged)?;
        file.read(&mut kernel[start..end])?;
    }
    let expected = file.checksum.finalize();
    let mut recorded = [0; 4];
    file.file.read_exact(&mut recorded)?;
    let at_end = file.file.read(&mut [0])? == 0;
    require(u32::from_le_bytes(recorded) == expected && at_end)?;
    Ok(kernel)
}

/// A file that is read once, and the checksum of what was read.
struct Checked<'a> {
    file: BufReader<&'a File>,
    checksum: Hasher,
}

impl Checked<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        // In pieces that stay in the CPU's cache between being read and being summed.
        for piece in bytes.chunks_mut(128 << 10) {
            self.file.read_exact(piece)?;
            self.checksum.update(piece);
        }
        Ok(())
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

fn require(good: bool) -> io::Result<()> {
    if good { Ok(()) } else { Err(damaged()) }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the entry is damaged")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use proptest::prelude::*;

    use super::*;

    /// A cache in a folder of its own, removed at the end.
    struct Scratch(KernelCache);

    impl Scratch {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let name = format!("paravane-cache-{}-{}", process::id(), NUMBER.fetch_add(1, Relaxed));
            Self(KernelCache::at(env::temp_dir().join(name)))
        }

        fn names(&self) -> Vec<String> {
            let files = fs::read_dir(&self.0.folder).unwrap();
            let mut names: Vec<String> =
                files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0.folder));
        }
    }

    /// Two pages of bytes, three of zeros, and a piece of a page.
    fn kernel(fill: u8) -> Vec<u8> {
        [vec![fill; 2 * PAGE], vec![0; 3 * PAGE], vec![fill; 100]].concat()
    }

    #[test]
    fn what_was_kept_comes_back_and_nothing_else_does() {
        let scratch = Scratch::new();
        let (one, other) = (Key::of(b"one"), Key::of(b"other"));
        assert_eq!(scratch.0.load(&one), None);
        scratch.0.store(&one, &kernel(7)).unwrap();
        assert_eq!(scratch.0.load(&one), Some(kernel(7)));
        assert_eq!(scratch.0.load(&other), None);
        scratch.0.store(&one, &kernel(8)).unwrap();
        assert_eq!(scratch.0.load(&one), Some(kernel(8)));
        assert_eq!(scratch.names(), [format!("{}.kernel", one.0)]);
    }

    #[test]
    fn zeros_take_no_room() {
        let scratch = Scratch::new();
        let key = Key::of(b"");
        let mostly_zeros = [vec![0; 1000 * PAGE], vec![1]].concat();
        scratch.0.store(&key, &mostly_zeros).unwrap();
        assert!(fs::metadata(scratch.0.entry(&key)).unwrap().len() < 100);
        assert_eq!(scratch.0.load(&key), Some(mostly_zeros));
    }

    #[test]
    fn an_entry_with_any_byte_changed_or_cut_off_or_added_is_removed() {
        let scratch = Scratch::new();
        let key = Key::of(b"");
        let path = scratch.0.entry(&key);
        scratch.0.store(&key, &kernel(7)).unwrap();
        let good = fs::read(&path).unwrap();
        let changed = (0..good.len()).step_by(61).chain([good.len() - 1]).map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 0x40;
            bytes
        });
        let cut = (0..good.len()).step_by(977).map(|len| good[..len].to_vec());
        for bytes in changed.chain(cut).chain([[&good[..], b"x"].concat()]) {
            fs::write(&path, bytes).unwrap();
            assert_eq!(scratch.0.load(&key), None);
            assert!(!path.exists());
        }
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_newest_stays() {
        let mut scratch = Scratch::new();
        let keys = [b"a", b"b", b"c"].map(|file| Key::of(file));
        let len = {
            scratch.0.store(&keys[0], &kernel(1)).unwrap();
            fs::metadata(scratch.0.entry(&keys[0])).unwrap().len()
        };
        scratch.0.store(&keys[1], &kernel(2)).unwrap();
        for (age, key) in [(100, &keys[0]), (200, &keys[1])] {
            let file = File::open(scratch.0.entry(key)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        // The older of the two is used, and so becomes the newer.
        assert!(scratch.0.load(&keys[1]).is_some());
        scratch.0.max_bytes = 2 * len;
        scratch.0.store(&keys[2], &kernel(3)).unwrap();
        assert_eq!(keys.clone().map(|key| scratch.0.load(&key).is_some()), [false, true, true]);
        scratch.0.max_bytes = 1;
        scratch.0.store(&keys[0], &kernel(1)).unwrap();
        assert_eq!(keys.map(|key| scratch.0.load(&key).is_some()), [true, false, false]);
    }

    #[test]
    fn what_a_dead_process_was_writing_is_removed_and_strangers_are_not() {
        let scratch = Scratch::new();
        fs::create_dir_all(&scratch.0.folder).unwrap();
        for (name, hours) in [("old.partial", 2), ("new.partial", 0), ("stranger", 2)] {
            let file = File::create(scratch.0.folder.join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_hours(hours)).unwrap();
        }
        let key = Key::of(b"");
        scratch.0.store(&key, &kernel(1)).unwrap();
        let mut expected = ["new.partial".to_owned(), "stranger".to_owned(), format!("{}.kernel", key.0)];
        expected.sort();
        assert_eq!(scratch.names(), expected);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_and_no_more() {
        let scratch = Scratch::new();
        fs::create_dir_all(&scratch.0.folder).unwrap();
        let file = scratch.0.folder.join("file");
        fs::write(&file, "").unwrap();
        let cache = KernelCache::at(file.join("below"));
        assert!(cache.store(&Key::of(b""), &kernel(1)).is_err());
        assert_eq!(cache.load(&Key::of(b"")), None);
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(pages in prop::collection::vec((any::<u8>(), any::<bool>()), 0..20), tail in 0..PAGE) {
            let scratch = Scratch::new();
            let key = Key::of(b"any");
            let mut kernel: Vec<u8> =
                pages.iter().flat_map(|&(byte, zero)| vec![if zero { 0 } else { byte }; PAGE]).collect();
            kernel.truncate(kernel.len().saturating_sub(tail));
            scratch.0.store(&key, &kernel).unwrap();
            prop_assert_eq!(scratch.0.load(&key), Some(kernel));
        }

        #[test]
        fn an_entry_of_any_bytes_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), with_magic: bool) {
            let scratch = Scratch::new();
            fs::create_dir_all(&scratch.0.folder).unwrap();
            let key = Key::of(b"any");
            let bytes = if with_magic { [&MAGIC[..], &bytes].concat() } else { bytes };
            fs::write(scratch.0.entry(&key), bytes).unwrap();
            prop_assert_eq!(scratch.0.load(&key), None);
        }
    }
}
