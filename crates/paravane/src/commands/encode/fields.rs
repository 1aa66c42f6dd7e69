//! From options to a descriptor: which options a type has, what they default to, and what they build.

use paravane_x86::{
    descriptor::{Descriptor, Fields, SystemType, gate::Gate, wide::WideDescriptor},
    gdt,
    mode::Mode,
    selector::{Ring, Selector},
};

use super::limit;
use crate::{
    cli::encode::{DescriptorArgs, DescriptorType},
    commands::descriptor::{Entry, is_wide},
    failure::Failure,
    input,
};

/// A descriptor, and what was decided on the way that the user did not say.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    /// The descriptor.
    pub entry: Entry,
    /// Name and explanation of each decision.
    pub decisions: Vec<(&'static str, String)>,
}

/// The kinds of descriptor, as far as their options differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Code,
    Data,
    /// TSS or LDT.
    Segment(SystemType),
    Gate(SystemType),
}

impl DescriptorType {
    fn shape(self) -> Shape {
        match self {
            Self::Code => Shape::Code,
            Self::Data => Shape::Data,
            Self::Ldt => Shape::Segment(SystemType::Ldt),
            Self::Tss => Shape::Segment(SystemType::TssAvailable),
            Self::TssBusy => Shape::Segment(SystemType::TssBusy),
            Self::Tss16 => Shape::Segment(SystemType::Tss16Available),
            Self::Tss16Busy => Shape::Segment(SystemType::Tss16Busy),
            Self::CallGate => Shape::Gate(SystemType::CallGate),
            Self::CallGate16 => Shape::Gate(SystemType::CallGate16),
            Self::TaskGate => Shape::Gate(SystemType::TaskGate),
            Self::InterruptGate => Shape::Gate(SystemType::InterruptGate),
            Self::InterruptGate16 => Shape::Gate(SystemType::InterruptGate16),
            Self::TrapGate => Shape::Gate(SystemType::TrapGate),
            Self::TrapGate16 => Shape::Gate(SystemType::TrapGate16),
        }
    }
}

/// Builds the descriptor that `args` describe, in the form that `mode` has.
///
/// # Errors
///
/// [`Failure::Usage`] if an option does not belong to the type, is missing, or does not fit.
pub(super) fn encode(args: &DescriptorArgs, mode: Mode) -> Result<Encoded, Failure> {
    let shape = args.kind.shape();
    let wide = match shape {
        Shape::Code | Shape::Data => false,
        Shape::Segment(system) | Shape::Gate(system) => is_wide(mode, of_type(system)),
    };
    refuse_strangers(args, shape, wide)?;
    let mut decisions = Vec::new();
    let dpl = match args.dpl {
        Some(dpl) => Ring::from_bits(dpl),
        None => {
            let (dpl, why) = default_dpl(shape, mode);
            decisions.push(("DPL", format!("{dpl}, {why}")));
            dpl
        }
    };
    let entry = match shape {
        Shape::Code | Shape::Data | Shape::Segment(_) => segment(args, shape, dpl, wide, &mut decisions)?,
        Shape::Gate(system) => gate(args, system, dpl, wide)?,
    };
    Ok(Encoded { entry, decisions })
}

fn of_type(system: SystemType) -> Descriptor {
    Descriptor(u64::from(system.type_bits()) << 40)
}

fn default_dpl(shape: Shape, mode: Mode) -> (Ring, &'static str) {
    match shape {
        Shape::Code | Shape::Data | Shape::Gate(SystemType::CallGate | SystemType::CallGate16) => {
            (gdt::kernel_ring(mode), "the guest kernel's ring")
        }
        Shape::Segment(_) | Shape::Gate(_) => (Ring::R0, "as system descriptors have"),
    }
}

/// Refuses options that mean nothing for this type: a user who gives them expects something else.
fn refuse_strangers(args: &DescriptorArgs, shape: Shape, wide: bool) -> Result<(), Failure> {
    let code = shape == Shape::Code;
    let data = shape == Shape::Data;
    let gate = matches!(shape, Shape::Gate(_));
    let target = gate && shape != Shape::Gate(SystemType::TaskGate);
    let call = matches!(shape, Shape::Gate(SystemType::CallGate | SystemType::CallGate16)) && !wide;
    let interrupt = matches!(shape, Shape::Gate(SystemType::InterruptGate | SystemType::TrapGate)) && wide;
    for (option, given, belongs, whose) in [
        ("--base", args.base.is_some(), !gate, "segments"),
        ("--limit", args.limit.is_some(), !gate, "segments"),
        ("--granularity", args.granularity.is_some(), !gate, "segments"),
        ("--avl", args.avl, !gate, "segments"),
        ("--long", args.long, code, "code"),
        ("--16", args.bits16, code || data, "code and data; 16-bit gates and TSSs are types of their own"),
        ("--conforming", args.conforming, code, "code"),
        ("--execute-only", args.execute_only, code, "code"),
        ("--read-only", args.read_only, data, "data; code can never be written"),
        ("--expand-down", args.expand_down, data, "data"),
        ("--accessed", args.accessed, code || data, "code and data"),
        ("--no-accessed", args.no_accessed, code || data, "code and data"),
        ("--selector", args.selector.is_some(), gate, "gates"),
        ("--offset", args.offset.is_some(), target, "gates other than task gates"),
        ("--ist", args.ist.is_some(), interrupt, "16-byte interrupt and trap gates (64-bit guests)"),
        ("--count", args.count.is_some(), call, "8-byte call gates (32-bit guests, or 16-bit gates)"),
    ] {
        if given && !belongs {
            return Err(Failure::Usage(format!(
                "{option} belongs to {whose}: leave it out, or change --type"
            )));
        }
    }
    Ok(())
}

fn segment(
    args: &DescriptorArgs,
    shape: Shape,
    dpl: Ring,
    wide: bool,
    decisions: &mut Vec<(&'static str, String)>,
) -> Result<Entry, Failure> {
    let base = match &args.base {
        Some(base) => input::number(base, if wide { 64 } else { 32 }, "the base of this descriptor")?,
        None => 0,
    };
    let last = match &args.limit {
        Some(text) => limit::parse(text)?,
        None => default_limit(args, shape)?,
    };
    let encoded = limit::encode(last, args.granularity)?;
    decisions.push(("limit", encoded.explain()));
    let accessed = !args.no_accessed;
    if matches!(shape, Shape::Code | Shape::Data) && accessed && !args.accessed {
        decisions.push(("accessed", "set, as in Xen's own: the CPU need not write the table".to_owned()));
    }
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    let type_bits = match shape {
        Shape::Code => 8 | bit(args.conforming, 4) | bit(!args.execute_only, 2) | bit(accessed, 1),
        Shape::Data => bit(args.expand_down, 4) | bit(!args.read_only, 2) | bit(accessed, 1),
        Shape::Segment(system) | Shape::Gate(system) => system.type_bits(),
    };
    let code_or_data = matches!(shape, Shape::Code | Shape::Data);
    let fields = Fields {
        // The low half; a wide descriptor has the other half in its second quadword.
        base: (base & 0xffff_ffff) as u32,
        limit: encoded.field,
        type_bits,
        code_or_data,
        dpl,
        present: !args.not_present,
        avl: args.avl,
        long: args.long,
        big: code_or_data && !args.long && !args.bits16,
        granularity: encoded.granular,
    };
    let low = Descriptor::from_fields(&fields)
        .ok_or_else(|| Failure::Usage("the limit does not fit".to_owned()))?;
    Ok(Entry { low, high: wide.then_some(base >> 32) })
}

fn default_limit(args: &DescriptorArgs, shape: Shape) -> Result<u32, Failure> {
    match shape {
        Shape::Data if args.expand_down => Err(Failure::Usage(
            "--expand-down needs --limit: the last offset that is NOT valid, as 0xfff to keep the first page out".to_owned(),
        )),
        Shape::Code | Shape::Data => Ok(u32::MAX),
        Shape::Segment(SystemType::Tss16Available | SystemType::Tss16Busy) => Ok(0x2b),
        Shape::Segment(SystemType::TssAvailable | SystemType::TssBusy) => Ok(0x67),
        // An LDT of 8192 entries.
        Shape::Segment(_) | Shape::Gate(_) => Ok(0xffff),
    }
}

fn gate(args: &DescriptorArgs, system: SystemType, dpl: Ring, wide: bool) -> Result<Entry, Failure> {
    let selector = args.selector.as_deref().ok_or_else(|| missing("--selector", "0x10"))?;
    let selector = input::number(selector, 16, "the selector of a gate")?;
    let sixteen =
        matches!(system, SystemType::CallGate16 | SystemType::InterruptGate16 | SystemType::TrapGate16);
    let offset_bits = match (wide, sixteen) {
        (true, _) => 64,
        (false, true) => 16,
        (false, false) => 32,
    };
    let offset = match args.offset.as_deref() {
        Some(offset) => input::number(offset, offset_bits, "the offset of this gate")?,
        None if system == SystemType::TaskGate => 0,
        None => return Err(missing("--offset", "0xc0100000")),
    };
    let gate = Gate {
        system,
        selector: Selector(u16::try_from(selector).map_err(|_| missing("--selector", "0x10"))?),
        offset,
        dpl,
        present: !args.not_present,
        low_byte: args.ist.or(args.count).unwrap_or(0),
    };
    let entry = if wide {
        gate.to_wide().map(|WideDescriptor { low, high }| Entry { low, high: Some(high) })
    } else {
        gate.to_legacy().map(|low| Entry { low, high: None })
    };
    entry.ok_or_else(|| Failure::Usage(format!("a {} has no such form", system.name())))
}

fn missing(option: &str, example: &str) -> Failure {
    Failure::Usage(format!("a gate needs {option}: say where it leads, as in {option} {example}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, encode::Encode};

    fn run(options: &str) -> Result<Encoded, Failure> {
        let line = format!("paravane encode descriptor {options}");
        let cli = Cli::try_parse_from(line.split_whitespace())
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let Command::Encode(Encode::Descriptor(args)) = cli.command else {
            return Err(Failure::Usage("another command".to_owned()));
        };
        encode(&args, args.mode.mode()?)
    }

    #[test]
    fn options_become_the_descriptors_that_xen_has() {
        for (options, low, high) in [
            ("--type code --dpl 3 --long", 0x00af_fb00_0000_ffff, None),
            ("--type code --dpl 3", 0x00cf_fb00_0000_ffff, None),
            ("--type data", 0x00cf_f300_0000_ffff, None),
            ("--type data --guest 32", 0x00cf_b300_0000_ffff, None),
            ("--type code --guest 32 --no-accessed --limit 3944M", 0x00cf_ba00_0000_67ff, None),
            ("--type data --dpl 0 --read-only --limit 7 --16", 0x0000_9100_0000_0007, None),
            ("--type data --dpl 3 --expand-down --limit 0xfff --no-accessed", 0x0040_f600_0000_0fff, None),
            ("--type code --dpl 0 --16 --limit 64K --base 0xf0000 --conforming", 0x0000_9f0f_0000_ffff, None),
            ("--type code --execute-only --avl --not-present --dpl 0", 0x00df_1900_0000_ffff, None),
            ("--type tss --base 0xffff82d080531040", 0x8000_8953_1040_0067, Some(0xffff_82d0)),
            ("--type tss-busy --hypervisor 32", 0x0000_8b00_0000_0067, None),
            ("--type ldt --base 0x12345000 --hypervisor 32 --limit 0xfff", 0x1200_8234_5000_0fff, None),
            ("--type tss16 --guest 32", 0x0000_8100_0000_002b, None),
            (
                "--type call-gate --guest 32 --dpl 3 --selector 0x10 --offset 0x12345678 --count 5",
                0x1234_ec05_0010_5678,
                None,
            ),
            (
                "--type interrupt-gate --selector 0x10 --offset 0xffffffff81a00ba0 --dpl 3 --ist 2",
                0x81a0_ee02_0010_0ba0,
                Some(0xffff_ffff),
            ),
            ("--type task-gate --selector 0x28", 0x0000_8500_0028_0000, None),
        ] {
            let encoded = run(options).unwrap_or_else(|failure| panic!("{options}: {failure}"));
            assert_eq!(encoded.entry, Entry { low: Descriptor(low), high }, "{options}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_advice() {
        for (options, part) in [
            ("--type code --read-only", "--read-only belongs to data"),
            ("--type data --long", "--long belongs to code"),
            ("--type call-gate --base 0", "--base belongs to segments"),
            ("--type tss --selector 8", "--selector belongs to gates"),
            ("--type call-gate --offset 0", "needs --selector"),
            ("--type call-gate --selector 8", "needs --offset"),
            ("--type call-gate --selector 8 --offset 0 --count 1", "--count belongs to 8-byte call gates"),
            ("--type trap-gate --guest 32 --selector 8 --offset 0 --ist 1", "--ist belongs to 16-byte"),
            ("--type task-gate --selector 8 --offset 0", "--offset belongs to gates other than task gates"),
            ("--type data --expand-down", "needs --limit"),
            ("--type data --base 0x100000000", "has 32 bits"),
            ("--type trap-gate16 --selector 8 --offset 0x10000", "has 16 bits"),
            ("--type call-gate --guest 32 --selector 8 --offset 0x100000000", "has 32 bits"),
            ("--type call-gate --selector 0x10000 --offset 0", "has 16 bits"),
            ("--type data --limit 1M --granularity byte --limit 2M", "cannot be used multiple times"),
            ("--type data --limit 2M --granularity byte", "at most 0xfffff"),
            ("--type code --long --16", "cannot be used with"),
            ("--type code --dpl 4", "0..=3"),
            ("--type code --guest 64 --hypervisor 32", "never existed"),
        ] {
            let message = run(options).unwrap_err().to_string();
            assert!(message.contains(part), "{options}: {message}");
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same_type() {
        for (name, system) in [
            ("ldt", SystemType::Ldt),
            ("tss", SystemType::TssAvailable),
            ("tss-busy", SystemType::TssBusy),
            ("tss16", SystemType::Tss16Available),
            ("tss16-busy", SystemType::Tss16Busy),
        ] {
            let entry = run(&format!("--type {name}")).unwrap().entry;
            assert_eq!(entry.low.type_bits(), system.type_bits(), "{name}");
        }
        for (name, system) in [
            ("call-gate", SystemType::CallGate),
            ("call-gate16", SystemType::CallGate16),
            ("interrupt-gate", SystemType::InterruptGate),
            ("interrupt-gate16", SystemType::InterruptGate16),
            ("trap-gate", SystemType::TrapGate),
            ("trap-gate16", SystemType::TrapGate16),
        ] {
            let gate = run(&format!("--type {name} --selector 0x10 --offset 0x1234")).unwrap().entry.gate();
            let gate = gate.map(|gate| (gate.system, gate.selector, gate.offset));
            assert_eq!(gate, Some((system, Selector(0x10), 0x1234)), "{name}");
        }
    }
}
