//! Listings: guest instructions and the host code that they become, as text for people to read and review.
//!
//! The snapshots in `snapshots/` hold what each treatment of `classify` looks like. After a change of the emitter,
//! `INSTA_UPDATE=always cargo test -p paravane-translate --lib listing` writes them anew, and the difference shows
//! what the change does to code.
//!
//! Addresses are shown by name, so that they are the same everywhere: a field of the state, an entry of a table, a
//! stub, a place in the block (`h1` in the hot part, `c1` in the cold one). A site in R15 is followed by what it says.
//! What depends on the host's CPU is fixed: RORX is there, and guests use only instructions that every CPU has.

mod cases;

use core::mem::offset_of;
use std::collections::BTreeMap;
use std::sync::Arc;

use iced_x86::{
    Decoder, DecoderOptions, Formatter as _, Instruction, IntelFormatter, Mnemonic, OpKind, Register,
    SymbolResolver, SymbolResult,
};
use paravane_abi::units::{MachAddr, Mfn, PAGE_SIZE};
use paravane_engine::{Segment, SegmentRegister, VcpuContext};
use paravane_memory::Memory;

use crate::asm::Buffer;
use crate::bits::low32;
use crate::block::Need;
use crate::engine::{Options, Translator};
use crate::runs::Runs;
use crate::sites::Site;
use crate::state::{Layout, Path, State, part};
use crate::stubs::Stubs;
use crate::verify::Piece;
use crate::walk::Walk;

/// Where guest code is, and the page behind it.
const CODE: u64 = 0x40_0000;
const FIRST: Mfn = Mfn(0x100);

/// A guest's code and the state it is translated for.
struct Case {
    name: &'static str,
    code: Vec<u8>,
    /// Where in its page it starts.
    offset: u64,
    need: Need,
    bits: u32,
    /// Changes to the CPU beforehand.
    setup: fn(&mut VcpuContext),
    /// One instruction at a time.
    single: bool,
}

impl Case {
    /// Translates, and shows all instructions but the last, which is there to end the block.
    fn text(&self) -> String {
        let mut translator = translator(self);
        let rip = CODE + self.offset;
        translator.set_env(self.single);
        let block = translator.block_at(rip, self.need);
        assert!(block.is_ok(), "{}: {block:?}", self.name);
        let listing = Listing::new(&translator, self.bits);
        format!("## {}\n\n{}", self.name, listing.text())
    }
}

/// A translator over a few pages, of which two hold the code.
fn translator(case: &Case) -> Translator {
    const USER: u64 = 7;
    let memory = Arc::new(Memory::new(FIRST, 16).expect("a few pages"));
    let entry = |frame: u64, index: u64| MachAddr((FIRST.0 + frame) * PAGE_SIZE + index * 8);
    let point = |table, index, to: u64| {
        memory.store_u64(entry(table, index), (FIRST.0 + to) << 12 | USER).expect("a table's entry");
    };
    point(0, 0, 1);
    point(1, 0, 2);
    point(2, CODE >> 21, 3);
    point(3, 0, 4);
    point(3, 1, 5);
    memory.write(MachAddr((FIRST.0 + 4) * PAGE_SIZE + case.offset), &case.code).expect("the code fits");
    let mut translator = Translator::new(memory, Options::default()).expect("a host that can translate");
    translator.rorx = true;
    let context = &mut translator.cpu.state_mut().context;
    context.kernel_root = FIRST;
    let code = if case.bits == 64 { (0x33, 0x00af_fb00_0000_ffff) } else { (0x23, 0x00cf_fb00_0000_ffff) };
    *context.segment_mut(SegmentRegister::Cs) = Segment::of_descriptor(code.0, code.1);
    for register in [SegmentRegister::Ss, SegmentRegister::Ds, SegmentRegister::Es] {
        *context.segment_mut(register) = Segment::of_descriptor(0x2b, 0x00cf_f300_0000_ffff);
    }
    (case.setup)(context);
    translator
}

/// A translated block with names for its addresses.
struct Listing<'a> {
    translator: &'a Translator,
    bits: u32,
    labels: BTreeMap<u64, String>,
}

impl<'a> Listing<'a> {
    fn new(translator: &'a Translator, bits: u32) -> Self {
        let emitter = &translator.emitter;
        let parts = [("h", &emitter.hot), ("c", &emitter.cold)];
        let mut labels = BTreeMap::new();
        for (letter, own) in parts {
            let range = u64::from(own.base)..u64::from(own.here());
            let jumped = parts.into_iter().flat_map(|(_, buffer)| decoded(buffer));
            let jumped = jumped.flat_map(|instruction| {
                let again = if instruction.op0_register() == Register::R15 {
                    instruction.immediate64() >> 32
                } else {
                    0
                };
                [instruction.near_branch_target(), again]
            });
            let returns = emitter.sites.iter().flat_map(returns).map(u64::from);
            let mut targets: Vec<u64> = jumped.chain(returns).filter(|at| range.contains(at)).collect();
            targets.sort_unstable();
            targets.dedup();
            for (index, at) in targets.into_iter().enumerate() {
                labels.insert(at, format!("{letter}{}", index + 1));
            }
        }
        Self { translator, bits, labels }
    }

    fn text(&self) -> String {
        let emitter = &self.translator.emitter;
        let ends = |piece: &Piece| piece.instruction.mnemonic() == Mnemonic::Hlt;
        let whole = !emitter.record.pieces.last().is_some_and(ends);
        let mut text = String::new();
        for (title, buffer, is_hot) in [("hot", &emitter.hot, true), ("cold", &emitter.cold, false)] {
            text += &format!("{title}:\n");
            let mut pieces = emitter.record.pieces.iter().peekable();
            let last = emitter.record.pieces.len() - 1;
            let mut shown = 0;
            for instruction in decoded(buffer) {
                let at = low32(instruction.ip());
                while let Some(piece) =
                    pieces.next_if(|piece| at >= if is_hot { piece.hot } else { piece.cold })
                {
                    let next = pieces.peek().map(|next| if is_hot { next.hot } else { next.cold });
                    shown += 1;
                    if (is_hot || next.is_none_or(|next| at < next)) && (shown <= last || whole) {
                        text += &format!("; {}\n", self.guest(&piece.instruction));
                    }
                }
                if shown <= last || whole {
                    text += &self.line(&instruction);
                }
            }
            let end = emitter.record.pieces[last].hot;
            if let Some(label) = self.labels.get(&u64::from(end)).filter(|_| is_hot && !whole) {
                text += &format!("{label}:\n");
            }
        }
        text
    }

    /// A guest's instruction.
    fn guest(&self, instruction: &Instruction) -> String {
        let mut text = String::new();
        formatter(None).format(instruction, &mut text);
        if self.bits == 32 { format!("{text} (32-bit code)") } else { text }
    }

    /// A line of host code.
    fn line(&self, instruction: &Instruction) -> String {
        let mut text = String::new();
        let names = Names::new(self.translator, self.labels.clone());
        let site = self.site(instruction);
        match &site {
            Some((text_of_site, again)) => {
                text = format!("mov r15, {again}site ; {text_of_site}");
            }
            None => formatter(Some(Box::new(names))).format(instruction, &mut text),
        }
        let label = self.labels.get(&instruction.ip()).map_or(String::new(), |label| format!("{label}:"));
        format!("{label:6}{text}\n")
    }

    /// What a constant for R15 says, if the next instruction leaves.
    fn site(&self, instruction: &Instruction) -> Option<(String, String)> {
        let loads = instruction.op0_register().full_register() == Register::R15
            && matches!(
                instruction.op1_kind(),
                OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64
            );
        let leaves = self.leaves().contains(&instruction.next_ip());
        if !(loads && leaves) {
            return None;
        }
        let word = instruction.immediate(1);
        let site = self.translator.emitter.sites.get(low32(word) as usize)?;
        let again = self.labels.get(&(word >> 32)).map_or(String::new(), |label| format!("{label} << 32 | "));
        Some((self.explained(*site), again))
    }

    /// Addresses of jumps to stubs.
    fn leaves(&self) -> Vec<u64> {
        let stubs = named(self.translator.emitter.stubs);
        let emitter = &self.translator.emitter;
        [&emitter.hot, &emitter.cold]
            .into_iter()
            .flat_map(decoded)
            .filter(|jump| stubs.iter().any(|(stub, _)| u64::from(*stub) == jump.near_branch_target()))
            .map(|instruction| instruction.ip())
            .collect()
    }

    fn explained(&self, site: Site) -> String {
        let at = |address: u32| self.labels.get(&u64::from(address)).cloned().unwrap_or_else(|| "?".into());
        match site {
            Site::Indirect => "jump to the address in R14".into(),
            Site::Refused { rip, .. } => format!("the branch at {rip:#x} is refused"),
            Site::Chain(chain) => {
                let field = self.owner(chain.at);
                format!("{:?} link of {field} to {:#x}", chain.kind, chain.target)
            }
            Site::Enter { rip } => format!("look {rip:#x} up"),
            Site::Moved { rip, far, .. } => format!("{rip:#x} may have moved; the pad is {}", at(far)),
            Site::Access(access) => {
                let aside = if access.aside == 0 {
                    String::new()
                } else {
                    format!(", aside at {}", at(access.aside))
                };
                let (path, size, resume) = (access.path, access.size, at(access.resume));
                let bias = if access.bias == 0 { String::new() } else { format!(" at {:#x}", access.bias) };
                let shared = if access.shared { ", for several" } else { "" };
                let segment = access.segment.map_or(String::new(), |segment| format!(" of {segment:?}"));
                let bytes = if size == 1 { "byte" } else { "bytes" };
                format!("{path:?} of {size} {bytes}{bias}{segment}, then {resume}{aside}{shared}")
            }
            Site::Commit(commit) => format!("commit, then {}", at(commit.resume)),
            Site::Pointers { resume, .. } => format!("put FIP right, then {}", at(resume)),
            Site::Helper(helper) if helper.resume == 0 => format!("perform {:?}", helper.helper),
            Site::Helper(helper) => format!("perform {:?}, then {}", helper.helper, at(helper.resume)),
        }
    }

    /// The label or text of the jump that has a displacement at an address.
    fn owner(&self, displacement: u32) -> String {
        let emitter = &self.translator.emitter;
        let jump = [&emitter.hot, &emitter.cold]
            .into_iter()
            .flat_map(decoded)
            .find(|instruction| low32(instruction.next_ip()) == displacement + 4);
        jump.map_or_else(|| "?".into(), |jump| format!("{:?}", jump.mnemonic()).to_lowercase())
    }
}

/// Where control comes back into a block for a site.
fn returns(site: &Site) -> Vec<u32> {
    match site {
        Site::Access(access) => vec![access.resume, access.aside],
        Site::Commit(commit) => vec![commit.resume],
        Site::Pointers { resume, .. } => vec![*resume],
        Site::Helper(helper) => vec![helper.resume],
        Site::Moved { far, .. } => vec![*far],
        Site::Indirect | Site::Refused { .. } | Site::Chain(_) | Site::Enter { .. } => vec![],
    }
}

fn decoded(buffer: &Buffer) -> Vec<Instruction> {
    Decoder::with_ip(64, &buffer.bytes, u64::from(buffer.base), DecoderOptions::NONE).into_iter().collect()
}

fn formatter(names: Option<Box<dyn SymbolResolver>>) -> IntelFormatter {
    let mut formatter = IntelFormatter::with_options(names, None);
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_space_after_operand_separator(true);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(true);
    formatter
}

/// Names of addresses below 2 GiB.
struct Names {
    layout: Layout,
    stubs: Vec<(u32, String)>,
    labels: BTreeMap<u64, String>,
}

/// Stubs by their addresses.
fn named(stubs: Stubs) -> Vec<(u32, String)> {
    let Stubs { leave, leave_with_flags, read_walk, write_walk, code_walk, runs } = stubs;
    let single = [
        (leave, "leave"),
        (leave_with_flags, "leave_with_flags"),
        (read_walk, "read_walk"),
        (write_walk, "write_walk"),
        (code_walk, "code_walk"),
    ];
    let runs = runs.into_iter().enumerate().map(|(index, stub)| (stub, format!("run[{index}]")));
    single.into_iter().map(|(stub, name)| (stub, name.into())).chain(runs).collect()
}

/// The ways out of translated code, as they are when the cache is empty.
fn stubs(translator: &Translator) -> String {
    let layout = translator.cpu.layout();
    let mut buffer = Buffer::default();
    buffer.restart(layout.code() + crate::state::HOT_BYTES);
    let made = Stubs::emit(&mut buffer, layout);
    let code = decoded(&buffer);
    let targets = code.iter().map(Instruction::near_branch_target).filter(|target| *target != 0);
    let labels: BTreeMap<u64, String> =
        targets.enumerate().map(|(index, target)| (target, format!("run[{index}].again"))).collect();
    let mut text = String::new();
    for instruction in code {
        let at = low32(instruction.ip());
        let stub = named(made).into_iter().find(|(stub, _)| *stub == at).map(|(_, name)| name);
        if let Some(name) = stub.as_ref().or_else(|| labels.get(&instruction.ip())) {
            text += &format!("{name}:\n");
        }
        let mut line = String::new();
        formatter(Some(Box::new(Names::new(translator, labels.clone())))).format(&instruction, &mut line);
        text += &format!("      {line}\n");
    }
    text
}

impl Names {
    fn new(translator: &Translator, labels: BTreeMap<u64, String>) -> Self {
        let mut stubs = named(translator.emitter.stubs);
        stubs.push((translator.indirect_miss, "indirect".into()));
        Self { layout: translator.cpu.layout(), stubs, labels }
    }

    fn name(&self, address: u32) -> Option<String> {
        let stub = self.stubs.iter().find(|(stub, _)| *stub == address);
        if let Some((_, name)) = stub {
            return Some(format!("stub.{name}"));
        }
        if let Some(label) = self.labels.get(&u64::from(address)) {
            return Some(label.clone());
        }
        let offset = address.checked_sub(self.layout.field(0))? as usize;
        if offset < part::KICK { self.field(offset) } else { self.table(address) }
    }

    /// A field of the state.
    fn field(&self, offset: usize) -> Option<String> {
        let context = offset_of!(State, context);
        let gprs = context + offset_of!(VcpuContext, gprs);
        let segments = context + offset_of!(VcpuContext, segments);
        let walk = offset_of!(State, walk);
        let segment = size_of::<Segment>();
        let fields = [
            (offset_of!(State, status), 4, "status"),
            (offset_of!(State, direction), 4, "direction"),
            (offset_of!(State, scratch), 8, "scratch"),
            (offset_of!(State, reason), 4, "reason"),
            (offset_of!(State, branch), 4, "branch"),
            (offset_of!(State, runs) + offset_of!(Runs, given), 8, "runs.given"),
            (offset_of!(State, runs) + offset_of!(Runs, again), 4, "runs.again"),
            (offset_of!(State, leave), 8, "leave"),
            (context + offset_of!(VcpuContext, rflags), 8, "rflags"),
            (context + offset_of!(VcpuContext, tsc_aux), 4, "tsc_aux"),
            (walk + offset_of!(Walk, expected_env), 4, "walk.expected_env"),
            (walk + offset_of!(Walk, expected_frame), 4, "walk.expected_frame"),
            (walk + offset_of!(Walk, expected_page), 4, "walk.expected_page"),
        ];
        let plain = fields.into_iter().find(|(start, len, _)| (*start..*start + *len).contains(&offset));
        if let Some((start, _, name)) = plain {
            return Some(with_offset(format!("state.{name}"), offset - start));
        }
        let indexed = |start: usize, count: usize, size: usize| {
            let index = offset.checked_sub(start)? / size;
            (index < count).then(|| (index, (offset - start) % size))
        };
        // Emitted code never uses RAX there, and what starts with it is the state.
        if offset == 0 {
            return Some("state".into());
        }
        if let Some((index, rest)) = indexed(gprs, 16, 8) {
            return Some(with_offset(format!("state.gprs[{index}]"), rest));
        }
        if let Some((index, rest)) = indexed(offset_of!(State, spill), 4, 8) {
            return Some(with_offset(format!("state.spill[{index}]"), rest));
        }
        if let Some((index, rest)) = indexed(offset_of!(State, shared), crate::state::SHARED_SLOTS, 8) {
            return Some(with_offset(format!("state.shared[{index}]"), rest));
        }
        if let Some((index, rest)) = indexed(walk + offset_of!(Walk, entries), 3, 8) {
            return Some(with_offset(format!("state.walk.entries[{index}]"), rest));
        }
        if let Some((index, rest)) = indexed(offset_of!(State, runs) + offset_of!(Runs, entries), 8, 8) {
            return Some(with_offset(format!("state.runs.entries[{index}]"), rest));
        }
        let (index, rest) = indexed(segments, 6, segment)?;
        let register = SegmentRegister::ALL.into_iter().find(|register| *register as usize == index)?;
        let field = if rest == offset_of!(Segment, selector) { "selector" } else { "base" };
        Some(format!("state.segments[{register:?}].{field}").to_lowercase())
    }

    /// A table, or an entry of one.
    fn table(&self, address: u32) -> Option<String> {
        use paravane_engine::GuestMode;
        let layout = self.layout;
        if address == layout.kick_pointer() {
            return Some("kick".into());
        }
        for (path, name) in [(Path::Read, "tlb.read"), (Path::Write, "tlb.write")] {
            let Some(offset) = address.checked_sub(layout.tlb(GuestMode::Kernel, path)) else { continue };
            if (offset as usize) < part::TLB_BYTES {
                let field = if offset % 16 == 0 { "tag" } else { "host" };
                return Some(format!("{name}{}.{field}", index(offset / 16)));
            }
        }
        let entry = |start: u32, bytes: usize| {
            let offset = address.checked_sub(start)?;
            ((offset as usize) < bytes).then_some(offset / 4)
        };
        if let Some(entry) = entry(layout.code_pages(GuestMode::Kernel), part::CODE_PAGES_BYTES) {
            return Some(format!("code_pages{}", index(entry)));
        }
        entry(layout.jumps(GuestMode::Kernel), part::JUMPS_BYTES)
            .map(|entry| format!("jumps{}", index(entry)))
    }
}

/// An entry's number; the first one's address is the table's, to which code adds an offset.
fn index(entry: u32) -> String {
    if entry == 0 { String::new() } else { format!("[{entry}]") }
}

fn with_offset(name: String, offset: usize) -> String {
    if offset == 0 { name } else { format!("{name}+{offset}") }
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        _instruction: &Instruction,
        _operand: u32,
        _instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        let name = self.name(u32::try_from(address).ok()?)?;
        Some(SymbolResult::with_string(address, name))
    }
}
