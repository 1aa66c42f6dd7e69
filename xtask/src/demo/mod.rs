//! A stock Debian kernel, untouched as packaged, booted by the release program with an initial ramdisk made here.
//!
//! On a terminal the person gets a shell in the guest. Otherwise, as in the CI, the guest checks itself from inside and
//! powers off, and the demo fails unless each check passed and the program's exit code is 0.

mod tour;

use std::io::{self, IsTerminal as _};
use std::process::Command;

use paravane_initramfs::{Action, Report};

use crate::guests::linux;
use crate::program::{self, Profile};
use crate::repo::Repo;
use crate::{command, fetch};

/// How long the checks may take, in seconds: many times what they do, so only a guest that hangs is stopped.
const TIMEOUT: &str = "600";

/// What to show.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show what the decoding commands print on this kernel, instead of booting it
    #[arg(long)]
    tour: bool,
    /// Memory of the guest
    #[arg(short, long, value_name = "SIZE", default_value = "192M")]
    memory: String,
    /// Run the check even if standard input is a terminal
    #[arg(long)]
    check: bool,
}

/// Fetches kernel and busybox, builds the program and the initial ramdisk, and boots.
pub(crate) fn run(repo: &Repo, args: &Args) -> anyhow::Result<()> {
    println!("== A stock Debian kernel, and busybox");
    let kernel = fetch::kernel_in(&fetch::package(repo, &fetch::STOCK_KERNEL.parse()?)?)?;
    let initrd = program::target(repo)?.join("demo-initrd.cpio");
    program::write_initrd(repo, &initrd)?;

    println!("\n== The program");
    let program = program::build(repo, Profile::Release)?;
    if args.tour {
        return tour::run(&program, &kernel);
    }

    let interactive = io::stdin().is_terminal() && io::stdout().is_terminal() && !args.check;
    let action = if interactive { Action::Shell } else { Action::Check };
    let mut boot = Command::new(program);
    boot.arg("run").arg(&kernel).arg("-i").arg(&initrd).args(["-m", &args.memory]);
    boot.arg("-p").arg(format!("quiet {}", action.parameter()));
    println!("\n== The boot");
    if interactive {
        return command::run(&mut boot);
    }
    boot.args(["--timeout", TIMEOUT]);
    let report = checked(&mut boot)?;
    println!("\nThe guest booted, passed {} checks from inside and powered off.", report.passed.len());
    println!("On a terminal, `cargo xtask demo` gives you a shell in it; `--tour` shows the decoder.");
    Ok(())
}

/// Boots a guest that checks itself, prints what it prints, and judges it.
fn checked(boot: &mut Command) -> anyhow::Result<Report> {
    println!("$ {}", command::line(boot));
    let mut console = String::new();
    let status = command::follow(boot, |line| {
        let line = line.trim_end();
        println!("{line}");
        console.push_str(line);
        console.push('\n');
    })?;
    linux::judge(&console, status.code())
}
