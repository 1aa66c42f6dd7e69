//! The assembler, with what kernels do often.
//!
//! [`Program::a`] is the whole x86; the methods here are for what is specific to PV or to tests. All of them may change RAX,
//! RCX, R11 and the registers of hypercall arguments (RDI, RSI, RDX, R10, R8), and the flags; no others.

use iced_x86::{
    BlockEncoderOptions, IcedError,
    code_asm::{AsmMemoryOperand, AsmRegister64, CodeAssembler, CodeLabel, qword_ptr, registers::*},
};
use paravane_abi::{
    hypercall::Hypercall,
    mmu::MmuExtOp,
    units::{DomId, Mfn},
};
use paravane_x86::{
    hypercall_page::SLOT_BYTES,
    segments::{FLAT_RING3_CS64, FLAT_RING3_SS64},
};

use crate::{
    Limits, Outcome,
    layout::{IMAGE_BYTES, Layout},
    machine,
    runtime::{self, Action, Places, Variables},
    setup::{Setup, Way},
    trap::Entry,
};

/// What the methods of [`Program`] return: an instruction may not exist with such operands.
pub type Assembled = Result<(), IcedError>;

/// A kernel in the making.
pub struct Program {
    /// The assembler.
    pub a: CodeAssembler,
    /// Where everything is.
    pub layout: Layout,
    /// How hypercalls are made.
    pub way: Way,
    data: Vec<u8>,
    runtime: bool,
}

/// A kernel that can run.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its file.
    pub elf: Vec<u8>,
    /// Where everything is in it.
    pub layout: Layout,
    pub(crate) setup: Setup,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("way", &self.way).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Runs it to its end.
    pub fn run(&self) -> Outcome {
        self.run_within(&Limits::default())
    }

    /// Runs it to its end or to that of its time.
    pub fn run_within(&self, limits: &Limits) -> Outcome {
        machine::run(self, limits)
    }
}

/// Runs a program with hypercalls through the page, then with SYSCALL, and expects it to pass both times.
///
/// # Panics
///
/// If it does not pass.
pub fn both_ways(body: impl Fn(&mut Program) -> Assembled) -> [Outcome; 2] {
    [Way::Page, Way::Raw].map(|way| {
        let outcome = Program::assemble(&Setup { way, ..Setup::default() }, &body).run();
        assert!(outcome.passed(), "hypercalls by {way:?}: {outcome}");
        outcome
    })
}

impl Program {
    /// Assembles a kernel that does `body` and then powers off, or shuts down with reason crash if a check failed.
    ///
    /// Without the runtime it starts with `body` as the ABI says: `start_info` in RSI, and nothing registered.
    ///
    /// # Panics
    ///
    /// If it has an instruction that does not exist, or is too long.
    pub fn assemble(setup: &Setup, body: impl FnOnce(&mut Self) -> Assembled) -> Kernel {
        let layout = Layout::new(setup);
        let image = Self::image(setup, &layout, body).expect("a program of instructions that exist");
        let entry = if setup.runtime { Places::of(&layout).start } else { layout.code().start };
        Kernel { elf: setup.elf(&image, entry), layout, setup: setup.clone() }
    }

    fn image(
        setup: &Setup,
        layout: &Layout,
        body: impl FnOnce(&mut Self) -> Assembled,
    ) -> Result<Vec<u8>, IcedError> {
        let mut program = Self {
            a: CodeAssembler::new(64)?,
            layout: layout.clone(),
            way: setup.way,
            data: Vec::new(),
            runtime: setup.runtime,
        };
        body(&mut program)?;
        program.finish()?;
        let code = program.a.assemble_options(layout.code().start, BlockEncoderOptions::NONE)?;
        let mut image = vec![0; usize::try_from(IMAGE_BYTES).unwrap_or(0)];
        let mut put = |range: std::ops::Range<u64>, bytes: &[u8]| {
            assert!(bytes.len() as u64 <= range.end - range.start, "the program is too long for its image");
            let offset = usize::try_from(range.start - layout.base).unwrap_or(usize::MAX);
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(layout.code(), &code.inner.code_buffer);
        put(layout.data(), &program.data);
        // A program without the runtime may still use its routines.
        runtime::write(layout, layout.code().start, &mut image)?;
        Ok(image)
    }

    /// Lays bytes into the program's data, aligned to 16, and says where.
    pub fn data(&mut self, bytes: &[u8]) -> u64 {
        self.aligned_data(16, bytes)
    }

    /// Lays words into the program's data and says where.
    pub fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.data(&bytes)
    }

    /// Sets pages of zeros aside and says where the first is.
    pub fn pages(&mut self, count: usize) -> u64 {
        self.aligned_data(4096, &vec![0; count * 4096])
    }

    fn aligned_data(&mut self, alignment: usize, bytes: &[u8]) -> u64 {
        self.data.resize(self.data.len().next_multiple_of(alignment), 0);
        let at = self.layout.data().start + self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        at
    }

    /// Makes a hypercall with these arguments.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn call(&mut self, call: Hypercall, args: &[u64]) -> Assembled {
        const ARGUMENTS: [AsmRegister64; 5] = [rdi, rsi, rdx, r10, r8];
        for (register, value) in ARGUMENTS.into_iter().zip(args) {
            self.a.mov(register, *value)?;
        }
        self.invoke(call)
    }

    /// Makes a hypercall whose arguments are in their registers.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn invoke(&mut self, call: Hypercall) -> Assembled {
        match self.way {
            Way::Page => {
                let at = self.layout.hypercall_page() + u64::from(call.number()) * SLOT_BYTES as u64;
                self.a.call(at)
            }
            Way::Raw => {
                self.a.mov(eax, call.number())?;
                self.a.syscall()
            }
        }
    }

    /// Makes a hypercall and checks its result, an errno being negative.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn call_gives(&mut self, what: &str, call: Hypercall, args: &[u64], result: i64) -> Assembled {
        self.call(call, args)?;
        self.check(what, result.cast_unsigned())
    }

    /// Prints a text through `console_io`.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn print(&mut self, text: &str) -> Assembled {
        let at = self.data(text.as_bytes());
        self.call(Hypercall::ConsoleIo, &[0, text.len() as u64, at])
    }

    /// Checks RAX. A check that fails is printed and makes the kernel end with reason crash, but it goes on.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn check(&mut self, what: &str, expected: u64) -> Assembled {
        let text = self.data(what.as_bytes());
        let mut good = self.a.create_label();
        self.a.mov(rcx, expected)?;
        self.a.cmp(rax, rcx)?;
        self.a.je(good)?;
        self.a.mov(rdi, text)?;
        self.a.mov(rsi, what.len() as u64)?;
        self.a.call(Places::of(&self.layout).report)?;
        self.a.set_label(&mut good)?;
        // A label needs an instruction, and two labels may follow each other.
        self.a.nop()
    }

    /// Checks a word in memory.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn check_word(&mut self, what: &str, at: u64, expected: u64) -> Assembled {
        self.load(at)?;
        self.check(what, expected)
    }

    /// Loads a word of the kernel's memory into RAX.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn load(&mut self, at: u64) -> Assembled {
        self.a.mov(rax, at)?;
        self.a.mov(rax, qword_ptr(rax))
    }

    /// Stores a word into the kernel's memory, by way of RAX and RCX.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn store(&mut self, at: u64, value: u64) -> Assembled {
        self.a.mov(rax, at)?;
        self.a.mov(rcx, value)?;
        self.a.mov(qword_ptr(rax), rcx)
    }

    /// Does `body`, with the next trap leading behind it, on the stack as it is here. The trap is recorded either
    /// way; one from user mode leads into kernel mode.
    ///
    /// # Errors
    ///
    /// Those of `body`.
    pub fn catch(&mut self, body: impl FnOnce(&mut Self) -> Assembled) -> Assembled {
        let variables = Variables::of(&self.layout);
        let mut after = self.a.create_label();
        self.a.push(rax)?;
        self.a.lea(rax, qword_ptr(after))?;
        self.a.mov(self.variable(variables.catch_rip()), rax)?;
        self.a.pop(rax)?;
        self.a.mov(self.variable(variables.catch_rsp()), rsp)?;
        self.a.mov(self.variable(variables.action()), Action::Catch as i32)?;
        body(self)?;
        self.a.set_label(&mut after)?;
        self.a.mov(self.variable(variables.action()), Action::Unexpected as i32)
    }

    /// Does `body`, with each trap in it leading back to where it came from, `skip` bytes further.
    ///
    /// # Errors
    ///
    /// Those of `body`.
    pub fn pass_over(&mut self, skip: i32, body: impl FnOnce(&mut Self) -> Assembled) -> Assembled {
        let variables = Variables::of(&self.layout);
        self.a.mov(self.variable(variables.skip()), skip)?;
        self.a.mov(self.variable(variables.action()), Action::Return as i32)?;
        body(self)?;
        self.a.mov(self.variable(variables.action()), Action::Unexpected as i32)
    }

    /// Makes a page-table root that of user mode.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn set_user_root(&mut self, root: Mfn) -> Assembled {
        let op = self.words(&[u64::from(MmuExtOp::NewUserBaseptr.number()), root.0, 0]);
        self.call_gives("a user root is set", Hypercall::MmuextOp, &[op, 1, 0, DomId::SELF.0.into()], 0)
    }

    /// Returns by the `iret` hypercall: its frame without the three words that the hypercall page's stub pushes, as
    /// flags, RIP, CS, RFLAGS, RSP, SS.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn iret(&mut self, frame: [u64; 6]) -> Assembled {
        for word in frame.into_iter().rev() {
            self.a.mov(rax, word)?;
            self.a.push(rax)?;
        }
        self.iret_here()
    }

    /// Returns by the `iret` hypercall with the six words that are on the stack.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn iret_here(&mut self) -> Assembled {
        match self.way {
            Way::Page => {
                let at = u64::from(Hypercall::Iret.number()) * SLOT_BYTES as u64;
                self.a.jmp(self.layout.hypercall_page() + at)
            }
            Way::Raw => {
                self.a.push(rcx)?;
                self.a.push(r11)?;
                self.a.push(rax)?;
                self.invoke(Hypercall::Iret)
            }
        }
    }

    /// Does `body` in user mode, on the user stack, with events masked; the next trap leads behind it and back to
    /// kernel mode. Without one, #UD ends it. There must be a user root with the kernel's pages.
    ///
    /// # Errors
    ///
    /// Those of `body`.
    pub fn in_user_mode(&mut self, body: impl FnOnce(&mut Self) -> Assembled) -> Assembled {
        self.catch(|p| {
            let mut user = p.a.create_label();
            p.a.mov(rax, u64::from(FLAT_RING3_SS64.0))?;
            p.a.push(rax)?;
            p.a.mov(rax, p.layout.user_stack_top())?;
            p.a.push(rax)?;
            p.a.push(2)?;
            p.a.mov(rax, u64::from(FLAT_RING3_CS64.0))?;
            p.a.push(rax)?;
            p.a.lea(rax, qword_ptr(user))?;
            p.a.push(rax)?;
            p.a.push(0)?;
            p.iret_here()?;
            p.a.set_label(&mut user)?;
            p.a.nop()?;
            body(p)?;
            p.a.ud2()
        })
    }

    /// Notes the address of a label in a word of the program's data, and says where. Changes RAX.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn note(&mut self, label: CodeLabel) -> Result<u64, IcedError> {
        let at = self.words(&[0]);
        self.a.lea(rax, qword_ptr(label))?;
        self.a.mov(qword_ptr(at), rax)?;
        Ok(at)
    }

    /// Powers off, or shuts down with reason crash if a check failed.
    ///
    /// # Errors
    ///
    /// None that a test must expect.
    pub fn finish(&mut self) -> Assembled {
        self.a.jmp(Places::of(&self.layout).finish)
    }

    /// The entry point with which the runtime registers `entry`.
    pub fn entry_point(&self, entry: Entry) -> u64 {
        runtime::stub(&self.layout, entry)
    }

    /// The trap table that the runtime registers.
    pub fn trap_table(&self) -> u64 {
        Variables::of(&self.layout).trap_table()
    }

    /// Whether the program began with the runtime.
    pub fn has_runtime(&self) -> bool {
        self.runtime
    }

    #[expect(clippy::unused_self, reason = "reads as part of the program")]
    fn variable(&self, at: u64) -> AsmMemoryOperand {
        qword_ptr(at)
    }
}
