//! The kernel's own code: its start, its trap entries, its report.
//!
//! ```text
//!  stub of each entry:  save RAX, load the entry's number, go to `trap`
//!  trap:    make a record, then by the action that the program set
//!             UNEXPECTED   say so and shut down with reason crash
//!             CATCH        go on where the program says, on the stack it says
//!             RETURN       return to where the trap came from, `skip` bytes further
//!  report:  print a check that failed, count it, return
//!  start:   map shared_info, register all entries, go to the program
//! ```
//!
//! Hypercalls are made by SYSCALL here, so that the runtime works where a program has ruined its hypercall page.

use iced_x86::{
    IcedError,
    code_asm::{CodeAssembler, byte_ptr, dword_ptr, qword_ptr, registers::*},
};
use paravane_abi::hypercall::Hypercall;

use crate::{
    layout::Layout,
    trap::{Entry, RECORD_BYTES, RECORDS, offset},
};

/// Bytes of a stub.
const STUB_BYTES: u64 = 32;
/// Flags of an L1 entry for a page that the kernel writes: P, RW, US, A, D.
pub(crate) const PAGE_FLAGS: u64 = 0x67;
/// `shutdown` of `sched_op`, and its reasons.
const SHUTDOWN: u32 = 2;
const POWEROFF: u32 = 0;
const CRASH: u32 = 3;

/// What the runtime does after it has noted a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Unexpected = 0,
    Catch = 1,
    Return = 2,
}

/// The runtime's variables, at fixed addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variables(u64);

impl Variables {
    pub(crate) fn of(layout: &Layout) -> Self {
        Self(layout.variables())
    }

    pub(crate) fn at(page: u64) -> Self {
        Self(page)
    }

    pub(crate) fn start_info(self) -> u64 {
        self.0
    }

    pub(crate) fn count(self) -> u64 {
        self.0 + 8
    }

    pub(crate) fn failures(self) -> u64 {
        self.0 + 16
    }

    pub(crate) fn action(self) -> u64 {
        self.0 + 24
    }

    pub(crate) fn catch_rip(self) -> u64 {
        self.0 + 32
    }

    pub(crate) fn catch_rsp(self) -> u64 {
        self.0 + 40
    }

    pub(crate) fn skip(self) -> u64 {
        self.0 + 48
    }

    fn saved(self, index: u64) -> u64 {
        self.0 + 64 + index * 8
    }

    /// The argument of `shutdown`.
    fn reason(self) -> u64 {
        self.0 + 128
    }

    /// Room for a number in hexadecimal.
    fn digits(self) -> u64 {
        self.0 + 144
    }

    /// Texts of the runtime.
    fn text(self, index: usize) -> u64 {
        self.0 + 512 + index as u64 * 32
    }

    /// The trap table, filled in by the layout.
    pub(crate) fn trap_table(self) -> u64 {
        self.0 + 1024
    }

    fn callback(self) -> u64 {
        self.0 + 3584
    }
}

/// The entry point of `entry`.
pub(crate) fn stub(layout: &Layout, entry: Entry) -> u64 {
    layout.runtime().start + entry.number() * STUB_BYTES
}

/// The fixed places behind the stubs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// Where the kernel starts.
    pub(crate) start: u64,
    /// Records a trap; RAX has the entry's number.
    trap: u64,
    /// Prints a failed check: RAX found, RCX expected, RDI and RSI the text.
    pub(crate) report: u64,
    /// Shuts down.
    pub(crate) finish: u64,
    /// Shuts down with the reason in ECX.
    shutdown: u64,
    /// Prints RSI bytes at RDI.
    pub(crate) print: u64,
    /// Prints RAX in hexadecimal.
    print_hex: u64,
}

impl Places {
    pub(crate) fn of(layout: &Layout) -> Self {
        let first = layout.runtime().start + Entry::COUNT * STUB_BYTES;
        let place = |index: u64| first + index * 512;
        Self {
            start: place(0),
            trap: place(1),
            report: place(3),
            finish: place(4),
            shutdown: place(5),
            print: place(6),
            print_hex: place(7),
        }
    }
}

/// Texts that the runtime prints.
const TEXTS: [&str; 8] = [
    "FAILED ",
    ": found ",
    ", expected ",
    "\n",
    "UNEXPECTED ENTRY ",
    ", then ",
    ", frame after R11: ",
    ", CR2 ",
];
const FAILED: usize = 0;
const FOUND: usize = 1;
const EXPECTED: usize = 2;
const NEWLINE: usize = 3;
const UNEXPECTED: usize = 4;
const THEN: usize = 5;
const FRAME: usize = 6;
const ADDRESS: usize = 7;

/// The trap table: vector, flags, and the entry point.
fn trap_table(layout: &Layout) -> Vec<u8> {
    // Every exception; INT3 and INTO open to user programs; one interrupt open to them, one open to the kernel.
    const TABLE: [(u8, u8); 23] = [
        (0, 0),
        (1, 0),
        (2, 4),
        (3, 3),
        (4, 3),
        (5, 0),
        (6, 0),
        (7, 0),
        (8, 0),
        (9, 0),
        (10, 0),
        (11, 0),
        (12, 0),
        (13, 0),
        (14, 0),
        (16, 0),
        (17, 0),
        (18, 4),
        (19, 0),
        (20, 0),
        (0x80, 3),
        (0x81, 1),
        // Open to user programs, and masks events.
        (0x90, 3 | 4),
    ];
    let mut bytes = Vec::new();
    for (vector, flags) in TABLE {
        bytes.extend_from_slice(&[vector, flags, 0x33, 0xe0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&stub(layout, Entry::Vector(vector)).to_le_bytes());
    }
    bytes.extend_from_slice(&[0; 16]);
    bytes
}

/// Writes variables and code of the runtime into the image.
pub(crate) fn write(layout: &Layout, code_start: u64, image: &mut [u8]) -> Result<(), IcedError> {
    let variables = Variables::of(layout);
    let places = Places::of(layout);
    let mut put = |at: u64, bytes: &[u8]| {
        let offset = usize::try_from(at - layout.base).unwrap_or(usize::MAX);
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    for (index, text) in TEXTS.iter().enumerate() {
        put(variables.text(index), text.as_bytes());
    }
    put(variables.trap_table(), &trap_table(layout));
    for number in 0..Entry::COUNT {
        let at = layout.runtime().start + number * STUB_BYTES;
        put(at, &stub_code(&variables, &places, number, at)?);
    }
    put(places.start, &start(layout, code_start, places.start)?);
    put(places.trap, &trap(layout, places.trap)?);
    put(places.report, &report(layout, places.report)?);
    put(places.finish, &finish(layout, places.finish)?);
    put(places.shutdown, &shutdown(&variables, places.shutdown)?);
    put(places.print, &print(places.print)?);
    put(places.print_hex, &print_hex(layout, places.print_hex)?);
    Ok(())
}

fn stub_code(variables: &Variables, places: &Places, number: u64, at: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(qword_ptr(variables.saved(0)), rax)?;
    a.mov(eax, u32::try_from(number).unwrap_or(u32::MAX))?;
    a.jmp(places.trap)?;
    a.assemble(at)
}

fn syscall(a: &mut CodeAssembler, call: Hypercall) -> Result<(), IcedError> {
    a.mov(eax, call.number())?;
    a.syscall()
}

fn start(layout: &Layout, code_start: u64, at: u64) -> Result<Vec<u8>, IcedError> {
    const INVLPG: u32 = 2;
    const FLAT_SS: u32 = 0xe02b;
    let variables = Variables::of(layout);
    let mut a = CodeAssembler::new(64)?;
    a.cld()?;
    a.mov(qword_ptr(variables.start_info()), rsi)?;
    a.mov(rdi, layout.shared_info())?;
    // `start_info.shared_info` is a machine address.
    const SHARED_INFO: i32 = 40;
    a.mov(rsi, qword_ptr(rsi + SHARED_INFO))?;
    a.or(rsi, i32::try_from(PAGE_FLAGS).unwrap_or(0))?;
    a.mov(edx, INVLPG)?;
    syscall(&mut a, Hypercall::UpdateVaMapping)?;
    a.mov(rdi, variables.trap_table())?;
    syscall(&mut a, Hypercall::SetTrapTable)?;
    a.mov(edi, FLAT_SS)?;
    a.mov(rsi, layout.kernel_stack_top())?;
    syscall(&mut a, Hypercall::StackSwitch)?;
    a.mov(rdi, stub(layout, Entry::Event))?;
    a.mov(rsi, stub(layout, Entry::Failsafe))?;
    a.mov(rdx, stub(layout, Entry::Syscall))?;
    syscall(&mut a, Hypercall::SetCallbacks)?;
    // callback_op(register) for those that set_callbacks does not know.
    for (kind, entry) in [(5_u32, Entry::Sysenter), (7, Entry::Syscall32)] {
        a.mov(dword_ptr(variables.callback()), kind)?;
        a.mov(rax, stub(layout, entry))?;
        a.mov(qword_ptr(variables.callback() + 8), rax)?;
        a.xor(edi, edi)?;
        a.mov(rsi, variables.callback())?;
        syscall(&mut a, Hypercall::CallbackOp)?;
    }
    a.mov(rsi, qword_ptr(variables.start_info()))?;
    a.jmp(code_start)?;
    a.assemble(at)
}

/// Makes a record and does what the program wants then.
fn trap(layout: &Layout, at: u64) -> Result<Vec<u8>, IcedError> {
    let variables = Variables::of(layout);
    let places = Places::of(layout);
    let mut a = CodeAssembler::new(64)?;
    let mut without_code = a.create_label();
    let mut unexpected = a.create_label();
    let mut catch = a.create_label();
    record(&mut a, layout, &mut without_code)?;
    a.mov(rdx, qword_ptr(variables.action()))?;
    a.cmp(rdx, Action::Catch as i32)?;
    a.jb(unexpected)?;
    a.je(catch)?;
    // Back to where it came from. RBX still has the entry's number.
    let mut no_code = a.create_label();
    a.mov(rcx, qword_ptr(rsp))?;
    a.mov(r11, qword_ptr(rsp + 8))?;
    a.lea(rsp, qword_ptr(rsp + 16))?;
    error_code_flag(&mut a)?;
    a.jnc(no_code)?;
    a.lea(rsp, qword_ptr(rsp + 8))?;
    a.set_label(&mut no_code)?;
    a.mov(rdx, qword_ptr(variables.skip()))?;
    a.add(qword_ptr(rsp), rdx)?;
    a.push(0)?;
    a.push(rcx)?;
    a.push(r11)?;
    a.push(qword_ptr(variables.saved(0)))?;
    restore(&mut a, &variables)?;
    syscall(&mut a, Hypercall::Iret)?;
    a.set_label(&mut catch)?;
    a.mov(qword_ptr(variables.action()), Action::Unexpected as i32)?;
    restore(&mut a, &variables)?;
    a.mov(rax, qword_ptr(variables.saved(0)))?;
    a.mov(rsp, qword_ptr(variables.catch_rsp()))?;
    a.jmp(qword_ptr(variables.catch_rip()))?;
    a.set_label(&mut unexpected)?;
    complain(&mut a, layout)?;
    a.mov(ecx, CRASH)?;
    a.jmp(places.shutdown)?;
    a.assemble(at)
}

/// Writes the record. Leaves the entry's number in RBX and the record's address in RDI.
fn record(
    a: &mut CodeAssembler,
    layout: &Layout,
    without_code: &mut iced_x86::code_asm::CodeLabel,
) -> Result<(), IcedError> {
    let variables = Variables::of(layout);
    const WORDS_WITHOUT_CODE: i32 = 7;
    // Flags first, before anything changes them.
    a.pushfq()?;
    a.pop(qword_ptr(variables.saved(4)))?;
    a.mov(qword_ptr(variables.saved(1)), rbx)?;
    a.mov(qword_ptr(variables.saved(2)), rdi)?;
    a.mov(qword_ptr(variables.saved(3)), rdx)?;
    a.mov(ebx, eax)?;
    a.mov(edi, dword_ptr(variables.count()))?;
    a.and(edi, i32::try_from(RECORDS - 1).unwrap_or(0))?;
    a.imul_3(edi, edi, i32::try_from(RECORD_BYTES).unwrap_or(0))?;
    a.mov(rdx, layout.records())?;
    a.add(rdi, rdx)?;
    a.mov(rdx, qword_ptr(variables.saved(4)))?;
    a.mov(qword_ptr(rdi + offset::RFLAGS), rdx)?;
    a.mov(qword_ptr(rdi + offset::ENTRY), rbx)?;
    a.mov(qword_ptr(rdi + offset::RSP), rsp)?;
    a.mov(qword_ptr(rdi + offset::RCX), rcx)?;
    a.mov(qword_ptr(rdi + offset::R11), r11)?;
    for word in 0..WORDS_WITHOUT_CODE {
        a.mov(rdx, qword_ptr(rsp + word * 8))?;
        a.mov(qword_ptr(rdi + (offset::FRAME + word * 8)), rdx)?;
    }
    error_code_flag(a)?;
    a.jnc(*without_code)?;
    a.mov(rdx, qword_ptr(rsp + WORDS_WITHOUT_CODE * 8))?;
    a.mov(qword_ptr(rdi + (offset::FRAME + WORDS_WITHOUT_CODE * 8)), rdx)?;
    a.set_label(without_code)?;
    a.movzx(edx, iced_x86::code_asm::word_ptr(layout.shared_info()))?;
    a.mov(qword_ptr(rdi + offset::UPCALL), rdx)?;
    const CR2: u64 = 16;
    a.mov(rdx, qword_ptr(layout.shared_info() + CR2))?;
    a.mov(qword_ptr(rdi + offset::CR2), rdx)?;
    a.mov(rdx, qword_ptr(variables.saved(0)))?;
    a.mov(qword_ptr(rdi + offset::RAX), rdx)?;
    a.inc(qword_ptr(variables.count()))
}

/// Sets CF if the entry in RBX has an error code. Clobbers RDX.
fn error_code_flag(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let with_code = (0..32_u8).filter(|&vector| Entry::Vector(vector).has_error_code());
    let mask: u64 = with_code.map(|vector| 1 << vector).sum();
    let mut done = a.create_label();
    a.mov(rdx, mask)?;
    a.cmp(ebx, 64)?;
    // Not below 64: CF is clear.
    a.jae(done)?;
    a.bt(rdx, rbx)?;
    a.set_label(&mut done)?;
    // A label wants an instruction of its own.
    a.nop()
}

fn restore(a: &mut CodeAssembler, variables: &Variables) -> Result<(), IcedError> {
    a.mov(rbx, qword_ptr(variables.saved(1)))?;
    a.mov(rdi, qword_ptr(variables.saved(2)))?;
    a.mov(rdx, qword_ptr(variables.saved(3)))
}

/// Prints the record at RDI, of the entry in RBX.
fn complain(a: &mut CodeAssembler, layout: &Layout) -> Result<(), IcedError> {
    let places = Places::of(layout);
    a.mov(rbp, rdi)?;
    say(a, layout, UNEXPECTED)?;
    a.mov(rax, rbx)?;
    a.call(places.print_hex)?;
    // Error code and RIP, or RIP and CS.
    for (text, word) in [(FRAME, 2), (THEN, 3)] {
        say(a, layout, text)?;
        a.mov(rax, qword_ptr(rbp + (offset::FRAME + word * 8)))?;
        a.call(places.print_hex)?;
    }
    say(a, layout, ADDRESS)?;
    a.mov(rax, qword_ptr(rbp + offset::CR2))?;
    a.call(places.print_hex)?;
    say(a, layout, NEWLINE)
}

fn report(layout: &Layout, at: u64) -> Result<Vec<u8>, IcedError> {
    let places = Places::of(layout);
    let mut a = CodeAssembler::new(64)?;
    for register in [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11] {
        a.push(register)?;
    }
    a.inc(qword_ptr(Variables::of(layout).failures()))?;
    a.mov(rbx, rax)?;
    a.mov(rbp, rcx)?;
    a.push(rdi)?;
    a.push(rsi)?;
    say(&mut a, layout, FAILED)?;
    a.pop(rsi)?;
    a.pop(rdi)?;
    a.call(places.print)?;
    say(&mut a, layout, FOUND)?;
    a.mov(rax, rbx)?;
    a.call(places.print_hex)?;
    say(&mut a, layout, EXPECTED)?;
    a.mov(rax, rbp)?;
    a.call(places.print_hex)?;
    say(&mut a, layout, NEWLINE)?;
    for register in [r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax] {
        a.pop(register)?;
    }
    a.ret()?;
    a.assemble(at)
}

fn say(a: &mut CodeAssembler, layout: &Layout, text: usize) -> Result<(), IcedError> {
    a.mov(rdi, Variables::of(layout).text(text))?;
    a.mov(esi, u32::try_from(TEXTS[text].len()).unwrap_or(0))?;
    a.call(Places::of(layout).print)
}

/// Shuts down: poweroff, or crash if a check failed.
fn finish(layout: &Layout, at: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut shut_down = a.create_label();
    a.mov(ecx, POWEROFF)?;
    a.cmp(qword_ptr(Variables::of(layout).failures()), 0)?;
    a.je(shut_down)?;
    a.mov(ecx, CRASH)?;
    a.set_label(&mut shut_down)?;
    a.jmp(Places::of(layout).shutdown)?;
    a.assemble(at)
}

fn shutdown(variables: &Variables, at: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(dword_ptr(variables.reason()), ecx)?;
    a.mov(edi, SHUTDOWN)?;
    a.mov(rsi, variables.reason())?;
    syscall(&mut a, Hypercall::SchedOp)?;
    // It does not return.
    a.ud2()?;
    a.assemble(at)
}

fn print(at: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(rdx, rdi)?;
    a.xor(edi, edi)?;
    syscall(&mut a, Hypercall::ConsoleIo)?;
    a.ret()?;
    a.assemble(at)
}

fn print_hex(layout: &Layout, at: u64) -> Result<Vec<u8>, IcedError> {
    const DIGITS: u32 = 16;
    let digits = Variables::of(layout).digits();
    let mut a = CodeAssembler::new(64)?;
    let mut next = a.create_label();
    let mut letter = a.create_label();
    a.mov(word_prefix(digits), 0x7830)?;
    a.mov(rdi, digits + 2)?;
    a.mov(esi, DIGITS)?;
    a.set_label(&mut next)?;
    a.rol(rax, 4)?;
    a.mov(edx, eax)?;
    a.and(edx, 15)?;
    a.add(edx, i32::from(b'0'))?;
    a.cmp(edx, i32::from(b'9'))?;
    a.jbe(letter)?;
    a.add(edx, i32::from(b'a' - b'9' - 1))?;
    a.set_label(&mut letter)?;
    a.mov(byte_ptr(rdi), dl)?;
    a.inc(rdi)?;
    a.dec(esi)?;
    a.jne(next)?;
    a.mov(rdi, digits)?;
    a.mov(esi, DIGITS + 2)?;
    a.jmp(Places::of(layout).print)?;
    a.assemble(at)
}

/// The two bytes at an address.
fn word_prefix(at: u64) -> iced_x86::code_asm::AsmMemoryOperand {
    iced_x86::code_asm::word_ptr(at)
}
