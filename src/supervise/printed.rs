//! What a program has printed, in bounded memory.

use std::io;

use crate::command_line::CommandLine;
use crate::counts::mebibytes;
use crate::exit::{Class, Failure};

/// What a program has printed on standard error, in bounded memory: of very much, the begin and the end are kept, and a line between
/// them says how much is missing.
#[derive(Debug)]
pub struct Printed {
    /// How much is kept of the begin, and of the end, in bytes.
    part_at_most: usize,
    begin: Vec<u8>,
    end: Vec<u8>,
    omitted: usize,
}

/// How much is kept of the begin of what a program has printed for people, and of its end, in bytes.
const PART_AT_MOST: usize = 1 << 20;

/// The same of an answer, which fails where it is longer than both: the names of 500,000 paths.
const ANSWER_PART_AT_MOST: usize = 32 << 20;

/// What is printed for people.
impl Default for Printed {
    fn default() -> Self {
        Self::in_parts_of(PART_AT_MOST)
    }
}

impl Printed {
    /// What this program is about to print.
    #[must_use]
    pub fn by(line: &CommandLine) -> Self {
        Self::in_parts_of(if line.answers_on_stderr {
            ANSWER_PART_AT_MOST
        } else {
            PART_AT_MOST
        })
    }

    fn in_parts_of(part_at_most: usize) -> Self {
        Self {
            part_at_most,
            begin: Vec::new(),
            end: Vec::new(),
            omitted: 0,
        }
    }

    /// Adds what it has printed next.
    pub fn add(&mut self, bytes: &[u8]) {
        let at_most = self.part_at_most;
        let (begin, rest) = bytes.split_at(bytes.len().min(at_most - self.begin.len()));
        self.begin.extend_from_slice(begin);
        // Now and then, not for every piece.
        for piece in rest.chunks(at_most) {
            self.end.extend_from_slice(piece);
            if self.end.len() >= 2 * at_most {
                let surplus = self.end.len() - at_most;
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
            part_at_most: _,
        } = self;
        if omitted > 0 {
            let note = format!("\n… ({} omitted)\n", mebibytes(omitted as u64));
            printed.extend_from_slice(note.as_bytes());
        }
        printed.extend(end);
        printed
    }

    /// All that `line` has printed, where that is an answer; else all that is kept.
    ///
    /// # Errors
    /// It is an answer, and too long (75): a part of one is none.
    pub fn into_answer(self, line: &CommandLine) -> Result<Vec<u8>, Failure> {
        if line.answers_on_stderr && self.omitted > 0 {
            return Err(Failure::new(
                Class::Infrastructure,
                format_args!(
                    "`{}` prints more than {} on standard error",
                    line.program,
                    mebibytes(2 * self.part_at_most as u64)
                ),
            ));
        }
        Ok(self.into_bytes())
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

    #[test]
    fn an_answer_is_kept_whole_or_is_none() {
        let mut line = CommandLine::new("sh", &[]);
        for (parts, is_answer, is_whole, is_kept) in [
            (64, true, true, true),
            (97, true, false, false),
            (3, false, false, true),
            (1, false, true, true),
        ] {
            line.answers_on_stderr = is_answer;
            let mut printed = Printed::by(&line);
            for _ in 0..parts {
                printed.add(&vec![b'x'; PART_AT_MOST]);
            }
            let kept = printed.into_answer(&line);
            let (said, length) = match &kept {
                Ok(kept) => (String::new(), kept.len()),
                Err(failure) => (failure.to_string(), 0),
            };
            assert_eq!(
                length == parts * PART_AT_MOST,
                is_whole,
                "{parts}: {length}"
            );
            assert_eq!(said.is_empty(), is_kept, "{parts}");
            if !is_kept {
                assert_eq!(said, "`sh` prints more than 64 MiB on standard error");
            }
        }
    }
}
