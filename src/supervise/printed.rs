//! What a program has printed, in bounded memory.

use std::io;

use crate::counts::mebibytes;

/// What a program has printed for people, in bounded memory: of very much, the begin and the end are kept, and a line between
/// them says how much is missing.
#[derive(Debug, Default)]
pub struct Printed {
    begin: Vec<u8>,
    end: Vec<u8>,
    omitted: usize,
}

/// How much is kept of the begin of what a program has printed, and of its end, in bytes.
const PART_AT_MOST: usize = 1 << 20;

impl Printed {
    /// Adds what it has printed next.
    pub fn add(&mut self, bytes: &[u8]) {
        let (begin, rest) = bytes.split_at(bytes.len().min(PART_AT_MOST - self.begin.len()));
        self.begin.extend_from_slice(begin);
        // Now and then, not for every piece.
        for piece in rest.chunks(PART_AT_MOST) {
            self.end.extend_from_slice(piece);
            if self.end.len() >= 2 * PART_AT_MOST {
                let surplus = self.end.len() - PART_AT_MOST;
                self.end.drain(..surplus);
                self.omitted += surplus;
            }
        }
    }

    /// All that is kept.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        let Self {
            begin: mut printed,
            end,
            omitted,
        } = self;
        if omitted > 0 {
            let note = format!("\n… ({} omitted)\n", mebibytes(omitted as u64));
            printed.extend_from_slice(note.as_bytes());
        }
        printed.extend(end);
        printed
    }
}

impl io::Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.add(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_is_printed_begin_and_end_are_kept() {
        let mut printed = Printed::default();
        printed.add(b"a");
        printed.add(b"b");
        assert_eq!(printed.into_bytes(), b"ab");
        let mut printed = Printed::default();
        printed.add(b"begin");
        printed.add(&vec![b'x'; PART_AT_MOST - 5]);
        for _ in 0..100 {
            printed.add(&vec![b'x'; PART_AT_MOST]);
            assert!(printed.end.len() < 2 * PART_AT_MOST);
        }
        printed.add(b"end");
        let printed = printed.into_bytes();
        let text = String::from_utf8(printed).unwrap();
        assert!(text.starts_with("beginx") && text.ends_with("xend"));
        assert!(text.contains("x\n… (99 MiB omitted)\nx"));
        assert!(text.len() < 4 << 20);
    }
}
