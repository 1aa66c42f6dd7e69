//! Kernels of distributions, which `cargo xtask test` fetches, are understood.
#![forbid(unsafe_code)]

use paravane_abi::elfnote::ElfNote;
use paravane_abi::units::GuestVirt;
use paravane_builder::image::container::Container;
use paravane_builder::image::elf::LoadAddr;
use paravane_builder::image::payload::Compression;
use paravane_builder::image::verdict::Boot;
use paravane_builder::image::{Image, Inspection, inspect, read_file};
use paravane_builder::testing::data::kernel;
use paravane_x86::mode::Guest;

/// Inspects a kernel both ways, and checks that they agree.
fn inspected(package: &str, path_start: &str) -> Inspection {
    let path = kernel(package, path_start);
    let file = read_file(&path).expect("a file");
    let inspection = inspect(&file).expect("a kernel");
    let image = Image::open(&file).expect("a kernel");
    assert_eq!(inspection, image.inspect(), "{}", path.display());
    assert!(image.pv_kernel().is_ok());
    // What is extracted is a kernel of its own, without anything behind it.
    let extracted = inspect(image.elf_bytes()).expect("a kernel");
    assert_eq!(extracted.container, Container::Elf);
    assert_eq!(extracted.elf.trailing_len, 0);
    assert_eq!((&extracted.notes, &extracted.addresses), (&inspection.notes, &inspection.addresses));
    inspection
}

/// What all 64-bit Linux kernels have in common.
fn assert_linux(inspection: &Inspection, compression: Compression) {
    let Container::BzImage(header) = &inspection.container else { panic!("{:?}", inspection.container) };
    assert_eq!(header.compression, Some(compression));
    assert_eq!(inspection.verdict.boot, Boot::Pv64, "{:?}", inspection.verdict);
    assert!(inspection.verdict.pvh);
    assert_eq!(inspection.problems, []);
    assert_eq!(inspection.addresses.virt_base, GuestVirt(0xffff_ffff_8000_0000));
    assert_eq!(inspection.addresses.pstart, LoadAddr(0x100_0000));
    assert_eq!(inspection.addresses.virt_kstart, GuestVirt(0xffff_ffff_8100_0000));
    assert_eq!(inspection.addresses.init_p2m, Some(GuestVirt(0x80_0000_0000)));
    assert!(inspection.parameters.mod_start_pfn);
    let (Some(version), Some(linux)) = (&header.kernel_version, &inspection.linux) else {
        panic!("no version in {header:?}");
    };
    assert!(version.starts_with(&linux.release));
    // The relocations behind the ELF file.
    assert!(inspection.elf.trailing_len > 0);
    assert!(inspection.notes.iter().all(|note| note.note.is_some()));
}

#[test]
fn the_stock_debian_kernel_boots_as_pv() {
    let inspection = inspected("linux-image-amd64", "boot/vmlinuz-");
    assert_linux(&inspection, Compression::Xz);
    // It issues SYSCALL itself.
    assert!(inspection.absent_notes.contains(&ElfNote::HypercallPage));
    assert_eq!(inspection.addresses.hypercall_page, None);
}

#[test]
fn the_debian_cloud_kernel_boots_as_pv() {
    assert_linux(&inspected("linux-image-cloud-amd64", "boot/vmlinuz-"), Compression::Lz4);
}

#[test]
fn grub_boots_as_pv_from_address_0() {
    let inspection = inspected("grub-xen-host", "usr/lib/grub-xen/grub-x86_64-xen.bin");
    assert_eq!(inspection.container, Container::Elf);
    assert_eq!(inspection.verdict.boot, Boot::Pv64);
    assert_eq!(inspection.parameters.guest_os.as_deref(), Some("GRUB"));
    assert_eq!(inspection.addresses.virt_entry, GuestVirt(0));
    assert_eq!(inspection.addresses.virt_kstart, GuestVirt(0));
    assert_eq!(inspection.linux, None);
}

#[test]
fn grub_for_32_bits_boots_as_pae_pv_though_its_last_note_is_cut() {
    let inspection = inspected("grub-xen-host", "usr/lib/grub-xen/grub-i386-xen.bin");
    assert_eq!(inspection.verdict.boot, Boot::Pv32Pae);
    assert_eq!(inspection.elf.guest, Guest::Bits32);
}

#[test]
fn grub_for_pvh_is_not_a_pv_kernel() {
    let path = kernel("grub-xen-host", "usr/lib/grub-xen/grub-i386-xen_pvh.bin");
    let inspection = inspect(&read_file(&path).unwrap()).unwrap();
    assert_eq!(inspection.verdict.boot, Boot::PvhOnly);
}
