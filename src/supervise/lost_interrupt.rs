//! A signal that somebody else sent to a Nix alone, and that it has lost: it says `error (ignored): … interrupted by the user`, and may
//! wait without an end then. Nix 2.8 does where the signal comes while it sends a file to its daemon: what is left of the file stays
//! unsent, and the daemon waits for it (bare `nix-instantiate` as well; measured).
//!
//! A builder or a trace may print these words, too, and an evaluation be silent for long: so one program of a job is ended for it, and no
//! second one; and none that has builders.

use std::time::{Duration, Instant};

/// How long it prints nothing more until it is believed to wait.
const SILENCE: Duration = Duration::from_secs(5);

/// How much of a line is kept until it ends, in bytes: in Nix's structured log, colours stand between these words.
const LINE_AT_MOST: usize = 200;

/// What a program has printed of it.
#[derive(Debug, Default)]
pub(super) struct LostInterrupt {
    /// The begin of the line that it prints.
    line: Vec<u8>,
    /// When it last printed something, once it has lost one.
    silent_since: Option<Instant>,
}

impl LostInterrupt {
    /// Reads what it prints on standard error.
    pub(super) fn read(&mut self, bytes: &[u8], now: Instant) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_AT_MOST - self.line.len();
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                if is_lost(&self.line) {
                    self.silent_since = Some(now);
                }
                self.line.clear();
            }
        }
        self.goes_on(now);
    }

    /// It has printed something.
    pub(super) fn goes_on(&mut self, now: Instant) {
        if let Some(since) = &mut self.silent_since {
            *since = now;
        }
    }

    /// What it would have ended with.
    pub(super) fn message(&self) -> &'static [u8] {
        const MESSAGE: &[u8] = b"\nerror: interrupted by the user\n";
        if self.line.is_empty() {
            &MESSAGE[1..]
        } else {
            MESSAGE
        }
    }

    /// When it is believed to wait, if it prints nothing until then.
    pub(super) fn due(&self) -> Option<Instant> {
        self.silent_since.map(|since| since + SILENCE)
    }
}

fn is_lost(line: &[u8]) -> bool {
    // Most lines are of a builder, or a trace.
    if !line.starts_with(b"error") && !line.starts_with(b"@nix ") && !line.starts_with(b"\x1b") {
        return false;
    }
    // Of Nix's structured log, its own messages; a builder's lines are results.
    if line.starts_with(b"@nix ") && !line.starts_with(br#"@nix {"action":"msg""#) {
        return false;
    }
    let line = String::from_utf8_lossy(line);
    let ignored = line.split_once("(ignored):");
    ignored.is_some_and(|(_, what)| what.contains("interrupted by the user"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_lost_once_nix_ignores_it_and_waits_from_what_it_prints_last() {
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        for (line, is_lost) in [
            ("error (ignored): interrupted by the user", true),
            ("error (ignored): error: interrupted by the user", true),
            (
                "\u{1b}[31;1merror (ignored):\u{1b}[0m \u{1b}[31;1merror:\u{1b}[0m interrupted by the user",
                true,
            ),
            (
                r#"@nix {"action":"msg","level":0,"msg":"\u001b[31;1merror (ignored):\u001b[0m error: interrupted by the user"}"#,
                true,
            ),
            (
                r#"@nix {"action":"result","fields":["error (ignored): interrupted by the user"],"id":1,"type":101}"#,
                false,
            ),
            ("error: interrupted by the user", false),
            ("error (ignored): error: cannot close a connection", false),
            ("trace: error (ignored): interrupted by the user", false),
        ] {
            let mut whole = LostInterrupt::default();
            whole.read(format!("a\n{line}\n").as_bytes(), now);
            assert_eq!(whole.due().is_some(), is_lost, "{line}");
            // Byte by byte.
            let mut lost = LostInterrupt::default();
            for byte in format!("a\n{line}\n").as_bytes() {
                lost.read(&[*byte], now);
            }
            assert_eq!(lost.due(), whole.due());
            lost.goes_on(later);
            assert_eq!(lost.due(), is_lost.then_some(later + SILENCE));
        }
        let mut long = LostInterrupt::default();
        long.read(&vec![b'x'; 1 << 20], now);
        assert_eq!(long.line.len(), LINE_AT_MOST);
    }
}
