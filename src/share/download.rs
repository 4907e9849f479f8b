//! Downloading an archive that is an artifact of the build, by the agent, with patience that has an end.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::buildkite::agent as command;
use crate::command_line::CommandLine;
use crate::exit::{Class, Failure};
use crate::store::PATIENCE;
use crate::supervise::{OnStop, Supervisor};

/// How long a download that is given up has to end by itself.
const GRACE: Duration = Duration::from_secs(1);

/// How often the folder of a download is looked at: the agent prints nothing that says how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How far a tar may be larger than what it unpacks to: each entry has a header and fills its last block.
const TAR_AT_MOST: u64 = 4;
const TAR_SLACK: u64 = 32 << 20;

/// The SHA-256 that the agent has computed of an artifact when it uploaded it, in hexadecimal.
///
/// # Errors
/// A signal asked us to end (128 + n). Inside, why it is not known, as a sentence.
pub(super) fn sha256_of_artifact(
    supervisor: &mut Supervisor,
    name: &str,
) -> Result<Result<String, String>, Failure> {
    let line = command::artifact_sha256(name);
    let ended = match run(supervisor, &line, |_| Watched::Moves)? {
        Ok(ended) => ended,
        Err(why) => return Ok(Err(why)),
    };
    let sha256 = ended.stdout.trim();
    let is_sum = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok(if ended.success && is_sum {
        Ok(sha256.to_owned())
    } else {
        Err(ended.why())
    })
}

/// Downloads the artifact `name` into `folder`, which is empty, and checks that it has this SHA-256. `moved` is called with the
/// number of bytes each time there are more. `size`: how many bytes it unpacks to.
///
/// # Errors
/// A signal asked us to end (128 + n). Inside, why there is none, as a sentence.
pub(super) fn download(
    supervisor: &mut Supervisor,
    name: &str,
    sha256: &str,
    folder: &Path,
    size: u64,
    mut moved: impl FnMut(u64),
) -> Result<Result<File, String>, Failure> {
    let line = command::download_from_build(name, folder);
    let at_most = size.saturating_mul(TAR_AT_MOST).saturating_add(TAR_SLACK);
    let mut last = 0;
    let look = |_: ()| {
        let Sizes { all, largest } = sizes(folder);
        if largest > at_most {
            return Watched::TooLarge;
        }
        if all <= last {
            return Watched::StandsStill;
        }
        last = all;
        moved(all);
        Watched::Moves
    };
    let ended = match run(supervisor, &line, look)? {
        Ok(ended) => ended,
        Err(why) => return Ok(Err(why)),
    };
    // Of several artifacts of one name, one that cannot be downloaded makes the agent fail, although another is there.
    let mut file = match File::open(folder.join(name)) {
        Ok(file) => file,
        Err(_) => return Ok(Err(ended.why())),
    };
    match sha256_of(supervisor, &mut file)? {
        Ok(sum) if sum == sha256 => Ok(Ok(file)),
        Ok(_) if ended.success => Ok(Err(format!("{name} has another SHA-256 than its record"))),
        Ok(_) => Ok(Err(ended.why())),
        Err(error) => Ok(Err(format!("{name} cannot be read: {error}"))),
    }
}

/// What a look at a download shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    Moves,
    StandsStill,
    TooLarge,
}

/// A command of the agent's that has ended.
struct Ended {
    line: String,
    how: String,
    success: bool,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// Why it has not done what it should, as a sentence.
    fn why(&self) -> String {
        match reason_in(&self.stderr) {
            Some(reason) => reason,
            None if self.success => format!("`{}` has found nothing", self.line),
            None => format!("`{}` {}", self.line, self.how),
        }
    }
}

/// Runs a command of the agent's that is stopped where it stands still. Inside, why it could not be run to its end.
fn run(
    supervisor: &mut Supervisor,
    line: &CommandLine,
    mut look: impl FnMut(()) -> Watched,
) -> Result<Result<Ended, String>, Failure> {
    let started = match supervisor.start(line, OnStop::TermThenKill) {
        Ok(started) => started,
        Err(failure) if failure.class == Class::MissingProgram => {
            return Ok(Err("there is no buildkite-agent on PATH".into()));
        }
        Err(failure) => return Err(failure),
    };
    let mut running = [started];
    let mut stderr = Vec::new();
    let began = Instant::now();
    let mut moved = began;
    let mut given_up = None;
    while running[0].ended.is_none() {
        let due = Instant::now() + LOOK_EVERY;
        supervisor.watch(&mut running, Some(due), |_, bytes| {
            stderr.extend_from_slice(bytes);
        })?;
        if given_up.is_some() {
            continue;
        }
        match look(()) {
            Watched::Moves => moved = Instant::now(),
            Watched::TooLarge => given_up = Some("it is larger than its record says".to_owned()),
            Watched::StandsStill if moved.elapsed() >= PATIENCE => {
                let said = reason_in(&String::from_utf8_lossy(&stderr));
                let said = said.map(|said| format!(": {said}")).unwrap_or_default();
                let seconds = PATIENCE.as_secs();
                given_up = Some(format!("nothing has moved for {seconds} s{said}"));
            }
            Watched::StandsStill => {}
        }
        if given_up.is_some() && running[0].ended.is_none() {
            running[0].stop(GRACE);
        }
    }
    supervisor.check()?;
    let [running] = running;
    let finished = running.finished();
    Ok(match given_up {
        Some(why) if !finished.ending.success() => Err(why),
        _ => Ok(Ended {
            line: line.to_string(),
            how: finished.ending.to_string(),
            success: finished.ending.success(),
            stdout: finished.text(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }),
    })
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
    let last = crate::agent::last_line(stderr)?;
    let message = ["FATAL", "ERROR", "WARN", "INFO"]
        .iter()
        .find_map(|level| last.split_once(level))
        .map_or(last, |(_, message)| message);
    let message = message.trim();
    let message = message.strip_prefix("fatal: ").unwrap_or(message);
    Some(without_queries(message))
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

#[derive(Default)]
struct Sizes {
    all: u64,
    largest: u64,
}

/// How much there is in a folder of a download: the agent writes beside the file, and retries.
fn sizes(folder: &Path) -> Sizes {
    let mut sizes = Sizes::default();
    let entries = folder.read_dir().into_iter().flatten().flatten();
    for size in entries.filter_map(|entry| Some(entry.metadata().ok()?.len())) {
        sizes.all += size;
        sizes.largest = sizes.largest.max(size);
    }
    sizes
}

/// The SHA-256 of a file, which is read again from its beginning then.
fn sha256_of(
    supervisor: &mut Supervisor,
    file: &mut File,
) -> Result<Result<String, io::Error>, Failure> {
    use std::fmt::Write as _;
    use std::io::Seek as _;

    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        supervisor.check()?;
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => sum.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    let mut hex = String::new();
    for byte in sum.finalize() {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(file.rewind().map(|()| hex))
}
