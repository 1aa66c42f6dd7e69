//! `paravane encode pte`: a page-table entry from its frame and flags.

use paravane_abi::units::Mfn;
use paravane_x86::pte::{Pte, PteFlags};

use crate::{
    cli::encode::{PteArgs, PteFlag},
    commands::pte::{Place, describe, to_json},
    failure::Failure,
    input,
    output::Answer,
};

/// Encodes what `args` describe.
///
/// # Errors
///
/// [`Failure::Usage`] if the frame does not fit, or the guest has no such level.
pub(in crate::commands) fn encode(args: &PteArgs) -> Result<Answer, Failure> {
    let place = Place::new(args.level, args.guest)?;
    let frame = input::number(&args.frame, 40, "a machine frame number")?;
    let flags = args.flags.iter().map(|&flag| bits(flag)).fold(PteFlags::empty(), PteFlags::union);
    let pte = Pte::new(Mfn(frame), flags).ok_or_else(|| {
        Failure::Usage(format!("looked for a machine frame number of 40 bits, found {}", args.frame))
    })?;
    Ok(Answer { page: describe(place, pte), json: to_json(place, pte) })
}

fn bits(flag: PteFlag) -> PteFlags {
    match flag {
        PteFlag::None => PteFlags::empty(),
        PteFlag::Present => PteFlags::PRESENT,
        PteFlag::Rw => PteFlags::RW,
        PteFlag::User => PteFlags::USER,
        PteFlag::Pwt => PteFlags::PWT,
        PteFlag::Pcd => PteFlags::PCD,
        PteFlag::Accessed => PteFlags::ACCESSED,
        PteFlag::Dirty => PteFlags::DIRTY,
        PteFlag::Pat => PteFlags::PAT_OR_PS,
        PteFlag::Global => PteFlags::GLOBAL,
        PteFlag::Kernel => PteFlags::GUEST_KERNEL,
        PteFlag::Nx => PteFlags::NX,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, encode::Encode};

    fn encoded(options: &str) -> Result<String, Failure> {
        let line = format!("paravane encode pte {options}");
        let cli = Cli::try_parse_from(line.split_whitespace())
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let Command::Encode(Encode::Pte(args)) = cli.command else {
            return Err(Failure::Usage("another command".to_owned()));
        };
        let answer = encode(&args)?;
        Ok(answer.json["entry"].as_str().unwrap().to_owned())
    }

    #[test]
    fn frame_and_flags_make_an_entry() {
        for (options, entry) in [
            ("--frame 0x12345", "0x0000000012345001"),
            ("--frame 0x12345 --flags present,rw,accessed,dirty,nx", "0x8000000012345063"),
            ("--frame 0xffffffffff --flags none", "0x000ffffffffff000"),
            ("--frame 1 --flags p,us,g,kernel,ps,pwt,pcd --level 2", "0x001000000000119d"),
        ] {
            assert_eq!(encoded(options).unwrap(), entry, "{options}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (options, part) in [
            ("--frame 0x10000000000", "has 40 bits"),
            ("--frame x", "looked for a number"),
            ("--frame 1 --level 4 --guest 32", "three levels"),
            ("--frame 1 --flags q", "invalid value"),
        ] {
            let message = encoded(options).unwrap_err().to_string();
            assert!(message.contains(part), "{options}: {message}");
        }
    }
}
