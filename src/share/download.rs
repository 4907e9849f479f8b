//! Downloading an archive that is an artifact of the build, by the agent, with patience that has an end.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::ShareError;
use crate::buildkite::agent as command;
use crate::command_line::CommandLine;
use crate::exit::Class;
use crate::fingerprint::in_hex;
use crate::store::TRICKLE;
use crate::supervise::{GivenUp, PATIENCE, Printed, Sight, Supervisor};
use crate::text::without_escapes;

/// How far a tar may be larger than what it unpacks to: each entry has a header and fills its last block.
const TAR_AT_MOST: u64 = 4;
const TAR_SLACK: u64 = 32 << 20;

/// How many artifacts of its size may come at once: as many as jobs have uploaded one of its name, and there are few.
const COPIES_AT_MOST: u64 = 8;

/// How much of a file is read before the next look at signals, in bytes.
const READ_AT_ONCE: usize = 1 << 20;

/// The SHA-256 that the agent has computed of an artifact when it uploaded it, in hexadecimal.
///
/// # Errors
/// It is not known; a signal asked us to end.
pub(super) fn sha256_of_artifact(
    supervisor: &mut Supervisor,
    name: &str,
) -> Result<String, ShareError> {
    let line = command::artifact_sha256(name);
    let ended = run(supervisor, &line, || Sight::StandsStill)?;
    let sha256 = ended.stdout.trim();
    let is_sum = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    if ended.success && is_sum {
        Ok(sha256.to_ascii_lowercase())
    } else {
        Err(ended.error())
    }
}

/// Downloads the artifact `name` into `folder`, which is empty, and checks that it has this SHA-256. `grown` is called with the
/// number of bytes each time there are more. `size`: how many bytes it unpacks to.
///
/// # Errors
/// There is none, or another one; a signal asked us to end.
pub(super) fn download(
    supervisor: &mut Supervisor,
    name: &str,
    sha256: &str,
    folder: &Path,
    size: u64,
    mut grown: impl FnMut(u64),
) -> Result<File, ShareError> {
    let mut growth = Growth::of(size);
    // The agent prints nothing that says how far it is.
    let mut look = || {
        let sizes = sizes(folder);
        let (sight, more) = growth.look(&sizes);
        if more {
            grown(sizes.all);
        }
        sight
    };
    // Where something in between knows no patterns, the name finds it.
    let mut download = |query: &str| {
        let line = command::download_from_build(query, folder);
        run(supervisor, &line, &mut look)
    };
    let mut ended = download(&command::every_upload_of(name))?;
    if !ended.success && command::found_no_artifact(&ended.stderr) {
        ended = download(name)?;
    }
    // Of several artifacts that match the name, one that cannot be downloaded, or that never ends, makes the agent fail, although
    // another is there.
    let Ok(mut file) = File::open(folder.join(name)) else {
        return Err(ended.error());
    };
    let sum = sha256_of(supervisor, &mut file)?;
    if sum == sha256 {
        Ok(file)
    } else if ended.success {
        Err(wrong("it has another SHA-256 than its name says"))
    } else {
        Err(ended.error())
    }
}

fn wrong(why: impl Into<String>) -> ShareError {
    ShareError::Share(why.into())
}

/// A command of the agent's that has ended.
struct AgentRun {
    /// Why it was stopped.
    given_up: Option<String>,
    line: String,
    how: String,
    success: bool,
    stdout: String,
    stderr: String,
}

impl AgentRun {
    /// Why it has not done what it should.
    fn error(self) -> ShareError {
        if let Some(why) = self.given_up {
            return wrong(why);
        }
        wrong(match reason_in(&self.stderr) {
            Some(reason) => reason,
            None if self.success => format!("`{}` has found nothing", self.line),
            None => format!("`{}` {}", self.line, self.how),
        })
    }
}

/// Runs a command of the agent's, which is stopped where it stands still, or where what it downloads is too large.
fn run(
    supervisor: &mut Supervisor,
    line: &CommandLine,
    mut look: impl FnMut() -> Sight,
) -> Result<AgentRun, ShareError> {
    let mut stderr = Printed::default();
    let ran = supervisor.run_patiently(line, PATIENCE, |_, printed| {
        stderr.add(printed);
        look()
    });
    let (finished, given_up) = ran.map_err(|failure| match failure.class {
        Class::MissingProgram => wrong("there is no buildkite-agent on PATH to download it"),
        _ => failure.into(),
    })?;
    let stderr = String::from_utf8_lossy(&stderr.into_bytes()).into_owned();
    let given_up = given_up.map(|why| match why {
        GivenUp::Enough => "it is larger than its record says".to_owned(),
        GivenUp::Stalled => stands_still(reason_in(&stderr).as_deref()),
    });
    Ok(AgentRun {
        given_up,
        line: line.to_string(),
        how: finished.ending.to_string(),
        success: finished.ending.success(),
        stdout: finished.text(),
        stderr,
    })
}

/// The reason of a download that is given up, with what was said last.
fn stands_still(said: Option<&str>) -> String {
    let said = said.map(|said| format!(": {said}")).unwrap_or_default();
    format!(
        "the download has not moved for {} s{said}",
        PATIENCE.as_secs()
    )
}

/// Why a download failed, from what the agent says. Its last line says only that it did; the one before has the address, which
/// may be signed, and then the reason in parentheses.
fn reason_in(stderr: &str) -> Option<String> {
    let tried = stderr
        .lines()
        .rev()
        .find_map(|line| line.split_once("Error trying to download "));
    if let Some((_, rest)) = tried {
        let (_url, rest) = rest.split_once(" (").unwrap_or(("", rest));
        let end = rest.rfind(") Attempt").unwrap_or(rest.len());
        return Some(without_queries(&rest[..end]));
    }
    // The agent colours its lines also where there is no terminal, and says first what goes well.
    let plain = without_escapes(stderr);
    let mut lines = plain.lines().map(str::trim).rev();
    let last = lines.find(|line| !line.is_empty() && !is_progress(line))?;
    let message = ["FATAL", "ERROR", "WARN"]
        .iter()
        .find_map(|level| last.split_once(level))
        .map_or(last, |(_, message)| message);
    let message = message.trim();
    let message = message.strip_prefix("fatal: ").unwrap_or(message);
    Some(without_queries(message))
}

/// Whether a line of the agent's is about what goes well.
fn is_progress(line: &str) -> bool {
    line.contains(" INFO ") || line.contains(" DEBUG ")
}

/// A message without what stands behind the `?` of addresses: there are signatures.
fn without_queries(message: &str) -> String {
    let words = message.split(' ').map(|word| match word.find("://") {
        Some(_) => match word.split_once('?') {
            Some((url, rest)) => {
                let end = rest.find(['"', ')', '\'', ':']).unwrap_or(rest.len());
                format!("{url}{}", &rest[end..])
            }
            None => word.to_owned(),
        },
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// How a download grows, as it is looked at again and again.
struct Growth {
    /// How large one file may be, in bytes.
    at_most: u64,
    /// How much there was at the last look, and how much has come since it last moved, in bytes.
    last: u64,
    came: u64,
}

impl Growth {
    /// That of an archive that unpacks to so many bytes.
    fn of(size: u64) -> Self {
        Self {
            at_most: size.saturating_mul(TAR_AT_MOST).saturating_add(TAR_SLACK),
            last: 0,
            came: 0,
        }
    }

    /// What to make of a download that has come so far, and whether there is more of it.
    fn look(&mut self, sizes: &Sizes) -> (Sight, bool) {
        // Of a try that failed, the agent has removed what was there.
        let more = sizes.all.saturating_sub(self.last);
        self.last = sizes.all;
        self.came += more;
        let all_at_most = self.at_most.saturating_mul(COPIES_AT_MOST);
        let sight = if sizes.largest > self.at_most || sizes.all > all_at_most {
            Sight::Enough
        } else if self.came >= TRICKLE {
            self.came = 0;
            Sight::Moves
        } else {
            Sight::StandsStill
        };
        (sight, more > 0)
    }
}

#[derive(Default)]
struct Sizes {
    all: u64,
    largest: u64,
}

/// How much there is in a folder of a download: the agent writes beside the file, and retries. An artifact whose path only begins
/// with the name comes too, in a folder of its own where it has a slash.
fn sizes(folder: &Path) -> Sizes {
    let mut sizes = Sizes::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().into_iter().flatten().flatten() {
            // Of the entry itself, wherever a link leads.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            sizes.all += metadata.len();
            sizes.largest = sizes.largest.max(metadata.len());
        }
    }
    sizes
}

/// The SHA-256 of a file, which is read again from its beginning then.
fn sha256_of(supervisor: &mut Supervisor, file: &mut File) -> Result<String, ShareError> {
    let unreadable = |error: io::Error| wrong(format!("the download cannot be read: {error}"));
    let mut sum = Sha256::new();
    let mut buffer = vec![0; READ_AT_ONCE];
    loop {
        supervisor.check()?;
        match file.read(&mut buffer).map_err(unreadable)? {
            0 => break,
            read => sum.update(&buffer[..read]),
        }
    }
    file.rewind().map_err(unreadable)?;
    Ok(in_hex(&sum.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_is_enough_where_one_file_or_all_of_them_are_too_large() {
        let one = Growth::of(1).at_most;
        let look = |growth: &mut Growth, all, largest| growth.look(&Sizes { all, largest });
        let mut growth = Growth::of(1);
        assert_eq!(look(&mut growth, 0, 0), (Sight::StandsStill, false));
        assert_eq!(look(&mut growth, one, one), (Sight::Moves, true));
        // What trickles adds up.
        let near = TRICKLE - 1;
        assert_eq!(
            look(&mut growth, one + near, one),
            (Sight::StandsStill, true)
        );
        assert_eq!(look(&mut growth, one + TRICKLE, one), (Sight::Moves, true));
        // One more try, from nothing.
        assert_eq!(look(&mut growth, 0, 0), (Sight::StandsStill, false));
        assert_eq!(
            look(&mut growth, COPIES_AT_MOST * one, one),
            (Sight::Moves, true)
        );
        assert_eq!(
            look(&mut growth, COPIES_AT_MOST * one + 1, one).0,
            Sight::Enough
        );
        assert_eq!(look(&mut Growth::of(1), one + 1, one + 1).0, Sight::Enough);
    }

    #[test]
    fn the_reason_is_what_the_agent_said_of_the_last_try_and_no_signed_address() {
        let tried = |reason: &str| {
            format!(
                "2026-11-28 21:00:00 INFO   Searching for artifacts: \"x\"\n\
                 2026-11-28 21:00:01 WARN   Error trying to download https://s3/x?X-Amz-Signature=secret ({reason}) Attempt 5/5\n\
                 2026-11-28 21:00:01 ERROR  Failed to download artifact: {reason}\n\
                 fatal: failed to download artifacts: there were errors downloading some of the artifacts\n"
            )
        };
        assert_eq!(
            reason_in(&tried("403 Forbidden")).as_deref(),
            Some("403 Forbidden")
        );
        let nested = "Error while downloading https://s3/x?X-Amz-Signature=secret (*url.Error: Get \"https://s3/x?X-Amz-Signature=secret\": EOF)";
        let reason = reason_in(&tried(nested)).unwrap();
        assert!(!reason.contains("secret"), "{reason}");
        assert!(reason.ends_with(": EOF)"), "{reason}");
        let none = "2026-11-28 21:00:00 INFO   Searching\nfatal: failed to download artifacts: no artifacts found for downloading\n";
        assert_eq!(
            reason_in(none).as_deref(),
            Some("failed to download artifacts: no artifacts found for downloading")
        );
        assert_eq!(reason_in(" \n"), None);
        // As v3.83.1 prints it.
        let begun = "\u{1b}[38;5;48m2026-11-28 21:00:00 INFO  \u{1b}[0m \u{1b}[0mFound 1 artifacts. Starting to download to: /x\u{1b}[0m\n";
        assert_eq!(reason_in(begun), None);
        let failed = "\u{1b}[38;5;48m2026-11-28 21:00:00 ERROR \u{1b}[0m \u{1b}[0mno\u{1b}[0m\n";
        assert_eq!(reason_in(failed).as_deref(), Some("no"));
    }
}
