//! Programs as data: what is to be run, as what, and how it ended. Nothing here runs anything.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use unix::sys::signal::Signal;

use crate::secrets::{redacted, shortened};

/// A program and its arguments, as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The program's name, looked up on `PATH`.
    pub program: &'static str,
    /// Its arguments, without the program's name.
    pub arguments: Vec<OsString>,
    /// The folder it runs in; ours where there is none.
    pub folder: Option<PathBuf>,
    /// Its standard input.
    pub stdin: Stdin,
    /// A file that its standard output is written to, replacing it; none: we read the output.
    pub stdout: Option<PathBuf>,
    /// How much of its standard output is kept, where we read it.
    pub output_limit: OutputLimit,
    /// Whether its standard error is an answer, of which no part may be missing (`--dry-run`), and not only for people.
    pub answers_on_stderr: bool,
    /// Variables that are set for it, besides our own environment.
    pub variables: Vec<(&'static str, OsString)>,
    /// The arguments that are expressions of ours, by their numbers, and the names that they are shown by.
    names: Vec<(usize, &'static str)>,
}

/// The standard input of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stdin {
    /// `/dev/null`.
    Nothing,
    /// This file.
    File(PathBuf),
    /// What is sent to it while it runs.
    Lines,
}

/// How much of a program's standard output is kept. What is printed may be of an untrusted repository's choosing, and is in memory
/// until it has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputLimit {
    /// All of it, up to this many bytes. A program that prints more is stopped, and fails: a part of an answer is no answer.
    Whole(usize),
    /// Its first bytes, which are only shown. The program runs on.
    Beginning(usize),
    /// None of it, nor is it read: a program that prints more than a pipe holds waits there until it is ended.
    Unread,
}

/// How many bytes of standard output a program may print where nothing else is said: a closure of 500,000 paths.
const OUTPUT_AT_MOST: usize = 64 << 20;

/// How many characters the short form of a command has, and of one of its words.
const SHORT_AT_MOST: usize = 1_000;
const WORD_AT_MOST: usize = 200;

impl CommandLine {
    /// `program` with these arguments, in our own folder.
    #[must_use]
    pub fn new(program: &'static str, arguments: &[&str]) -> Self {
        Self {
            program,
            arguments: arguments.iter().map(OsString::from).collect(),
            folder: None,
            stdin: Stdin::Nothing,
            stdout: None,
            output_limit: OutputLimit::Whole(OUTPUT_AT_MOST),
            answers_on_stderr: false,
            variables: Vec::new(),
            names: Vec::new(),
        }
    }

    /// Names an argument that is an expression of ours: a reader wants to know which one it is, and not read it.
    pub fn name_argument(&mut self, number: usize, name: &'static str) {
        self.names.push((number, name));
    }

    /// In one line of about a thousand characters, for a reader who wants to know which commands are run: with the names of our own
    /// expressions, and the beginnings of long words. Without the credentials in its URLs.
    #[must_use]
    pub fn in_short(&self) -> String {
        let mut short = String::new();
        for (name, value) in &self.variables {
            short.extend([name, "=", &short_word(OsStr::new(value)), " "]);
        }
        short.push_str(self.program);
        for (number, word) in self.arguments.iter().enumerate() {
            // A question about ten thousand paths is one command.
            if short.chars().count() > SHORT_AT_MOST {
                let rest = self.arguments.len() - number;
                short.extend([" … and ", &rest.to_string(), " more"]);
                break;
            }
            short.push(' ');
            match self.names.iter().find(|(named, _)| *named == number) {
                Some((_, name)) => short.extend(["<", name, ">"]),
                None => short.push_str(&short_word(word)),
            }
        }
        short
    }

    /// The argument vector, the program's name first.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let words = self
            .arguments
            .iter()
            .map(|word| word.to_string_lossy().into_owned());
        std::iter::once(self.program.to_owned())
            .chain(words)
            .collect()
    }
}

/// As one could paste it into a shell; without the credentials in its URLs.
impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.variables {
            write!(f, "{name}={} ", shell_word(value).to_string_lossy())?;
        }
        f.write_str(self.program)?;
        for word in &self.arguments {
            let text = word.to_string_lossy();
            let word = match redacted(&text) {
                Cow::Owned(shown) => shell_word(OsStr::new(&shown)),
                Cow::Borrowed(_) => shell_word(word),
            };
            write!(f, " {}", word.to_string_lossy())?;
        }
        if let Stdin::File(stdin) = &self.stdin {
            write!(f, " <{}", shell_word(stdin.as_os_str()).to_string_lossy())?;
        }
        if let Some(stdout) = &self.stdout {
            write!(f, " >{}", shell_word(stdout.as_os_str()).to_string_lossy())?;
        }
        Ok(())
    }
}

/// `word` as a POSIX shell reads it back.
#[must_use]
pub fn shell_word(word: &OsStr) -> OsString {
    let bytes = word.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"@%+=:,./_-".contains(byte);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return word.to_owned();
    }
    let parts: Vec<&[u8]> = bytes.split(|byte| *byte == b'\'').collect();
    OsString::from_vec([b"'", parts.join(&br"'\''"[..]).as_slice(), b"'"].concat())
}

/// The beginning of a word, in one line, as a POSIX shell reads it back.
fn short_word(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    // Before it is cut: of a URL that ends in its password, nothing would be recognised.
    let text = redacted(&text);
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = if text.contains('\n') {
        words.join(" ").into()
    } else {
        text
    };
    let line = shortened(&line, WORD_AT_MOST);
    shell_word(OsStr::new(&line)).to_string_lossy().into_owned()
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl Ending {
    /// Whether it ended with status 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl From<ExitStatus> for Ending {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, signal) => Self::Killed(signal.unwrap_or_default()),
        }
    }
}

/// In words: `ended with status 1`, `was killed by SIGKILL`.
impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "ended with status {status}"),
            Self::Killed(signal) => write!(f, "was killed by {}", signal_name(*signal)),
        }
    }
}

/// The name of a signal, as `kill -l` lists it with `SIG` before it.
#[must_use]
pub fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(
        |_| format!("signal {signal}"),
        |signal| signal.as_str().to_owned(),
    )
}

/// A program that our process becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its argument vector, its own name first.
    pub arguments: Vec<OsString>,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// Finds `program` as a shell and the agent do: a name with a `/` is a path, any other is looked for on `path`.
#[must_use]
pub fn find_program(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    let executable = |file: &Path| {
        file.metadata()
            .is_ok_and(|metadata| !metadata.is_dir() && metadata.permissions().mode() & 0o111 != 0)
    };
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program)).filter(|file| executable(file));
    }
    // An empty list has no entry, though it splits into one.
    let folders = std::env::split_paths(path).filter(|_| !path.is_empty());
    folders
        .map(|folder| {
            if folder.as_os_str().is_empty() {
                PathBuf::from(".")
            } else {
                folder
            }
            .join(program)
        })
        .find(|file| executable(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_pasted() {
        let line = CommandLine::new("nix-store", &["--realise", "it's", "", "${x}"]);
        assert_eq!(line.to_string(), r"nix-store --realise 'it'\''s' '' '${x}'");
    }

    #[test]
    fn a_short_command_is_one_line_with_the_names_of_our_expressions() {
        let mut line = CommandLine::new("nix-instantiate", &["-E", "# ours\n1\n"]);
        line.name_argument(1, "walk");
        line.arguments
            .extend(["--arg", "x", "{\n  a = 1;\n}", ""].map(OsString::from));
        assert_eq!(
            line.in_short(),
            "nix-instantiate -E <walk> --arg x '{ a = 1; }' ''"
        );
        let url = format!("https://user:{}@h/", "x".repeat(300));
        let line = CommandLine::new("nix", &[&url, &"y".repeat(300)]);
        let short = line.in_short();
        assert!(short.starts_with("nix 'https://***@h/' 'yyyy"), "{short}");
        assert!(short.ends_with("y…'") && short.len() < 300, "{short}");
        let many = CommandLine::new(
            "nix-store",
            &vec!["/s/0123456789abcdfghijklmnpqrsvwxyz-a"; 10_000],
        );
        let short = many.in_short();
        assert!(short.len() < 1_100, "{short}");
        assert!(short.ends_with("-a … and 9973 more"), "{short}");
    }

    #[test]
    fn a_word_of_any_bytes_can_be_pasted() {
        let word = OsStr::from_bytes(b"it's $HOME `x` \xff \n end");
        let mut script = OsString::from("printf %s ");
        script.push(shell_word(word));
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(script)
            .output()
            .unwrap();
        assert_eq!(output.stdout, word.as_bytes());
    }
}
