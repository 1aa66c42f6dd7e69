//! The real PV guests that tests and the demo use, and what runs in them. None is ours; each runs untouched.

/// A guest: the request that fetches it, and why it is worth having.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) request: &'static str,
    pub(crate) why: &'static str,
}

/// The stock kernel: what the demo shows.
pub(crate) const STOCK_KERNEL: &str = "linux-image-amd64";

/// Its sibling for virtual machines, which boots fastest.
pub(crate) const CLOUD_KERNEL: &str = "linux-image-cloud-amd64";

/// The programs of the initial ramdisk that `paravane-initramfs` makes.
pub(crate) const BUSYBOX: &str = "busybox-static";

/// The emulator that the bench compares with.
pub(crate) const QEMU: &str = "qemu-system-x86";

/// GRUB's modules for PV-GRUB, and the tools that make images of them.
pub(crate) const GRUB_TOOLS: [&str; 2] = ["grub-xen-bin", "grub-common"];

/// Every guest that `cargo xtask fetch` brings when it is not told what to fetch.
pub(crate) const GUESTS: [Guest; 8] = [
    Guest { request: STOCK_KERNEL, why: "Linux 6.1, xz payload, raw SYSCALL instead of the hypercall page" },
    Guest { request: CLOUD_KERNEL, why: "Linux 6.1, lz4 payload, only what a domU needs" },
    Guest { request: "linux-image-amd64@bullseye", why: "Linux 5.10, calls through the hypercall page" },
    Guest { request: "linux-image-amd64@bookworm-backports", why: "Linux 6.12, zstd payload" },
    Guest { request: "linux-image-686-pae:i386@bullseye", why: "Linux 5.10 for i386: not PV, to be refused" },
    Guest { request: "grub-xen-host", why: "PV-GRUB, 64-bit and 32-bit PAE" },
    Guest {
        request: "gnumach-image-1.8-xen-486:i386@bullseye",
        why: "GNU Mach, 32-bit PAE, metadata in a __xen_guest section",
    },
    Guest { request: BUSYBOX, why: "no guest: the programs of the initial ramdisk that Linux guests get" },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::request::Request;

    #[test]
    fn every_guest_is_a_request_in_its_shortest_spelling() {
        for guest in GUESTS {
            let request: Request = guest.request.parse().unwrap();
            assert_eq!(request.to_string(), guest.request);
        }
    }
}
