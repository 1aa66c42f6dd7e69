//! What comes from outside: standard input and signals.

use std::{
    io::{self, Read, Write},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::termios::Termios;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    iterator::Signals,
};

use super::{
    Ending,
    machine::Machine,
    terminal::{self, Key, Keys},
};
use crate::failure::Failure;

/// How long a person's typing waits for a guest that reads slowly, before it is read anyway and may be lost.
const PATIENCE: Duration = Duration::from_millis(100);

/// Starts the thread that passes standard input to the guest. On a terminal, Ctrl-A starts a command.
///
/// # Errors
///
/// If there is no thread to be had.
pub(super) fn read_standard_input(machine: &Arc<Machine>, terminal: bool) -> Result<(), Failure> {
    let machine = Arc::clone(machine);
    spawn("input", move || {
        let mut keys = terminal.then(Keys::default);
        let mut buffer = [0; 512];
        loop {
            // A file or a pipe waits, so that nothing of it is lost. A person who pastes waits too, but is heard again when
            // the guest reads nothing, or Ctrl-A x would not reach us.
            machine.wait_for_room(keys.is_some().then_some(PATIENCE));
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    let bytes = for_guest(&machine, keys.as_mut(), &buffer[..count]);
                    machine.type_bytes(&bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // A file or a pipe may well end before the guest does. A terminal only ends by going away, and then nobody can
        // see or stop the guest any more.
        if terminal {
            machine.end(Ending::Quit);
        }
    })
}

/// The bytes that are meant for the guest; the others are obeyed.
fn for_guest(machine: &Machine, keys: Option<&mut Keys>, bytes: &[u8]) -> Vec<u8> {
    let Some(keys) = keys else { return bytes.to_owned() };
    let mut guest = Vec::new();
    for &byte in bytes {
        match keys.typed(byte) {
            None => {}
            Some(Key::Guest(byte)) => guest.push(byte),
            Some(Key::Quit) => machine.end(Ending::Quit),
            Some(Key::Help) => show(terminal::HELP),
            Some(Key::Statistics) => show(&machine.statistics().replace('\n', "\r\n")),
        }
    }
    guest
}

fn show(text: &str) {
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

/// Starts the thread that waits for signals that end the program, so that the terminal gets its settings back.
///
/// # Errors
///
/// If the handlers cannot be installed.
pub(super) fn watch_signals(machine: &Arc<Machine>, saved: Option<Termios>) -> Result<(), Failure> {
    let machine = Arc::clone(machine);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])
        .map_err(|error| Failure::Internal(format!("signal handlers cannot be installed: {error}")))?;
    spawn("signals", move || {
        if signals.forever().next().is_some() {
            if let Some(saved) = &saved {
                terminal::restore(saved);
            }
            machine.end(Ending::Quit);
        }
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).map_err(|error| Failure::Internal(format!("no thread for {name}: {error}")))
}
