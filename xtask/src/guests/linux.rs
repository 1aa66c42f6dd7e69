//! Linux with the initial ramdisk of `paravane-initramfs`, judged by what it found out about itself.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use paravane_initramfs::{Action, Report};

use crate::guests::host::{Ended, Host};

/// Memory for a Linux that starts alone. The stock kernel fits; its image ends at 74 MiB.
const MEMORY: &str = "192M";

/// Boots a kernel to its check.
pub(super) fn boot(host: &Host, kernel: &Path) -> anyhow::Result<Ended> {
    let initrd = host.initrd.to_str().context("the path of the ramdisk is not UTF-8")?;
    host.run(kernel, &["-m", MEMORY, "-i", initrd, "-p", &parameters()], "")
}

/// The kernel's command line.
pub(super) fn parameters() -> String {
    format!("{} printk.time=0", Action::Check.parameter())
}

/// Judges the console of a guest that checked itself, and the program's exit code.
pub(crate) fn judge(console: &str, status: Option<i32>) -> anyhow::Result<Report> {
    let report = Report::parse(console)?;
    if !report.failed.is_empty() {
        bail!("{} checks failed in the guest:\n  {}", report.failed.len(), report.failed.join("\n  "));
    }
    ensure!(!report.passed.is_empty(), "the guest checked nothing");
    ensure!(status == Some(0), "the guest powered off, and the program ended with {status:?} instead of 0");
    Ok(report)
}

/// Judges a run of `kernel`, and says how many checks it passed.
pub(super) fn passed(ended: &Ended, kernel: &Path) -> anyhow::Result<usize> {
    let report = judge(&ended.console, ended.code)?;
    let release = release_of(kernel)?;
    let version = report.remark("this is").context("the guest does not say what it is")?;
    ensure!(version.split(' ').any(|word| word == release), "{release} was started, and {version} ran");
    let hypervisor = "Hypervisor detected: Xen PV";
    ensure!(ended.console.contains(hypervisor), "the kernel does not print {hypervisor:?}");
    Ok(report.passed.len())
}

/// A kernel's release, as `uname -r` tells it, from where its package puts it: `boot/vmlinuz-RELEASE`, or since Linux 7
/// `usr/lib/modules/RELEASE/vmlinuz`.
fn release_of(kernel: &Path) -> anyhow::Result<&str> {
    let name = |path: &Path| path.file_name()?.to_str().map(str::len);
    let text = kernel.to_str().context("the path of the kernel is not UTF-8")?;
    let file = &text[text.len() - name(kernel).context("a kernel is a file")?..];
    if let Some(release) = file.strip_prefix("vmlinuz-") {
        return Ok(release);
    }
    let folder = kernel.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    folder.filter(|_| file == "vmlinuz").with_context(|| format!("{text} does not tell its release"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_guest_is_good_only_if_it_checked_passed_and_powered_off() {
        let good = "check: pass one\ncheck: done, 1 passed, 0 failed\n";
        assert_eq!(judge(good, Some(0)).unwrap().passed, ["one"]);
        for (console, status, error) in [
            (good, Some(255), "instead of 0"),
            (good, None, "instead of 0"),
            (
                "check: FAIL one: expected 1, found 2\ncheck: done, 0 passed, 1 failed\n",
                Some(0),
                "expected 1",
            ),
            ("check: done, 0 passed, 0 failed\n", Some(0), "nothing"),
            ("check: pass one\n", Some(0), "stopped before"),
        ] {
            let found = judge(console, status).unwrap_err().to_string();
            assert!(found.contains(error), "{found}");
        }
    }

    #[test]
    fn the_kernel_that_ran_must_be_the_one_that_was_started_and_on_xen() {
        let ended = |console: &str| Ended {
            code: Some(0),
            console: format!("{console}check: pass one\ncheck: done, 1 passed, 0 failed\n"),
            messages: String::new(),
            cpu: Duration::ZERO,
        };
        let (xen, this) = ("Hypervisor detected: Xen PV\n", "check: this is Linux (none) 7.3.4 #1 SMP\n");
        let kernel = Path::new("modules/7.3.4/vmlinuz");

        assert_eq!(passed(&ended(&format!("{xen}{this}")), kernel).unwrap(), 1);
        for (console, kernel, error) in [
            (format!("{xen}{this}"), "boot/vmlinuz-7.3", "7.3 was started"),
            (this.to_owned(), "modules/7.3.4/vmlinuz", "Xen PV"),
            (xen.to_owned(), "modules/7.3.4/vmlinuz", "does not say what it is"),
            (format!("{xen}{this}"), "boot/bzImage", "does not tell its release"),
        ] {
            let found = passed(&ended(&console), Path::new(kernel)).unwrap_err().to_string();
            assert!(found.contains(error), "{found}");
        }
    }
}
