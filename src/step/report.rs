//! The report of a step: one line for people, one JSON document for programs.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize, Serializer};
use unix::fcntl::OFlag;
use unix::unistd::{AccessFlags, access};

use super::links::main_output;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::{Cause, DrvPath, Fault, StorePath};
use crate::secrets::redacted;
use crate::text::seen_json;

/// A way, by its name in logs and reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WayName {
    /// The `.drv` was realised.
    Realised,
    /// The recorded outputs were valid, or a cache had them.
    Available,
    /// The `.drv` was fetched from a share, and realised.
    Fetched,
    /// The target was evaluated again.
    Evaluated,
}

impl WayName {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Realised => "realised",
            Self::Available => "available",
            Self::Fetched => "fetched",
            Self::Evaluated => "evaluated",
        }
    }

    /// The way that this is the word for.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        let ways = [
            Self::Realised,
            Self::Available,
            Self::Fetched,
            Self::Evaluated,
        ];
        ways.into_iter().find(|way| way.word() == word)
    }
}

/// Why a step took its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The `.drv` was there.
    DrvValid,
    /// Its file was not there, and Nix had it all the same: from a cache, or in a store that lies elsewhere.
    DrvSubstituted,
    /// The `.drv` was not there, its outputs were or came from a cache.
    OutputsAvailable,
    /// A share had the `.drv`, which was not there.
    FetchedFromShare,
    /// They are here or in a cache, and nothing was realised: the recording had skipped the step.
    Skipped,
    /// The `.drv`'s file was not there when the step began.
    DrvMissing,
    /// It was there when the step began.
    DrvCollected,
    /// It was realised, and an output was gone right afterwards.
    OutputsCollected,
    /// The record is of a store in another folder than this host's.
    OtherStore,
    /// There was no record of a `.drv`.
    NotRecorded,
}

impl Reason {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::DrvValid => "drv-valid",
            Self::DrvSubstituted => "drv-substituted",
            Self::OutputsAvailable => "outputs-available",
            Self::FetchedFromShare => "fetched-from-share",
            Self::Skipped => "skipped",
            Self::DrvMissing => "drv-missing",
            Self::DrvCollected => "drv-collected",
            Self::OutputsCollected => "outputs-collected",
            Self::OtherStore => "other-store",
            Self::NotRecorded => "not-recorded",
        }
    }
}

impl Serialize for WayName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// The report of a step, as `--report` writes it. A field is added, never renamed.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The version of this format.
    pub version: u32,
    /// The way that was taken, or was being taken when the step failed; none before any.
    pub way: Option<WayName>,
    /// Why that way, where that is certain: of one that failed before the store could be asked it is not.
    pub reason: Option<Reason>,
    /// The ways that were begun, in this order.
    pub tried: Vec<WayName>,
    /// The `.drv`: the recorded one, or the one an evaluation has given.
    pub drv: Option<DrvPath>,
    /// The outputs by name, where they are there: after success, and where only the push of them failed.
    pub outputs: BTreeMap<String, StorePath>,
    /// An evaluation gave another `.drv` than was recorded.
    pub drift: bool,
    /// How many derivations were built here.
    pub built: usize,
    /// How many store paths came from a cache.
    pub substituted: usize,
    /// The share that was tried, where one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<TriedShare>,
    /// What was copied to the store that `push` names, where something was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pushed: Option<Pushed>,
    /// How long each part took.
    pub seconds: Seconds,
    /// The exit status of the build. A command that follows it has its own.
    pub exit: u8,
    /// What failed, where something did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureReport>,
    /// What to do about this host or pipeline: a sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

impl Report {
    /// The report of a step that was refused before anything was done.
    #[must_use]
    pub fn refusal(failure: &Failure, started: Instant) -> Self {
        Self {
            seconds: Seconds {
                total: started.elapsed(),
                ..Seconds::default()
            },
            exit: failure.class.status(),
            failure: Some(FailureReport::new(failure, &[], None)),
            ..Self::default()
        }
    }

    /// Turns the report of a step that was built into one of a failure after that.
    pub(super) fn fail(&mut self, failure: &Failure) {
        self.exit = failure.class.status();
        self.failure = Some(FailureReport::new(failure, &[], None));
    }

    /// The line of a job's log with which every step ends that has tried a way: `realised /nix/store/….drv in 1.2 s
    /// (drv-valid): built 1, substituted 0`. Of a step that failed it says why, and which ways were tried: `failed (evaluation)
    /// in 0.4 s: tried available, realised, evaluated (drv-missing); built 0, substituted 0`.
    #[must_use]
    pub fn in_one_line(&self) -> Option<String> {
        let seconds = self.seconds.total.as_secs_f64();
        let counts = format!("built {}, substituted {}", self.built, self.substituted);
        let reason = match self.reason {
            Some(reason) => format!(" ({})", reason.word()),
            None => String::new(),
        };
        if let Some(failure) = &self.failure {
            let tried: Vec<&str> = self.tried.iter().map(|way| way.word()).collect();
            if tried.is_empty() {
                return None;
            }
            return Some(format!(
                "failed ({}) in {seconds:.1} s: tried {}{reason}; {counts}",
                Class::shown(failure.class),
                tried.join(", ")
            ));
        }
        let way = self.way?.word();
        let output = main_output(&self.outputs);
        let what = match (&self.drv, output) {
            (Some(drv), _) => format!(" {drv}"),
            (None, Some(output)) => format!(" {output}"),
            (None, None) => String::new(),
        };
        let pushed = match &self.pushed {
            Some(pushed) => format!(", pushed to {}", pushed.store),
            None => String::new(),
        };
        Some(format!(
            "{way}{what} in {seconds:.1} s{reason}: {counts}{pushed}"
        ))
    }
}

impl Default for Report {
    fn default() -> Self {
        Self {
            version: 1,
            way: None,
            reason: None,
            tried: Vec::new(),
            drv: None,
            outputs: BTreeMap::new(),
            drift: false,
            built: 0,
            substituted: 0,
            share: None,
            pushed: None,
            seconds: Seconds::default(),
            exit: 0,
            failure: None,
            hints: Vec::new(),
        }
    }
}

/// A share that a step tried to fetch its `.drv` from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TriedShare {
    /// The share, as the key `share` names it.
    pub from: String,
    /// Why it did not give the `.drv`, in words; none where it did.
    pub failure: Option<String>,
}

/// What was pushed. How much of it the store had already is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// The URL of the store.
    pub store: String,
    /// How many outputs; each with all that it needs.
    pub outputs: usize,
}

/// How long each part of a step took, in seconds.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Seconds {
    /// Waiting for an evaluation slot.
    #[serde(serialize_with = "seconds")]
    pub wait: Duration,
    /// Fetching `.drv`s from a share.
    #[serde(serialize_with = "seconds")]
    pub fetch: Duration,
    /// Evaluating, with the checkout that is made for it.
    #[serde(serialize_with = "seconds")]
    pub evaluate: Duration,
    /// Building and substituting.
    #[serde(serialize_with = "seconds")]
    pub realise: Duration,
    /// Pushing the outputs.
    #[serde(serialize_with = "seconds")]
    pub push: Duration,
    /// Everything, from the start of the program.
    #[serde(serialize_with = "seconds")]
    pub total: Duration,
}

/// Seconds with three decimals: more would only look exact.
fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}

/// What failed.
#[derive(Debug, Serialize)]
pub struct FailureReport {
    /// The class, by its word.
    pub class: &'static str,
    /// The derivation that itself failed, where it is known.
    pub drv: Option<DrvPath>,
    /// The last lines of its log, where they are known.
    pub log: Option<String>,
    /// Nix killed its builder for all that it printed, of which the log may have nothing.
    #[serde(skip)]
    pub printed_too_much: bool,
    /// The message that ends the job's log.
    pub message: String,
    /// The other derivations that failed by themselves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherFailure>,
}

/// Another derivation that failed by itself.
#[derive(Debug, Clone, Serialize)]
pub struct OtherFailure {
    /// The derivation, where it is known.
    pub drv: Option<DrvPath>,
    /// Why it failed, in words.
    pub message: String,
}

impl FailureReport {
    /// The report of a failure; `faults` are the derivations that failed by themselves, and `last_lines` the end of the first
    /// one's log. Both are dropped where the step ended for another reason, after a build that was given up.
    pub(super) fn new(failure: &Failure, faults: &[Fault], last_lines: Option<&[String]>) -> Self {
        let of_builders = !matches!(
            failure.class,
            Class::Config | Class::Drift | Class::MissingProgram | Class::Bug
        );
        let mut faults = faults.iter().filter(|_| of_builders);
        let root_cause = faults.next();
        Self {
            class: failure.class.word(),
            drv: root_cause.and_then(|fault| fault.drv.clone()),
            log: last_lines
                .filter(|_| root_cause.is_some())
                .map(|lines| redacted(&lines.join("\n")).into_owned()),
            printed_too_much: root_cause.is_some_and(|fault| matches!(fault.cause, Cause::Log(_))),
            message: redacted(&failure.to_string()).into_owned(),
            others: faults
                .map(|fault| OtherFailure {
                    drv: fault.drv.clone(),
                    message: redacted(&fault.cause.to_string()).into_owned(),
                })
                .collect(),
        }
    }
}

/// A file for a report, which can be written.
#[derive(Debug)]
pub struct ReportFile(PathBuf);

impl ReportFile {
    /// Checks that a report can be written to `path`, before anything else is done. It creates nothing: a file of ours in the
    /// checkout would be part of a source that is evaluated there, and change its `.drv`.
    ///
    /// # Errors
    /// It cannot (64): also where it would be in a store, in the place of an output or in one to which a link leads, or where the step
    /// is going to make one of its `links`.
    pub fn prepare<'a>(
        path: &Path,
        mut links: impl Iterator<Item = &'a Path>,
    ) -> Result<Self, Failure> {
        let mut check = || -> io::Result<()> {
            match kind_of(path)? {
                ReportSink::Stdout | ReportSink::Stderr => {}
                ReportSink::Stream => access(path, AccessFlags::W_OK)?,
                ReportSink::File => {
                    access(folder_of(path), AccessFlags::W_OK | AccessFlags::X_OK)?;
                    let place = place_of(path)?;
                    let is_store_path = |path: &Path| {
                        path.to_str()
                            .is_some_and(|path| StorePath::parse(path).is_ok())
                    };
                    // Nix makes this folder in each store of files.
                    let is_store = folder_of(&place).join(".links").is_dir();
                    if is_store || place.ancestors().any(is_store_path) {
                        return Err(io::Error::other("it would be in the store"));
                    }
                    if links.any(|link| place_of(link).is_ok_and(|link| link == place)) {
                        return Err(io::Error::other("it would be in the place of the out-link"));
                    }
                }
            }
            Ok(())
        };
        check().classify(Class::Config, || {
            format!("cannot write the report {}", path.display())
        })?;
        Ok(Self(path.to_owned()))
    }

    /// Writes the report. A file appears whole or not at all; a pipe or terminal is written to as it is.
    ///
    /// # Errors
    /// The disk is full, the folder is gone, or something else is in the way by now (75).
    pub fn write(self, report: &Report) -> Result<(), Failure> {
        let Self(path) = self;
        let write = || -> anyhow::Result<()> {
            // It may be a terminal, and the same JSON otherwise.
            let text = serde_json::to_string_pretty(report)? + "\n";
            let text = seen_json(&text).into_owned().into_bytes();
            match kind_of(&path)? {
                ReportSink::Stdout => return Ok(io::stdout().write_all(&text)?),
                // Not through the log: this is the file that `--report` names, and a failure to write it is one of the step.
                ReportSink::Stderr => return Ok(io::stderr().write_all(&text)?),
                ReportSink::Stream => return Ok(open_stream(&path)?.write_all(&text)?),
                ReportSink::File => {}
            }
            // As any new file: `tempfile` would let only this user read the report.
            let everyone = PermissionsExt::from_mode(0o666);
            let mut beside = tempfile::Builder::new()
                .prefix(".eval-once-report-")
                .permissions(everyone)
                .tempfile_in(folder_of(&path))?;
            beside.write_all(&text)?;
            beside.persist(&path)?;
            Ok(())
        };
        write().classify(Class::Infrastructure, || {
            format!("cannot write the report {}", path.display())
        })
    }
}

enum ReportSink {
    /// A file, there already or not.
    File,
    /// A pipe or a terminal.
    Stream,
    /// Standard output, as it is open already: opened again by its name, a file would be overwritten from its beginning.
    Stdout,
    /// Standard error, likewise.
    Stderr,
}

/// The kind of file at `path`. A link is refused, because it may be an out-link, which leads to an output in the store. The
/// names of open streams are links too, and allowed.
fn kind_of(path: &Path) -> io::Result<ReportSink> {
    match path.to_str() {
        Some("/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1") => return Ok(ReportSink::Stdout),
        Some("/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2") => return Ok(ReportSink::Stderr),
        Some(name) if name.ends_with('/') => return Err(io::ErrorKind::IsADirectory.into()),
        _ => {}
    }
    match path.symlink_metadata() {
        Ok(there) if there.is_symlink() && !is_open_stream(path) => Err(io::Error::other(
            "it is a link: name the file that it leads to",
        )),
        Ok(_) if path.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(there) if !there.is_file() => Ok(ReportSink::Stream),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(ReportSink::File),
    }
}

/// Where a file is or would be, its folder without links.
fn place_of(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    Ok(folder_of(path).canonicalize()?.join(name))
}

/// Opens a pipe or a terminal. By now something else may have its name, in a folder that others can write: a link to a file, or a file.
fn open_stream(path: &Path) -> io::Result<File> {
    // A pipe without a reader would block us here, and signals with us.
    let mut flags = OFlag::O_NONBLOCK;
    if !is_open_stream(path) {
        flags |= OFlag::O_NOFOLLOW;
    }
    let stream = OpenOptions::new()
        .append(true)
        .custom_flags(flags.bits())
        .open(path)?;
    if !is_open_stream(path) && stream.metadata()?.is_file() {
        return Err(io::Error::other(
            "it was a pipe or a terminal, and is a file now",
        ));
    }
    Ok(stream)
}

/// Whether this is the name of a stream that is open already, which is a link.
fn is_open_stream(path: &Path) -> bool {
    let streams = ["/dev/fd", "/proc/self/fd"].map(Path::new);
    path.parent()
        .is_some_and(|folder| streams.contains(&folder))
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::nix::Cause;

    #[test]
    fn a_report_appears_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("report.json");
        let file = ReportFile::prepare(&path, iter::empty()).unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        let failure = Failure::new(Class::Drift, "drifted");
        let mut report = Report::refusal(&failure, Instant::now());
        report.seconds.total = Duration::from_micros(1_234_567);
        file.write(&report).unwrap();
        let read: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["way"], serde_json::Value::Null);
        assert_eq!(read["seconds"]["total"], 1.235);
        assert_eq!(read["failure"]["class"], "drift");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn no_part_of_a_failure_shows_a_secret() {
        let url = "https://u:s3cr3tpassw0rd@h/";
        let fault = || Fault {
            drv: None,
            cause: Cause::Other(format!("cannot fetch {url}")),
        };
        let failure = Failure::new(Class::Build, format!("no {url}"));
        let lines = ["begins".to_owned(), format!("fetching {url}")];
        let report = FailureReport::new(&failure, &[fault(), fault()], Some(&lines));
        assert_eq!(report.message, "no https://***@h/");
        assert_eq!(
            report.log.as_deref(),
            Some("begins\nfetching https://***@h/")
        );
        assert!(
            report.others[0]
                .message
                .contains("cannot fetch https://***@h/")
        );
    }

    #[test]
    fn what_has_the_name_of_a_pipe_by_now_is_not_written_to() {
        let folder = tempfile::TempDir::new().unwrap();
        let victim = folder.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        let hard = folder.path().join("hard");
        std::fs::hard_link(&victim, &hard).unwrap();
        for swapped in [link, hard] {
            assert!(open_stream(&swapped).is_err(), "{}", swapped.display());
        }
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        // The control: a stream is opened, also by a link that is its name.
        assert!(open_stream(Path::new("/dev/null")).is_ok());
        assert!(open_stream(Path::new("/proc/self/fd/2")).is_ok());
    }

    #[test]
    fn a_report_that_cannot_be_written_is_refused_before_anything_else() {
        let folder = tempfile::TempDir::new().unwrap();
        for path in [
            folder.path().join("none/report.json"),
            folder.path().to_owned(),
        ] {
            let refused = ReportFile::prepare(&path, iter::empty());
            assert_eq!(refused.unwrap_err().class, Class::Config);
        }
    }

    #[test]
    fn a_report_takes_neither_the_place_of_an_output_nor_that_of_an_out_link() {
        let folder = tempfile::TempDir::new().unwrap();
        let at = |path: &str| folder.path().join(path);
        let output = "w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-a";
        std::fs::create_dir_all(at("store").join(output)).unwrap();
        std::fs::create_dir(at("store/.links")).unwrap();
        std::os::unix::fs::symlink(at("store").join(output), at("old")).unwrap();
        std::os::unix::fs::symlink(folder.path(), at("same")).unwrap();
        let other = "w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-b";
        let links = [at("result"), at("result-dev")];
        let long = "r".repeat(300);
        for (path, why) in [
            (at("old/report.json"), "in the store"),
            (at("store").join(output).join("r"), "in the store"),
            (at("store").join(other), "in the store"),
            (at("store/report.json"), "in the store"),
            (at("same/result"), "place of the out-link"),
            (at("result-dev"), "place of the out-link"),
            (at(&long), "too long"),
        ] {
            let refused = ReportFile::prepare(&path, links.iter().map(PathBuf::as_path));
            let refused = refused.unwrap_err();
            assert_eq!(refused.class, Class::Config);
            assert!(refused.to_string().contains(why), "{refused}");
        }
        let path = at("same/result-devel");
        assert!(ReportFile::prepare(&path, links.iter().map(PathBuf::as_path)).is_ok());
    }
}
