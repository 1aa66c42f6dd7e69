//! The person's terminal as the guest's console.
//!
//! On a terminal, input goes to the guest byte by byte ([`RawMode`]), and Ctrl-A starts a command to Paravane itself
//! ([`Keys`]). The terminal's own settings come back on every way out: when the guard is dropped, which includes
//! errors and panics, and by the signal thread before a signal ends the process.

use std::io;

use rustix::{
    stdio,
    termios::{self, OptionalActions, Termios, isatty},
};

/// The settings of the terminal on standard input, to be put back.
#[derive(Debug)]
pub struct RawMode {
    saved: Termios,
}

impl RawMode {
    /// Puts the terminal on standard input into raw mode; `None` if standard input is no terminal.
    ///
    /// # Errors
    ///
    /// If the terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        if !isatty(stdio::stdin()) {
            return Ok(None);
        }
        let saved = termios::tcgetattr(stdio::stdin())?;
        let mut raw = saved.clone();
        raw.make_raw();
        termios::tcsetattr(stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self { saved }))
    }

    /// The settings to put back.
    pub fn saved(&self) -> &Termios {
        &self.saved
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore(&self.saved);
    }
}

/// Puts settings back; nothing can be done if that fails.
pub fn restore(saved: &Termios) {
    termios::tcsetattr(stdio::stdin(), OptionalActions::Now, saved).unwrap_or_default();
}

/// What a typed byte means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A byte for the guest.
    Guest(u8),
    /// Ctrl-A x: stop the guest and leave.
    Quit,
    /// Ctrl-A h: list the keys.
    Help,
    /// Ctrl-A s: print statistics.
    Statistics,
}

/// Ctrl-A.
const PREFIX: u8 = 1;

/// The list that Ctrl-A h prints.
pub const HELP: &str = "\r
Keys of Paravane, each after Ctrl-A:\r
  h       this list\r
  s       statistics\r
  x       stop the guest and leave\r
  Ctrl-A  send Ctrl-A to the guest\r
";

/// Tells bytes for the guest from commands to Paravane.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keys {
    after_prefix: bool,
}

impl Keys {
    /// What `byte` means; `None` for the prefix itself.
    pub fn typed(&mut self, byte: u8) -> Option<Key> {
        if !std::mem::replace(&mut self.after_prefix, false) {
            if byte == PREFIX {
                self.after_prefix = true;
                return None;
            }
            return Some(Key::Guest(byte));
        }
        Some(match byte.to_ascii_lowercase() {
            b'x' => Key::Quit,
            b'h' | b'?' => Key::Help,
            b's' => Key::Statistics,
            // Ctrl-A twice, and whatever is no command: the byte itself.
            _ => Key::Guest(byte),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_starts_a_command_and_sends_itself_when_doubled() {
        let mut keys = Keys::default();
        let meanings: Vec<Option<Key>> =
            b"a\x01x\x01\x01\x01h".iter().map(|&byte| keys.typed(byte)).collect();
        assert_eq!(
            meanings,
            [Some(Key::Guest(b'a')), None, Some(Key::Quit), None, Some(Key::Guest(1)), None, Some(Key::Help)]
        );
    }
}
