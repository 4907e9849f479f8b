//! Which paths of substituters this host's Nix would take: a dry run names all that they have, whether or not they are signed.

use std::collections::HashSet;

use super::batches::batches;
use super::{Answer, Store};
use crate::command_line::{CommandLine, Ending};
use crate::exit::Failure;
use crate::nix::{NixOutput, StorePath, caches, command};
use crate::secrets::redacted;
use crate::supervise::Supervisor;
use crate::text::without_escapes;

/// How many programs ask a substituter over a network at once, and how many paths each gets at least and at most. One asks for one
/// path after the other where this user's Nix does not remember the substituter's answers, as with a daemon, which has a memory of its
/// own: for 1,000 paths one program takes 24 s where an answer takes 20 ms, ten take 3 s. Where it remembers them, one takes 0.1 s.
const ASKING_AT_ONCE: usize = 10;
const PATHS_EACH: (usize, usize) = (100, 2_000);

/// What was found out about paths that substituters have.
#[derive(Debug, Default)]
pub struct Trust {
    /// Those that Nix would take from none of them.
    pub untrusted: HashSet<StorePath>,
    /// Why some of them could not be asked, in a sentence.
    pub unanswered: Option<String>,
    /// The commands that were run.
    pub commands: Vec<CommandLine>,
}

impl Store {
    /// Which of these paths, which substituters have by a dry run, Nix would take from none of them. It takes what is signed by one of
    /// its `trusted-public-keys`, what is addressed by its content, everything from a substituter with `trusted=true`, and
    /// everything where `require-sigs` is false (measured on 2.8, 2.26 and 2.34, with and without a daemon). The settings are
    /// those of this user's Nix; a daemon's own may be others.
    ///
    /// # Errors
    /// A program is missing (69); a signal asked us to end (128 + n).
    pub fn trust(
        &mut self,
        supervisor: &mut Supervisor,
        paths: &[&StorePath],
    ) -> Result<Trust, Failure> {
        let mut trust = Trust::default();
        if paths.is_empty() {
            return Ok(trust);
        }
        let options = self.options(supervisor)?;
        let line = self.show_config_line();
        let config = self.printed_if_any(supervisor, &line)?;
        trust.commands.push(line);
        let Some(config) = config else {
            trust.unanswered = Some("Nix does not print its settings".into());
            trust.untrusted = paths.iter().copied().cloned().collect();
            return Ok(trust);
        };
        if caches::setting(&config, "require-sigs") == Some("false") {
            return Ok(trust);
        }
        let substituters = match &self.substituters {
            Some(substituters) => substituters.clone(),
            None => caches::substituters(&config).unwrap_or_default(),
        };
        let mut rest = paths.to_vec();
        for substituter in &substituters {
            let asked = asked_of(substituter, &rest);
            let parts = parts(substituter, &asked);
            // 2.8 fails where several make its memory of a substituter at once (7 of 10).
            let (first, others) = parts.split_at(parts.len().min(1));
            for (parts, at_once) in [(first, 1), (others, ASKING_AT_ONCE)] {
                let lines: Vec<CommandLine> = parts
                    .iter()
                    .map(|part| command::verify_signatures(substituter, part, &options))
                    .collect();
                for answer in self.ask_several(supervisor, &lines, at_once)? {
                    let (taken, failed) = read(&answer, caches::is_trusted(substituter));
                    rest.retain(|path| !taken.contains(*path));
                    if let Some(why) = failed {
                        let why = redacted(&why).into_owned();
                        trust.unanswered.get_or_insert(format!(
                            "{substituter} cannot be asked for signatures: {why}"
                        ));
                    }
                }
                trust.commands.extend(lines);
            }
            if rest.is_empty() {
                break;
            }
        }
        trust.untrusted = rest.into_iter().cloned().collect();
        Ok(trust)
    }
}

/// The paths for which a substituter is asked. One in a folder is looked at as such: Nix would make the folder where it is missing.
fn asked_of<'p>(substituter: &str, paths: &[&'p StorePath]) -> Vec<&'p StorePath> {
    let may_have = |path: &StorePath| {
        caches::file_in_cache(substituter, path).is_none_or(|file| file.exists())
    };
    let paths = paths.iter().copied();
    paths.filter(|path| may_have(path)).collect()
}

/// The paths for which each program asks a substituter.
fn parts<'a, 'p>(substituter: &str, paths: &'a [&'p StorePath]) -> Vec<&'a [&'p StorePath]> {
    if !["http://", "https://", "s3://"]
        .iter()
        .any(|scheme| substituter.starts_with(scheme))
    {
        return batches(paths).collect();
    }
    let (least, most) = PATHS_EACH;
    let (first, others) = paths.split_at(paths.len().min(1));
    let each = others.len().div_ceil(ASKING_AT_ONCE).clamp(least, most);
    let first = Some(first).filter(|first| !first.is_empty());
    first.into_iter().chain(others.chunks(each)).collect()
}

/// The paths that a substituter has and Nix takes, by the answer of `nix store verify`; and why it gives none, or not for all paths.
/// (A path that the substituter lacks is an error of that path alone, and the others are answered.)
fn read(answer: &Answer, takes_unsigned: bool) -> (HashSet<StorePath>, Option<String>) {
    let stderr = String::from_utf8_lossy(&answer.stderr);
    let mut taken = HashSet::new();
    let mut untrusted = Vec::new();
    let mut complaint = None;
    for line in stderr.lines().map(without_escapes) {
        let quoted = |start: &str, end: &str| {
            let path = line.strip_prefix(start)?.strip_suffix(end)?;
            StorePath::parse(path).ok()
        };
        if let Some(path) = quoted("checking '", "'...") {
            taken.insert(path);
        } else if let Some(path) = quoted("path '", "' is untrusted") {
            untrusted.push(path);
        } else if line.starts_with("error: ") && !line.ends_with("' is not valid") {
            complaint.get_or_insert(line.trim_start_matches("error: ").to_owned());
        }
    }
    if !takes_unsigned {
        for path in untrusted {
            taken.remove(&path);
        }
    }
    let ending = answer.finished.ending;
    // Bits: 2, something is untrusted; 4, something could not be looked at.
    if let Ending::Exited(0 | 2 | 4 | 6) = ending {
        return (taken, complaint);
    }
    let message = NixOutput::of(&answer.stderr).final_message(ending);
    (HashSet::new(), Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::Finished;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("/s/0123456789abcdfghijklmnpqrsvwxyz-{name}")).unwrap()
    }

    fn answer(status: i32, stderr: &str) -> Answer {
        Answer {
            finished: Finished {
                ending: Ending::Exited(status),
                stdout: Vec::new(),
            },
            stderr: stderr.into(),
        }
    }

    #[test]
    fn what_is_checked_and_not_said_to_be_untrusted_is_taken() {
        let [signed, unsigned, absent] = ["signed", "unsigned", "absent"].map(path);
        let stderr = format!(
            "don't know how to build these paths:\n  {absent}\nchecking '{unsigned}'...\nchecking '{signed}'...\n\
             path '{unsigned}' is untrusted\n\x1b[31;1merror:\x1b[0m path '{absent}' is not valid\n"
        );
        let of = |status, trusted| read(&answer(status, &stderr), trusted);
        assert_eq!(of(6, false), ([signed.clone()].into(), None));
        assert_eq!(of(6, true), ([signed, unsigned].into(), None));
        assert_eq!(of(1, false).0, HashSet::new());
    }

    #[test]
    fn a_program_that_says_nothing_and_one_that_fails_have_found_nothing() {
        assert_eq!(read(&answer(0, ""), false), (HashSet::new(), None));
        let said = "error: unable to download 'http://c/nix-cache-info': no";
        let (taken, why) = read(&answer(1, said), true);
        assert_eq!(taken, HashSet::new());
        assert!(why.unwrap().starts_with("unable to download"));
        // Of one path alone.
        let said = format!("checking '{}'...\n{said}\n", path("a"));
        let (taken, why) = read(&answer(4, &said), false);
        assert_eq!(taken, [path("a")].into());
        assert!(why.unwrap().starts_with("unable to download"));
    }

    #[test]
    fn over_a_network_several_programs_ask_and_each_has_enough_to_do() {
        let one = path("x");
        let sizes = |count: usize, substituter: &str| -> Vec<usize> {
            let paths = vec![&one; count];
            parts(substituter, &paths)
                .iter()
                .map(|part| part.len())
                .collect()
        };
        assert_eq!(sizes(0, "https://c"), [0; 0]);
        assert_eq!(sizes(1, "https://c"), [1]);
        assert_eq!(sizes(151, "https://c"), [1, 100, 50]);
        assert_eq!(sizes(10_001, "http://c").len(), 11);
        assert_eq!(sizes(100_000, "s3://c")[1], 2_000);
        assert_eq!(sizes(1_000, "file:///c"), [1_000]);
    }
}
