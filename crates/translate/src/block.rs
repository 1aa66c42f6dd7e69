//! Finding and making blocks.
//!
//! A block is a straight run of instructions from one page, up to an unconditional transfer, an instruction after which
//! the CPU's mode may differ, the page's end, or [`MAX_INSTRUCTIONS`]. Conditional jumps leave it on the side.
//! An instruction that crosses into the next page is a block of its own, which checks the second page when it
//! runs.

use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory};
use paravane_abi::units::{GuestVirt, MachAddr, PAGE_BYTES, PAGE_SIZE};
use paravane_engine::{Control4, Exit, vector};
use paravane_memory::paging::Access;

use crate::ahead::{liveness, written_ahead};
use crate::asm::{Buffer, Rel32, displacement};
use crate::bits::{index as index_of, low32};
use crate::classify::{Class, Flow, Rules, classify};
use crate::emit::{Bits, Conditions, Decoded};
use crate::engine::Translator;
use crate::flow::{Expected, Pad};
use crate::help::exception_with;
use crate::liveness::{ALL, Ahead, Effect};
use crate::pages::{Block, Env};
use crate::sites::{Chain, ChainKind, PageId, offset_in_page};
use crate::state::{COLD_BYTES, HOT_BYTES, code_page_index};
use crate::status::emit_restore_flags;
use crate::verify::verify;

/// Instructions in a block at most.
const MAX_INSTRUCTIONS: usize = 48;
/// Bytes that a block surely needs less of, in either part of the cache.
const BLOCK_ROOM: u32 = 64 << 10;
/// The longest instruction.
const MAX_LENGTH: usize = 15;

/// What a visitor needs of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Its body.
    Body,
    /// A body that polls for kicks.
    Poll,
    /// A pad.
    Pad,
    /// The body of a variant in which each access has its own check.
    Plain,
}

/// The bytes of a page, and of the next page as far as an instruction can reach.
pub(crate) struct Source {
    pub(crate) bytes: Vec<u8>,
    /// Where in the first page the block starts.
    offset: usize,
    /// Bytes of the first page from there on.
    first: usize,
    /// Bytes in all from there on.
    len: usize,
    second: Option<PageId>,
}

impl Source {
    /// From the block's start on.
    fn rest(&self) -> &[u8] {
        &self.bytes[self.offset..self.offset + self.len]
    }
}

impl Translator {
    /// The block at a guest address, made if needed.
    pub(crate) fn block_at(&mut self, rip: u64, need: Need) -> Result<Block, Exit> {
        if self.cache_is_full() {
            self.empty_cache();
        }
        let env = self.env;
        let page = self.code_page(rip, env)?;
        let offset = offset_in_page(rip);
        let found = self.pages.get(page).and_then(|page| page.blocks(need).get(&offset)).copied();
        let mut usable = found.filter(|block| need != Need::Poll || block.polls);
        if let Some(second) = usable.and_then(|block| block.second)
            && self.code_page(next_page(rip), env)? != second
        {
            usable = None;
        }
        let block = match usable {
            Some(block) if need == Need::Pad && block.pad.is_none() => self.add_pad(rip, page, block),
            Some(block) => return Ok(block),
            None => self.translate(rip, page, need)?,
        };
        if let Some(page) = self.pages.get_mut(page) {
            page.blocks_mut(need).insert(offset, block);
        }
        Ok(block)
    }

    /// Links a direct jump to its block, and returns where to go on.
    pub(crate) fn link(&mut self, chain: Chain) -> Result<Block, Exit> {
        let need = match chain.kind {
            ChainKind::Near => Need::Body,
            ChainKind::Loop => Need::Poll,
            ChainKind::Far => Need::Pad,
            ChainKind::Plain => Need::Plain,
        };
        let generation = self.generation;
        let block = self.block_at(chain.target, need)?;
        // The cache may have been emptied, or the jumping page dropped, while its target was translated.
        if generation == self.generation && self.pages.is_alive(chain.page) {
            let target = match (chain.kind, block.pad) {
                (ChainKind::Far, Some(pad)) => pad.far,
                (ChainKind::Near | ChainKind::Loop | ChainKind::Far | ChainKind::Plain, _) => {
                    if chain.flags_in_memory { self.kept(chain, need, block) } else { block.body }
                }
            };
            debug_assert!(self.emitter.record.is_entry(target), "jumps are linked to entries");
            self.cpu.write_code(chain.at, &displacement(Rel32(chain.at), target));
        }
        Ok(block)
    }

    /// A pad's page is not what is mapped: finds the block that is, for whoever comes this way again.
    pub(crate) fn moved(&mut self, rip: u64, old_far: u32, old_page: PageId) -> Result<Block, Exit> {
        let generation = self.generation;
        let block = self.block_at(rip, Need::Pad)?;
        let Some(pad) = block.pad else { return Ok(block) };
        self.remember_jump(rip, pad);
        if generation == self.generation && !self.pages.is_alive(old_page) {
            // Its number never comes back: direct jumps to the old pad may go on to the new one.
            let mut jump = Buffer::default();
            jump.restart(old_far);
            jump.jmp(pad.far);
            self.cpu.write_code(old_far, &jump.bytes);
        }
        Ok(block)
    }

    /// Puts a pad into the jump cache.
    pub(crate) fn remember_jump(&mut self, rip: u64, pad: Pad) {
        let mode = self.env.mode;
        self.cpu.jumps(mode)[(rip & 0xffff) as usize] = pad.indirect;
    }

    /// The number of the code page at a linear address, made current.
    fn code_page(&mut self, rip: u64, env: Env) -> Result<PageId, Exit> {
        let linear = rip & !(PAGE_SIZE - 1);
        if env.single {
            // Steps are looked up each time, and leave the table to code that runs freely.
            let found = self.walk(GuestVirt(rip), Access::Execute)?;
            return Ok(self.pages.number(linear, found.frame, env));
        }
        let id = PageId(self.cpu.code_pages(env.mode)[code_page_index(linear)]);
        if let Some(page) = self.pages.get(id)
            && page.alive
            && page.linear == linear
            && page.env == env
        {
            return Ok(id);
        }
        let found = self.walk(GuestVirt(rip), Access::Execute)?;
        let id = self.pages.number(linear, found.frame, env);
        self.set_code_page(linear, id);
        Ok(id)
    }

    fn translate(&mut self, rip: u64, page: PageId, need: Need) -> Result<Block, Exit> {
        let (mut decoded, source, behind) = self.decode(rip, page)?;
        let env = self.env;
        if env.bits == Bits::B64 && !env.single {
            let written_at = |target: u64, factory: &mut InstructionInfoFactory| {
                written_ahead(&source, env, rip, target, factory)
            };
            crate::recall::find(&mut decoded, behind, &mut self.emitter.factory, written_at);
        }
        if need != Need::Plain && env.bits == Bits::B64 && !env.single && !env.aligned {
            crate::reuse::share(&mut decoded, &mut self.emitter.factory);
        }
        let ahead = decoded.first().map_or(Ahead::ALL, Decoded::before);
        let conditions = Conditions {
            mode: env.mode,
            bits: env.bits,
            flat: env.flat,
            strict: env.strict,
            aligned: env.aligned,
            single: env.single,
            rorx: self.rorx,
        };
        self.emitter.start(self.hot_next, self.cold_next, page, conditions);
        let expected = self.expected(page);
        let pad = match need {
            Need::Pad => Some(self.emitter.pad(rip, expected, ahead.live)),
            Need::Body | Need::Poll | Need::Plain => None,
        };
        let (body, mut kept) = self.emitter.body_starts(ahead, pad.is_some());
        if need == Need::Poll {
            self.emitter.poll(rip);
            // A poll shows the flags, wherever they are.
            if kept == Some(body) {
                kept = Some(self.emitter.poll_aside(rip));
            }
        }
        for entry in [Some(body), kept].into_iter().flatten() {
            self.emitter.record.body(entry);
        }
        if let Some(second) = source.second.filter(|_| !env.single) {
            self.emitter.second_page(rip, next_page(rip), second);
        }
        let mut open = true;
        for (index, item) in decoded.iter().enumerate() {
            let start = index_of(item.instruction.ip().wrapping_sub(rip));
            let bytes = &source.rest()[start..start + item.instruction.len()];
            open = self.emit_instruction(item, bytes, index + 1 == decoded.len());
        }
        if let (true, Some(last)) = (open, decoded.last()) {
            let next = last.instruction.next_ip();
            let handed = self.emitter.flags_in_memory && behind.live == 0;
            self.emitter.jump_to(last.instruction.ip(), self.wrap_rip(next), behind, handed);
        }
        self.place(rip);
        self.source_bytes = source.bytes;
        self.stats.blocks += 1;
        self.stats.instructions += decoded.len() as u64;
        for entry in [Some(body), kept].into_iter().flatten() {
            self.emitter.record.entry(entry);
        }
        self.emitter.record.pad(pad);
        let polls = need == Need::Poll;
        Ok(Block { body, kept, pad, polls, second: source.second })
    }

    /// Emits one instruction; says whether control can fall out of it to the next.
    fn emit_instruction(&mut self, item: &Decoded, bytes: &[u8], last: bool) -> bool {
        let tsd = self.cpu.state().context.cr4.has(Control4::TSD);
        let emitter = &mut self.emitter;
        emitter.share = item.share;
        emitter.record.instruction(item, emitter.hot.here(), emitter.cold.here());
        match item.class {
            Class::Nothing => emitter.finish(None),
            Class::Plain => emitter.plain(item, bytes),
            Class::Lea => emitter.lea(item, bytes),
            Class::Memory(operand) => emitter.memory(item, operand),
            Class::Stack(operation) => emitter.stack(item, operation),
            Class::Flow(flow) => {
                return emitter.flow(item, flow);
            }
            Class::Register(operation) => emitter.state(item, operation, bytes, tsd),
            Class::Move => emitter.string_move(item),
            Class::Helper(helper) => {
                let resume = !helper.ends_block() && !last && !emitter.conditions.single;
                emitter.helper(item, helper, resume);
                return resume;
            }
        }
        true
    }

    /// Copies the emitted block into the cache.
    fn place(&mut self, rip: u64) {
        let emitter = &self.emitter;
        debug_assert_eq!(
            verify(emitter, self.indirect_miss),
            Ok(()),
            "a rule is broken by the block at {rip:#x}: {:02x?} {:02x?}",
            emitter.hot,
            emitter.cold
        );
        if let Some(map) = &mut self.perf_map {
            let (hot, cold) = (&emitter.hot, &emitter.cold);
            map.block(rip, (hot.base, hot.bytes.len()), (cold.base, cold.bytes.len()));
        }
        self.cpu.write_code(emitter.hot.base, &emitter.hot.bytes);
        self.cpu.write_code(emitter.cold.base, &emitter.cold.bytes);
        self.hot_next = emitter.hot.here();
        self.cold_next = emitter.cold.here();
        self.stats.code_bytes += (emitter.hot.bytes.len() + emitter.cold.bytes.len()) as u64;
    }

    /// What a pad of a block in `page` expects to be mapped.
    fn expected(&self, page: PageId) -> Expected {
        let frame = self.pages.get(page).map_or(0, |page| page.frame.0);
        let frame = low32(frame.wrapping_sub(self.memory.first_frame().0));
        Expected { page, frame, env: self.cpu.state().walk.env, indirect_miss: self.indirect_miss }
    }

    /// Gives an existing block a pad.
    fn add_pad(&mut self, rip: u64, page: PageId, mut block: Block) -> Block {
        self.start_entry(page);
        let expected = self.expected(page);
        // Fetches the flags if there is no way to enter with them in memory.
        let live = if block.kept.is_some() { 0 } else { ALL };
        block.pad = Some(self.emitter.pad(rip, expected, live));
        self.emitter.hot.jmp(block.kept.unwrap_or(block.body));
        self.place(rip);
        self.emitter.record.pad(block.pad);
        block
    }

    /// Where a block is entered with the flags in memory; made if needed.
    fn kept(&mut self, chain: Chain, need: Need, block: Block) -> u32 {
        if let Some(kept) = block.kept {
            return kept;
        }
        self.start_entry(chain.page);
        let kept = self.emitter.hot.here();
        self.emitter.record.body(kept);
        emit_restore_flags(&mut self.emitter.hot, self.cpu.layout());
        self.emitter.hot.jmp(block.body);
        self.place(chain.target);
        self.emitter.record.entry(kept);
        let offset = offset_in_page(chain.target);
        if let Some(page) = self.pages.get_mut(chain.page) {
            page.blocks_mut(need).insert(offset, Block { kept: Some(kept), ..block });
        }
        kept
    }

    /// Starts another entry to a block that exists.
    fn start_entry(&mut self, page: PageId) {
        let env = self.env;
        let conditions = Conditions { mode: env.mode, bits: env.bits, ..self.emitter.conditions };
        self.emitter.start(self.hot_next, self.cold_next, page, conditions);
    }

    /// Decodes a block's instructions and finds their live flags.
    fn decode(&mut self, rip: u64, page: PageId) -> Result<(Vec<Decoded>, Source, Ahead), Exit> {
        let mut source = self.source(rip, page)?;
        let env = self.env;
        let rules = self.rules();
        let limit = if env.single || self.options.one_instruction_blocks { 1 } else { MAX_INSTRUCTIONS };
        let mut decoded: Vec<Decoded> = Vec::with_capacity(16);
        let mut decoder = decoder(env, source.rest(), rip);
        while decoded.len() < limit && decoder.can_decode() {
            let start = decoder.position();
            let instruction = decoder.decode();
            let end = decoder.position();
            if rip.wrapping_add(end as u64 - 1) > env.code_limit {
                if decoded.is_empty() {
                    return Err(exception_with(vector::GENERAL_PROTECTION, 0));
                }
                break;
            }
            let crosses = end > source.first;
            if crosses && !decoded.is_empty() {
                break;
            }
            if instruction.is_invalid()
                && decoded.is_empty()
                && end >= source.len
                && source.second.is_none()
                && source.len < MAX_LENGTH
            {
                // Cut short by the page's end: the rest must be fetched, or is what faults.
                self.fetch_second(rip, &mut source)?;
                return self.decode_crossing(rip, source, rules);
            }
            if start > 0 && instruction.is_invalid() && end >= source.len {
                break;
            }
            let item = self.decoded(instruction, rules);
            decoded.push(item);
            if ends_block(item.class) || crosses {
                break;
            }
        }
        let (seen, behind) = liveness(&mut decoded, &source, env, rip);
        let own = (rip, decoded.iter().map(|item| item.instruction.len()).sum());
        for (address, len) in seen.into_iter().chain([own]) {
            self.mark_code(page, address, len);
            self.confirm(page, &source.bytes[(address & (PAGE_SIZE - 1)) as usize..PAGE_BYTES], address, len);
        }
        Ok((decoded, source, behind))
    }

    /// The instruction at an address, decoded only.
    pub(crate) fn instruction_at(&mut self, rip: u64) -> Result<Instruction, Exit> {
        let page = self.code_page(rip, self.env)?;
        let mut source = self.source(rip, page)?;
        let mut instruction = decoder(self.env, source.rest(), rip).decode();
        if instruction.is_invalid() && source.len < MAX_LENGTH {
            self.fetch_second(rip, &mut source)?;
            instruction = decoder(self.env, source.rest(), rip).decode();
        }
        self.source_bytes = source.bytes;
        Ok(instruction)
    }

    fn decoded(&mut self, instruction: Instruction, rules: Rules) -> Decoded {
        let class = classify(&instruction, &mut self.emitter.factory, rules);
        let effect = match class {
            Class::Helper(_) => Effect::EVERYTHING,
            Class::Nothing => Effect { reads: 0, changes: 0, kills: 0 },
            Class::Plain
            | Class::Lea
            | Class::Memory(_)
            | Class::Stack(_)
            | Class::Flow(_)
            | Class::Move
            | Class::Register(_) => Effect::of(&instruction),
        };
        Decoded::alone(instruction, class, effect)
    }

    /// The one instruction of a block that runs into the next page.
    fn decode_crossing(
        &mut self,
        rip: u64,
        source: Source,
        rules: Rules,
    ) -> Result<(Vec<Decoded>, Source, Ahead), Exit> {
        let instruction = decoder(self.env, source.rest(), rip).decode();
        let item = self.decoded(instruction, rules);
        if let Some(second) = source.second {
            let over = instruction.len().saturating_sub(source.first).max(1);
            self.mark_code(second, next_page(rip), over);
            self.confirm(second, &source.bytes[PAGE_BYTES..], next_page(rip), over);
        }
        let page = self.code_page(rip, self.env)?;
        self.mark_code(page, rip, source.first);
        self.confirm(page, source.rest(), rip, source.first);
        Ok((vec![item], source, Ahead::ALL))
    }

    /// The bytes from `rip` to the end of its page.
    fn source(&mut self, rip: u64, page: PageId) -> Result<Source, Exit> {
        let offset = (rip & (PAGE_SIZE - 1)) as usize;
        let first = PAGE_BYTES - offset;
        let mut bytes = core::mem::take(&mut self.source_bytes);
        bytes.resize(PAGE_BYTES + MAX_LENGTH, 0);
        let frame = self.pages.get(page).map_or(0, |page| page.frame.0);
        // Marked before it is read: a write that comes between makes the translation go away.
        self.mark_code(page, rip, first.min(1));
        self.settle(page);
        self.read_machine(MachAddr(frame * PAGE_SIZE), &mut bytes[..PAGE_BYTES]);
        Ok(Source { bytes, offset, first, len: first, second: None })
    }

    fn fetch_second(&mut self, rip: u64, source: &mut Source) -> Result<(), Exit> {
        let next = next_page(rip);
        let page = self.code_page(next, self.env)?;
        let frame = self.pages.get(page).map_or(0, |page| page.frame.0);
        self.mark_code(page, next, 1);
        self.settle(page);
        self.read_machine(MachAddr(frame * PAGE_SIZE), &mut source.bytes[PAGE_BYTES..]);
        source.len = source.first + MAX_LENGTH;
        source.second = Some(page);
        Ok(())
    }

    /// Tells memory that bytes of a page are code, so that writes to them are noticed.
    fn mark_code(&mut self, page: PageId, address: u64, len: usize) {
        let Some(frame) = self.pages.get(page).map(|page| page.frame) else { return };
        let offset = (address & (PAGE_SIZE - 1)) as usize;
        if self.memory.code().mark(frame, offset, len) {
            self.drop_write_entries(frame);
        }
    }

    fn rules(&self) -> Rules {
        let context = &self.cpu.state().context;
        Rules {
            task_switched: self.env.task_switched,
            segment_bases: context.cr4.has(Control4::FSGSBASE),
            extended_state: context.cr4.has(Control4::OSXSAVE),
            avx: context.xcr0 & 6 == 6,
            avx512: context.xcr0 & 0xe6 == 0xe6,
            bits: self.env.bits,
            limited: self.env.code_limit != u64::MAX,
            is_amd: self.host().is_amd(),
            present: self.host().present(),
        }
    }

    fn cache_is_full(&self) -> bool {
        let code = self.cpu.layout().code();
        self.pages.is_full()
            || self.emitter.recipes.is_full()
            || self.hot_next + BLOCK_ROOM > code + HOT_BYTES
            || self.cold_next + BLOCK_ROOM > code + HOT_BYTES + COLD_BYTES
    }

    /// RIP wraps at 4 GiB in 32-bit code.
    fn wrap_rip(&self, rip: u64) -> u64 {
        match self.env.bits {
            Bits::B64 => rip,
            Bits::B32 => rip & 0xffff_ffff,
        }
    }
}

/// The first address of the page after the one that `rip` is in.
fn next_page(rip: u64) -> u64 {
    (rip & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE)
}

pub(crate) fn decoder(env: Env, bytes: &[u8], rip: u64) -> Decoder<'_> {
    let bitness = match env.bits {
        Bits::B64 => 64,
        Bits::B32 => 32,
    };
    Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE)
}

pub(crate) fn ends_block(class: Class) -> bool {
    match class {
        Class::Flow(flow) => match flow {
            Flow::Conditional | Flow::Counted => false,
            Flow::Jump | Flow::JumpIndirect | Flow::Call | Flow::CallIndirect | Flow::Return => true,
        },
        Class::Helper(helper) => helper.ends_block(),
        Class::Nothing
        | Class::Plain
        | Class::Lea
        | Class::Memory(_)
        | Class::Stack(_)
        | Class::Move
        | Class::Register(_) => false,
    }
}
