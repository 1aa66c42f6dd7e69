//! What translated code may take for granted at the moment, and what follows from it for the walks of translated code.
//!
//! Recomputed on every way into translated code, since whoever ran meanwhile may have changed anything. Nearly always
//! nothing changed but registers.

use core::mem::offset_of;

use paravane_abi::units::Mfn;
use paravane_engine::{GuestMode, SegmentAttributes, SegmentRegister, rflags};

use crate::bits::low32;
use crate::emit::Bits;
use crate::engine::Translator;
use crate::limits::Strict;
use crate::pages::Env;
use crate::state::{Filled, Path, State, tlb_number};

/// Everything that the environment of 64-bit code, and its walks, depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    mode: GuestMode,
    task_switched: bool,
    aligned: bool,
    cpl: u8,
    root: Option<Mfn>,
}

impl Translator {
    /// Recomputes what translated code may assume.
    pub(crate) fn set_env(&mut self, single: bool) {
        let context = &self.cpu.state().context;
        let is_64_bit = context.is_64_bit();
        let task_switched = context.task_switched;
        let aligned = context.rflags & rflags::AC != 0 && context.cpl() == 3;
        // Segments matter to 32-bit code only, and most exits change nothing at all.
        let settled = (is_64_bit && !single).then(|| Settled {
            mode: context.mode,
            task_switched,
            aligned,
            cpl: context.cpl(),
            root: context.root(),
        });
        if settled.is_some() && settled == self.settled {
            return;
        }
        self.settled = settled;
        // The mode changed, and in this one all is as it was.
        let mode = context.mode as usize;
        if let (true, Some((env, number))) =
            (settled.is_some() && settled == self.settled_in[mode], self.current[mode])
        {
            self.env = env;
            self.tell_walk(false, number);
            return;
        }
        if !single {
            self.settled_in[mode] = settled;
        }
        let based = |register| {
            let segment = context.segment(register);
            segment.base != 0 && segment.attributes.has(SegmentAttributes::PRESENT)
        };
        let flat = is_64_bit
            || ![SegmentRegister::Cs, SegmentRegister::Ss, SegmentRegister::Ds, SegmentRegister::Es]
                .into_iter()
                .any(based);
        let env = Env {
            mode: context.mode,
            bits: if is_64_bit { Bits::B64 } else { Bits::B32 },
            flat,
            strict: Strict::of(context),
            code_limit: crate::limits::code_limit(context),
            task_switched,
            aligned,
            single,
        };
        self.env = env;
        let known = self.current[env.mode as usize].filter(|(known, _)| *known == env);
        let number = known.map_or_else(|| self.number_of(env), |(_, number)| number);
        self.tell_walk(single, number);
        if single || known.is_some() {
            return;
        }
        // Pads compare numbers of pages, and a page's number stands for what its code takes for granted: those that
        // are current must not survive a change of that.
        self.current[env.mode as usize] = Some((env, number));
        self.empty_code_pages(env.mode);
    }

    /// The place of an environment in the list.
    fn number_of(&mut self, env: Env) -> u32 {
        let place = self.envs.iter().position(|known| *known == env).unwrap_or_else(|| {
            self.envs.push(env);
            self.envs.len() - 1
        });
        low32(place as u64)
    }

    /// Tells the walk of translated code what it needs for the current mode.
    fn tell_walk(&mut self, single: bool, number: u32) {
        let env = self.env;
        let layout = self.cpu.layout();
        let filled = |table: usize| layout.field(offset_of!(State, filled) + table * size_of::<Filled>());
        let code_filled = offset_of!(State, code_filled) + env.mode as usize * size_of::<Filled>();
        let tables = [Path::Read, Path::Write];
        let context = &self.cpu.state().context;
        // Steps may see a page that is not the mapped one, and other rings need fewer rights.
        let root = context.root().filter(|_| !single && context.cpl() == 3).map_or(u64::MAX, |root| root.0);
        let walk = &mut self.cpu.state_mut().walk;
        walk.root = root;
        walk.tables = tables.map(|path| u64::from(layout.tlb(env.mode, path)));
        walk.filled = tables.map(|path| u64::from(filled(tlb_number(env.mode, path))));
        walk.code_pages = u64::from(layout.code_pages(env.mode));
        walk.code_filled = u64::from(layout.field(code_filled));
        walk.env = number;
    }
}
