//! Writes cpio archives in the "newc" format, which the Linux kernel unpacks into its first file system.
//!
//! Each entry is a header of fourteen fields, the name with its NUL, and the contents; header with name, and contents, are
//! each padded to four bytes. The fields are numbers of eight hexadecimal digits. An entry called `TRAILER!!!` ends the
//! archive. A folder must come before what is in it. Times are 0, so that the same contents give the same archive.
//!
//! Source: Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`.

/// An archive that is being written.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// What an entry is: bits of `st_mode`, inode(7).
const CHARACTER_DEVICE: u32 = 0o020_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// The fields of a header that differ between our entries.
#[derive(Clone, Copy, Debug, Default)]
struct Header {
    mode: u32,
    /// Major and minor number of the device that the entry stands for.
    device: (u32, u32),
}

impl Archive {
    /// Adds a folder.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, Header { mode: DIRECTORY | 0o755, device: (0, 0) }, &[]);
    }

    /// Adds a file that everybody may read and execute.
    ///
    /// # Panics
    ///
    /// If it has 4 GiB or more, which the format cannot say.
    pub fn file(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, Header { mode: REGULAR | 0o755, device: (0, 0) }, contents);
    }

    /// Adds a symbolic link to `target`.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, Header { mode: SYMLINK | 0o777, device: (0, 0) }, target.as_bytes());
    }

    /// Adds the node of a character device, which only root may use.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, Header { mode: CHARACTER_DEVICE | 0o600, device: (major, minor) }, &[]);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", Header::default(), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, header: Header, contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).expect("a file of an archive is smaller than 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        let (links, owner, time, checksum) = (1, (0, 0), 0, 0);
        let fields = [
            self.entries, // The inode: any number that no other entry has.
            header.mode,
            owner.0,
            owner.1,
            links,
            time,
            size,
            0, // The device that the file is on.
            0,
            header.device.0,
            header.device.1,
            name_size,
            checksum,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry as a reader sees it.
    #[derive(Debug, PartialEq, Eq)]
    struct Entry {
        name: String,
        mode: u32,
        device: (u32, u32),
        contents: Vec<u8>,
    }

    /// Reads an archive by the format's description, up to its trailer.
    fn read(bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            assert_eq!(at % 4, 0);
            let field = |index: usize| {
                let start = at + 6 + 8 * index;
                let digits = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let small = |index: usize| u32::try_from(field(index)).unwrap();
            let name_end = at + 110 + field(11);
            let name = String::from_utf8(bytes[at + 110..name_end - 1].to_vec()).unwrap();
            assert_eq!(bytes[name_end - 1], 0);
            let start = name_end.next_multiple_of(4);
            let end = start + field(6);
            if name == "TRAILER!!!" {
                assert_eq!(end.next_multiple_of(4), bytes.len());
                return entries;
            }
            let contents = bytes[start..end].to_vec();
            entries.push(Entry { name, mode: small(1), device: (small(9), small(10)), contents });
            at = end.next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for contents in [&b""[..], b"x", b"xy", b"xyz", b"four", &[7; 1000]] {
            let mut archive = Archive::default();
            archive.directory("d");
            archive.file("d/f", contents);
            archive.symlink("d/link", "f");
            archive.character_device("d/console", 5, 1);

            let entry = |name: &str, mode, device, contents: &[u8]| Entry {
                name: name.to_owned(),
                mode,
                device,
                contents: contents.to_vec(),
            };
            let expected = [
                entry("d", 0o40755, (0, 0), b""),
                entry("d/f", 0o100_755, (0, 0), contents),
                entry("d/link", 0o120_777, (0, 0), b"f"),
                entry("d/console", 0o20600, (5, 1), b""),
            ];
            assert_eq!(read(&archive.finish()), expected);
        }
    }

    #[test]
    fn the_same_contents_give_the_same_archive() {
        let archive = || {
            let mut archive = Archive::default();
            archive.file("f", b"contents");
            archive.finish()
        };
        assert_eq!(archive(), archive());
    }
}
