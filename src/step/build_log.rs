//! The log of a derivation that failed, in a file: it becomes an artifact, and its last lines are shown.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{
    self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::agent;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::DrvPath;
use crate::nix::output::{LAST_LINES, shortened_line};
use crate::nix::structured::{Event, LogReader};
use crate::private;
use crate::secret_lines::SecretLines;
use crate::secrets::redacted;
use crate::store::Store;
use crate::supervise::Supervisor;

/// How long Nix may take to print a log: it may be compressed, and large.
const TIME: Duration = Duration::from_secs(5);

/// How much of a log is read for its last lines, in bytes.
const END: u64 = 64 << 10;

/// How much of a line is looked at for credentials at once, in bytes.
const LINE_AT_MOST: u64 = 1 << 20;

/// A log in a file, which is removed with this value.
#[derive(Debug)]
pub(super) struct BuildLog {
    folder: TempDir,
    name: String,
}

impl BuildLog {
    /// The log that Nix has; none where it has not (`keep-build-log = false`, or a build on another machine).
    ///
    /// # Errors
    /// There is no room for it (75), or no `nix-store` (69); a signal asked us to end (128 + n).
    pub(super) fn read(
        drv: &DrvPath,
        store: &mut Store,
        temporary: &Path,
        supervisor: &mut Supervisor,
    ) -> Result<Option<Self>, Failure> {
        let log = Self::new(drv, temporary)?;
        let until = Instant::now() + TIME;
        let is_whole = store.write_build_log(supervisor, drv, &log.file(), until)?;
        if is_whole {
            log.hide_secrets()
                .classify(Class::Infrastructure, || "cannot copy a log".into())?;
        }
        Ok(is_whole.then_some(log))
    }

    /// A log of which only these lines are known.
    ///
    /// # Errors
    /// There is no room for it (75).
    pub(super) fn of_lines(drv: &DrvPath, lines: &str, temporary: &Path) -> Result<Self, Failure> {
        let log = Self::new(drv, temporary)?;
        agent::write(&log.file(), &redacted(lines))?;
        Ok(log)
    }

    fn new(drv: &DrvPath, temporary: &Path) -> Result<Self, Failure> {
        let log = Self {
            folder: agent::folder(temporary)?,
            name: artifact_of(drv),
        };
        if let Some(folder) = log.file().parent() {
            private::make_folders(folder).classify(Class::Infrastructure, || {
                format!("cannot make {}", folder.display())
            })?;
        }
        Ok(log)
    }

    /// Replaces the file by one without credentials, where it has some: every reader of the build can read an artifact.
    fn hide_secrets(&self) -> io::Result<()> {
        let beside = self.file().with_extension("shown");
        let mut shown = BufWriter::new(private::create(&beside)?);
        let mut log = BufReader::new(File::open(self.file())?);
        let mut has_some = false;
        let mut secrets = SecretLines::default();
        let mut line = Vec::new();
        // Of a longer line, the rest is another one: a builder may print gigabytes without a line break.
        while log
            .by_ref()
            .take(LINE_AT_MOST)
            .read_until(b'\n', &mut line)?
            > 0
        {
            let text = String::from_utf8_lossy(&line);
            let without = match secrets.shown(0, &text) {
                Cow::Owned(hidden) => Some(redacted(&hidden).into_owned()),
                Cow::Borrowed(text) => match redacted(text) {
                    Cow::Owned(without) => Some(without),
                    Cow::Borrowed(_) => None,
                },
            };
            has_some |= without.is_some();
            match without {
                Some(without) => shown.write_all(without.as_bytes())?,
                // What is no UTF-8 remains as it is.
                None => shown.write_all(&line)?,
            }
            line.clear();
        }
        shown.flush()?;
        if has_some {
            fs::rename(beside, self.file())
        } else {
            fs::remove_file(beside)
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    /// The folder that contains it, under its [name](Self::name).
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its name as an artifact.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its last lines, as text for people; none where it has none. A builder of Nix's own (`builtin:fetchurl`) writes a
    /// structured log, and Nix saves that as it is.
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
                Event::Plain(line) => {
                    text.push_str(&String::from_utf8_lossy(line.bytes));
                }
                Event::Message { text: said, .. } | Event::BuildLine { line: said, .. } => {
                    text.push_str(&said);
                }
                _ => return,
            }
            text.push('\n');
        };
        // A first line that is cut would be taken for plain text, although it is a part of a structured message.
        reader.read(whole_lines(&end, length > END), &mut add);
        reader.finish(&mut add);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LAST_LINES));
        // A carriage return overwrites what stands before it.
        let shown = last.map(|line| line.rsplit('\r').find(|part| !part.is_empty()));
        let last: Vec<String> = shown
            .map(|line| shortened_line(line.unwrap_or_default()))
            .collect();
        (!last.is_empty()).then(|| last.join("\n"))
    }
}

/// The end of a log without its first line where that is `cut`, as long as there is another line.
fn whole_lines(end: &[u8], cut: bool) -> &[u8] {
    let first = end.iter().position(|byte| cut && *byte == b'\n');
    match first.map(|at| &end[at + 1..]) {
        Some(rest) if !rest.is_empty() => rest,
        _ => end,
    }
}

/// The name of a log as an artifact, without characters that have a meaning in a pattern: the agent takes names for patterns.
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
        BuildLog::of_lines(&drv, lines, Path::new("/tmp")).unwrap()
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
    fn a_log_that_becomes_an_artifact_has_no_secret() {
        let log = seen("fetching https://u:s3cr3tpassw0rd@h/\n");
        let text = fs::read_to_string(log.file()).unwrap();
        assert_eq!(text, "fetching https://***@h/\n");
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

    #[test]
    fn a_first_line_that_is_cut_is_dropped_where_there_is_another() {
        for (end, cut, expected) in [
            ("a\nb\n", true, "b\n"),
            ("a\nb\n", false, "a\nb\n"),
            ("a\n", true, "a\n"),
            ("a", true, "a"),
            ("", true, ""),
        ] {
            let lines = whole_lines(end.as_bytes(), cut);
            assert_eq!(lines, expected.as_bytes(), "{end:?} {cut}");
        }
    }

    #[test]
    fn a_line_that_was_overwritten_is_shown_as_it_ended() {
        let log = seen("10%\r100%\r\ndone\r\n");
        assert_eq!(log.last_lines().as_deref(), Some("100%\ndone"));
        assert!(log.folder().join(log.name()).is_file());
    }
}
