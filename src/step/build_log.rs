//! The log of a derivation that failed, in a file: what an artifact is made of, and what is shown of it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::agent;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::DrvPath;
use crate::nix::command::{self, Options};
use crate::nix::output::{LAST_LINES, shortened_line};
use crate::nix::structured::{Event, LogReader};
use crate::parallel;
use crate::supervise::Supervisor;

/// How long Nix may take to give a log out: it may be packed, and large.
const TIME: Duration = Duration::from_secs(5);

/// How much of a log is looked at for its last lines, in bytes.
const END: u64 = 64 << 10;

/// A log in a file, which goes with this value.
#[derive(Debug)]
pub(super) struct BuildLog {
    folder: TempDir,
    name: String,
}

impl BuildLog {
    /// The log that Nix has kept; none where it has not (`keep-build-log = false`, or a build on another machine).
    ///
    /// # Errors
    /// There is no room for it (75), or no `nix-store` (69); a signal asked us to end (128 + n).
    pub(super) fn read(
        drv: &DrvPath,
        options: &Options,
        temporary: &Path,
        supervisor: &mut Supervisor,
    ) -> Result<Option<Self>, Failure> {
        let log = Self::new(drv, temporary)?;
        let mut line = command::read_log(drv, options);
        line.stdout = Some(log.file());
        let until = Instant::now() + TIME;
        let read = parallel::all(supervisor, &[line], Some(until))?;
        let whole = read.iter().all(|(finished, _)| finished.ending.success());
        Ok(whole.then_some(log))
    }

    /// A log of which only these lines were seen.
    ///
    /// # Errors
    /// There is no room for it (75).
    pub(super) fn seen(drv: &DrvPath, lines: &str, temporary: &Path) -> Result<Self, Failure> {
        let log = Self::new(drv, temporary)?;
        agent::write(&log.file(), lines)?;
        Ok(log)
    }

    fn new(drv: &DrvPath, temporary: &Path) -> Result<Self, Failure> {
        let log = Self {
            folder: agent::folder(temporary)?,
            name: artifact_of(drv),
        };
        if let Some(folder) = log.file().parent() {
            std::fs::create_dir_all(folder).classify(Class::Infrastructure, || {
                format!("cannot make {}", folder.display())
            })?;
        }
        Ok(log)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    /// The folder in which it stands under its [name](Self::name).
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its name as an artifact.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its last lines, as text for people; none where it has none. A builder of Nix's own (`builtin:fetchurl`) is a Nix that logs
    /// with structure, and Nix keeps that as it is.
    pub(super) fn last_lines(&self) -> Option<String> {
        let mut file = File::open(self.file()).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(END)))
            .ok()?;
        let mut end = Vec::new();
        file.read_to_end(&mut end).ok()?;
        let mut text = String::new();
        let mut reader = LogReader::default();
        let mut add = |event: Event<'_>| {
            match event {
                Event::Plain(line) => text.push_str(&String::from_utf8_lossy(line)),
                Event::Message { text: said, .. } | Event::BuildLine { line: said, .. } => {
                    text.push_str(&said);
                }
                _ => return,
            }
            text.push('\n');
        };
        // The first line may have lost its beginning, and with it what tells that it is structured.
        reader.read(whole_lines(&end, length > END), &mut add);
        reader.finish(&mut add);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LAST_LINES));
        // Who prints a carriage return writes over what stands before it.
        let shown = last.map(|line| line.rsplit('\r').find(|part| !part.is_empty()));
        let last: Vec<&str> = shown
            .map(|line| shortened_line(line.unwrap_or_default()))
            .collect();
        (!last.is_empty()).then(|| last.join("\n"))
    }
}

/// The end of a log without a first line that is `cut`, as long as there is another one.
fn whole_lines(end: &[u8], cut: bool) -> &[u8] {
    let first = end.iter().position(|byte| cut && *byte == b'\n');
    match first.map(|at| &end[at + 1..]) {
        Some(rest) if !rest.is_empty() => rest,
        _ => end,
    }
}

/// The name of a log as an artifact: of characters that mean nothing in a list of patterns, which is what names are taken for.
fn artifact_of(drv: &DrvPath) -> String {
    let plain = |it: char| {
        if it.is_ascii_alphanumeric() || "._-".contains(it) {
            it
        } else {
            '_'
        }
    };
    let name: String = drv.name().chars().take(80).map(plain).collect();
    format!(
        "eval-once-log/{name}-{}.log",
        &drv.as_store_path().hash()[..8]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of which these lines were seen.
    fn seen(lines: &str) -> BuildLog {
        let drv = DrvPath::parse("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a.drv").unwrap();
        BuildLog::seen(&drv, lines, &std::env::temp_dir()).unwrap()
    }

    #[test]
    fn an_artifacts_name_is_of_safe_characters() {
        let drv = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a?b+c=d.drv";
        assert_eq!(
            artifact_of(&DrvPath::parse(drv).unwrap()),
            "eval-once-log/a_b_c_d-01234567.log"
        );
    }

    #[test]
    fn the_end_of_a_log_is_its_last_lines() {
        let lines: Vec<String> = (0..100).map(|n| format!("line {n}")).collect();
        let log = seen(&lines.join("\n"));
        let last = log.last_lines().unwrap();
        assert!(
            last.starts_with("line 75\n") && last.ends_with("line 99"),
            "{last}"
        );
        assert_eq!(seen("").last_lines(), None);
    }

    #[test]
    fn a_structured_log_is_shown_as_what_it_says() {
        let progress = r#"@nix {"action":"result","fields":[3,3,0,0],"id":1,"type":105}"#;
        let said = format!(
            "begins\n@nix {{\"action\":\"msg\",\"level\":0,\"msg\":\"no such\\nfile\"}}\n{progress}\n@nix is a name\n{progress}"
        );
        let log = seen(&said);
        assert_eq!(
            log.last_lines().as_deref(),
            Some("begins\nno such\nfile\n@nix is a name")
        );
        // Longer than what is looked at: the first line that is seen is not a whole one.
        let many = format!("{progress}\n").repeat(2000);
        assert_eq!(seen(&many).last_lines(), None);
        let unbroken = "x".repeat(100_000);
        assert!(seen(&unbroken).last_lines().is_some());
    }
}
