//! What a program asks of its kernel. Each function returns how many answers were as expected.

use std::{
    env, hint,
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::unix::process::parent_id,
    process::Command,
    sync::LazyLock,
};

use crate::raw::{Child, FreshMemory};

/// The variable that names a static busybox; in a guest, nothing needs to be set.
pub const BUSYBOX: &str = "BENCH_BUSYBOX";

const PAGE: usize = 4096;
/// Pages mapped at a time: less than a huge page has.
const PAGES: usize = 256;

/// The cheapest system call there is.
pub(crate) fn getppid(count: u64) -> u64 {
    let parent = parent_id();
    (0..count).filter(|_| hint::black_box(parent_id()) == parent).count() as u64
}

/// The first write to each of `count` pages.
pub(crate) fn page_faults(count: u64) -> u64 {
    let mut touched = 0;
    while touched < count {
        let Ok(mut memory) = FreshMemory::map(PAGES * PAGE) else { return touched };
        for page in memory.bytes().chunks_mut(PAGE) {
            if touched == count {
                break;
            }
            // A page that is not zero was not fresh.
            touched += u64::from(page[0] == 0);
            page[0] = 1;
        }
    }
    touched
}

/// A child that exits at once, and its parent's wait for it.
pub(crate) fn forks(count: u64) -> u64 {
    let ended = (0..count).map_while(|_| Child::fork(|| ()).and_then(Child::wait).ok());
    ended.filter(|&well| well).count() as u64
}

/// A byte through a pipe to another process, and another one back.
pub(crate) fn pipe_round_trips(count: u64) -> u64 {
    round_trips(count).unwrap_or(0)
}

fn round_trips(count: u64) -> io::Result<u64> {
    // Started once, for a process takes longer than many round trips.
    static ECHO: LazyLock<io::Result<Echo>> = LazyLock::new(Echo::start);
    let Ok(Echo { questions, answers }) = &*ECHO else { return Ok(0) };
    let (mut questions, mut answers) = (questions, answers);
    let mut right = 0;
    for number in 0..count {
        let question = number.to_le_bytes()[0];
        questions.write_all(&[question])?;
        let mut answer = [0];
        answers.read_exact(&mut answer)?;
        right += u64::from(answer[0] == !question);
    }
    Ok(right)
}

/// A process that answers each byte with its complement, until this process ends.
struct Echo {
    questions: PipeWriter,
    answers: PipeReader,
}

impl Echo {
    fn start() -> io::Result<Self> {
        let (mut question_in, questions) = io::pipe()?;
        let (answers, mut answer_out) = io::pipe()?;
        let mut ours = Some(Self { questions, answers });
        Child::fork(|| {
            // Or it would keep its own input open.
            drop(ours.take());
            let mut byte = [0];
            while question_in.read_exact(&mut byte).and_then(|()| answer_out.write_all(&[!byte[0]])).is_ok() {
            }
        })?;
        ours.ok_or_else(|| io::Error::other("the child keeps its own copy"))
    }
}

/// A shell that starts an applet of busybox again and again. The path keeps it from running the applet itself.
pub(crate) fn execs(count: u64) -> u64 {
    let busybox = busybox();
    let script = format!("i=0; while [ $i -lt {count} ]; do {busybox} true || exit 1; i=$((i+1)); done");
    let status = Command::new(&busybox).args(["sh", "-c", &script]).status();
    if status.is_ok_and(|status| status.success()) { count } else { 0 }
}

/// Where busybox is.
pub fn busybox() -> String {
    env::var(BUSYBOX).unwrap_or_else(|_| "/bin/busybox".to_owned())
}
