//! The smallest guests: what a kernel file may say of itself, and that the kernel runs then.
use paravane_abi::{hypercall::Hypercall, sched::ShutdownReason};
use paravane_minikernel::{End, Entry, Layout, Metadata, Program, Setup, Way};

#[test]
fn a_kernel_says_hello_in_8_mib_whatever_form_its_metadata_has() {
    for metadata in [Metadata::NoteSegment, Metadata::NoteSection, Metadata::LegacyText] {
        for base in [0, 0xffff_ffff_8000_0000, 0x40_0000] {
            for way in [Way::Page, Way::Raw] {
                for says_entry in [true, false] {
                    let setup = Setup {
                        metadata,
                        base,
                        says_base: base != 0,
                        says_entry,
                        way,
                        runtime: false,
                        ..Setup::default()
                    };
                    assert_eq!(setup.pages, 2048);
                    let outcome = Program::assemble(&setup, |p| p.print("hello\n")).run();
                    assert!(outcome.passed(), "{setup:?}: {outcome}");
                    assert_eq!(outcome.console, "hello\n");
                }
            }
        }
    }
}

#[test]
fn the_builder_puts_everything_where_the_layout_says() {
    let setup = Setup::default();
    let outcome = Program::assemble(&setup, |p| p.print("x")).run();
    assert!(outcome.passed(), "{outcome}");
    assert_eq!(outcome.built.plan, Layout::new(&setup).plan);
}

#[test]
fn a_failed_check_is_printed_and_ends_with_reason_crash() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        p.call(Hypercall::XenVersion, &[7, 0])?;
        p.check("pages are 4096 bytes", 4096)?;
        p.check("pages are 42 bytes", 42)
    })
    .run();
    assert!(matches!(outcome.end, End::Shutdown(ShutdownReason::Crash)), "{outcome}");
    assert_eq!(
        outcome.console,
        "FAILED pages are 42 bytes: found 0x0000000000001000, expected 0x000000000000002a\n"
    );
}

#[test]
fn an_unexpected_trap_is_noted_printed_and_ends_with_reason_crash() {
    let outcome = Program::assemble(&Setup::default(), |p| p.a.ud2()).run();
    assert!(matches!(outcome.end, End::Shutdown(ShutdownReason::Crash)), "{outcome}");
    assert_eq!(outcome.trap().entry, Entry::Vector(6));
    assert_eq!(outcome.trap().rip(), Layout::new(&Setup::default()).code().start);
    assert!(outcome.console.starts_with("UNEXPECTED ENTRY 0x0000000000000006"), "{outcome}");
}

#[test]
fn a_caught_trap_leads_behind_what_it_interrupted() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        p.catch(|p| {
            p.a.ud2()?;
            p.print("not reached")
        })?;
        p.pass_over(2, |p| p.a.ud2())?;
        p.print("reached")
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    assert_eq!(outcome.console, "reached");
    assert_eq!(outcome.traps().len(), 2);
}
