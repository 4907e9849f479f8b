//! Infrastructure failures, as the messages name them with which Nix ends: those of 2.8, 2.26 and 2.34.

use crate::exit::{DISK_FULL, Failure};

/// What a failure means that is of this host, and stays until that is mended.
pub const OF_THIS_HOST: &str = "Infrastructure failure of this host; retrying only helps on another host, or once this one is mended.";

/// An infrastructure failure of an evaluation or a build: neither an expression nor a derivation can help it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// Nix itself could not write: the disk is full.
    DiskFull,
    /// The daemon disconnected, or does not run.
    DaemonGone,
    /// A download failed, and not because a server refused it.
    NotDownloaded,
    /// A remote builder could not be reached.
    BuilderGone,
    /// A signal interrupted Nix alone.
    Interrupted,
    /// A limit of this host was reached: processes, open files, memory.
    Limit,
    /// The store has a `.drv` whose file is empty, cut off or lost.
    DamagedDrv,
    /// The host's settings name a store in which nothing can be written or built.
    Store,
    /// A GC root would lie in the store: the state folder does.
    RootInStore,
    /// A hook of the host's Nix failed: `post-build-hook`, when the build had succeeded, or `pre-build-hook`.
    Hook,
    /// Another error of the operating system.
    System,
}

impl Trouble {
    /// The failure of which this is the reason, with what to do about it, and what it means for a retry.
    #[must_use]
    pub fn tell(self, failure: Failure) -> Failure {
        let failure = match self {
            Self::DamagedDrv | Self::Store | Self::RootInStore => failure.meaning(OF_THIS_HOST),
            _ => failure,
        };
        match self.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::DiskFull => DISK_FULL,
            Self::DaemonGone => {
                "retry; if it happens again, look in the Nix daemon's log: it was restarted, or killed when memory ran out"
            }
            Self::NotDownloaded => {
                "retry, or set the option `fallback`: Nix then builds what a cache cannot deliver"
            }
            Self::Interrupted => {
                "retry, or run fewer jobs at once on this host: something sent a signal to Nix alone, as `earlyoom` does when memory runs out"
            }
            Self::Limit => {
                "raise the agent's limits (`ulimit -a`: processes, open files, memory), or run fewer jobs at once on this host"
            }
            Self::DamagedDrv => {
                "write it anew with `nix-instantiate --repair FILE -A ATTR` on this host (of a flake, with `--repair --expr '(builtins.getFlake \"URL\").ATTR'`): its store has lost contents of files, as after a power failure, which `nix-store --verify --check-contents` lists"
            }
            Self::Store => {
                "check NIX_REMOTE and the setting `store`: they name a store in which this Nix cannot write or build"
            }
            Self::RootInStore => "set EVAL_ONCE_STATE_DIR to a folder outside of the store",
            Self::Hook => {
                "mend the hook (`post-build-hook` or `pre-build-hook` in nix.conf; with a daemon, in the daemon's), then retry: what is built is found, and `post-build-hook` does not run for it again"
            }
            Self::BuilderGone | Self::System => return None,
        })
    }
}

/// Errors of the system (`strerror`, in the words of glibc and macOS) that are not about the file that a message names.
const OF_THE_SYSTEM: [(&str, Trouble); 32] = [
    ("No space left on device", Trouble::DiskFull),
    ("Disk quota exceeded", Trouble::DiskFull),
    ("Disc quota exceeded", Trouble::DiskFull),
    ("Broken pipe", Trouble::DaemonGone),
    ("Connection reset by peer", Trouble::DaemonGone),
    ("Resource temporarily unavailable", Trouble::Limit),
    ("Too many open files", Trouble::Limit),
    ("Too many open files in system", Trouble::Limit),
    ("Cannot allocate memory", Trouble::Limit),
    // 2.26, when no more files can be opened: it does not look whether the lock's file was.
    ("Bad file descriptor", Trouble::Limit),
    ("No locks available", Trouble::Limit),
    ("Input/output error", Trouble::System),
    ("Interrupted system call", Trouble::System),
    ("Read-only file system", Trouble::System),
    ("Stale file handle", Trouble::System),
    ("Stale NFS file handle", Trouble::System),
    ("Device or resource busy", Trouble::System),
    ("Text file busy", Trouble::System),
    ("Connection refused", Trouble::System),
    ("Connection timed out", Trouble::System),
    ("Operation timed out", Trouble::System),
    ("Connection aborted", Trouble::System),
    ("Software caused connection abort", Trouble::System),
    ("No route to host", Trouble::System),
    ("Network is unreachable", Trouble::System),
    ("Network is down", Trouble::System),
    ("Transport endpoint is not connected", Trouble::System),
    ("Socket is not connected", Trouble::System),
    ("Cannot assign requested address", Trouble::System),
    ("No such device", Trouble::System),
    ("No child processes", Trouble::System),
    ("Structure needs cleaning", Trouble::System),
];

/// What `SQLite` says.
const OF_THE_DATABASE: [(&str, Trouble); 7] = [
    (" is busy", Trouble::System),
    (" is locked", Trouble::System),
    // No more files can be opened, for example.
    ("unable to open database file", Trouble::Limit),
    ("disk is full", Trouble::DiskFull),
    ("readonly database", Trouble::System),
    ("image is malformed", Trouble::System),
    ("I/O error", Trouble::DiskFull),
];

/// Errors of the system about a file that is not as expected. An expression may have named that file.
const OF_A_FILE: [&str; 12] = [
    "No such file or directory",
    "Is a directory",
    "Not a directory",
    "Permission denied",
    "Operation not permitted",
    "File exists",
    "File name too long",
    "Too many levels of symbolic links",
    "Invalid argument",
    "Directory not empty",
    "Invalid cross-device link",
    "Illegal seek",
];

/// How messages begin about what Nix does by itself, and no expression asks for: it writes, while an evaluation only reads what
/// the expression names.
const NIXS_OWN: [&str; 17] = [
    "acquiring",
    "changing ",
    "cloning ",
    "creating ",
    "deleting ",
    "forking ",
    "linking ",
    "locking ",
    "moving ",
    "opening lock file ",
    "opening pseudoterminal",
    "removing ",
    "renaming ",
    "setting ",
    "unable to fork",
    "unlinking ",
    "writing ",
];

/// The infrastructure failure that a message names, if any. While Nix builds, there is no expression that could have named a
/// missing file: any error of the system counts then.
pub(super) fn trouble(message: &str, building: bool) -> Option<Trouble> {
    if is_about_a_database(message)
        && let Some((_, trouble)) = OF_THE_DATABASE
            .iter()
            .find(|(words, _)| message.contains(words))
    {
        return Some(*trouble);
    }
    // Another Nix makes the store, and has not written its version yet.
    if ["/db/schema\" is corrupt", "/db/schema' is corrupt"]
        .iter()
        .any(|end| message.ends_with(end))
    {
        return Some(Trouble::System);
    }
    // 2.8, while it downloads.
    let download = message.starts_with("download of '") && message.ends_with("' was interrupted");
    if download || message.starts_with("interrupted by the user") {
        return Some(Trouble::Interrupted);
    }
    if ["unable to fork", "cannot fork"]
        .iter()
        .any(|start| message.starts_with(start))
        || ["out of memory", "std::bad_alloc", "Out of memory"].contains(&message)
    {
        return Some(Trouble::Limit);
    }
    if is_about_the_daemon(message) {
        return Some(Trouble::DaemonGone);
    }
    if let Some(trouble) = of_the_store(message) {
        return Some(trouble);
    }
    if building && message.starts_with("error parsing derivation ") {
        return Some(Trouble::DamagedDrv);
    }
    if is_not_downloaded(message) {
        return Some(Trouble::NotDownloaded);
    }
    if is_about_a_hook(message, building) {
        return Some(Trouble::Hook);
    }
    // The `build-hook` that speaks with remote builders, or what it runs, has ended.
    if building && message.starts_with("unexpected EOF reading a line") {
        return Some(Trouble::BuilderGone);
    }
    // The system's words stand at the end of Nix's message, or of the first line of it. A line that ends within quotes is the
    // begin of a name that the expression chose: 2.8 breaks the line where the name does.
    let mut ends = [message.lines().next(), message.lines().last()]
        .into_iter()
        .flatten()
        .filter(|line| line.matches(['\'', '"']).count() % 2 == 0)
        .map(|line| line.trim_end_matches(['.', ')']));
    let of_the_system = |line: &str| {
        OF_THE_SYSTEM
            .iter()
            .find(|(words, _)| says(line, words))
            .map(|(_, trouble)| *trouble)
    };
    if let Some(trouble) = ends.clone().find_map(of_the_system) {
        return Some(trouble);
    }
    let own = building || NIXS_OWN.iter().any(|start| message.starts_with(start));
    let of_a_file = |line: &str| OF_A_FILE.iter().any(|words| says(line, words));
    (own && ends.any(of_a_file)).then_some(Trouble::System)
}

/// Whether an error is of one of Nix's databases: that it is busy, or another one, which ends with the name of its file. (A text that
/// an expression throws is known for its own.)
fn is_about_a_database(message: &str) -> bool {
    let name = message
        .strip_suffix("')")
        .and_then(|message| message.rsplit_once(" (in '"));
    unquoted(message).contains("SQLite ") || name.is_some_and(|(_, file)| file.ends_with(".sqlite"))
}

/// A message up to its first quote: what is quoted may be a name that the expression chose, and hold anything.
fn unquoted(message: &str) -> &str {
    message.split(['\'', '"']).next().unwrap_or_default()
}

/// Whether a line ends with the system's words, alone or after what Nix was doing.
fn says(line: &str, words: &str) -> bool {
    line.strip_suffix(words)
        .is_some_and(|before| before.is_empty() || before.ends_with(": "))
}

/// Whether an error says that a program failed which Nix runs for its host's sake: `program '/etc/nix/upload' failed with exit
/// code 1`, in the same words for each hook. While it builds, Nix runs no other. While it evaluates, it also runs `git` and the
/// like, by their names alone.
fn is_about_a_hook(message: &str, building: bool) -> bool {
    let program = ['\'', '"'].into_iter().find_map(|quote| {
        let quoted = message.strip_prefix("program ")?.strip_prefix(quote)?;
        let (program, how) = quoted.split_once(quote)?;
        how.starts_with(" failed ").then_some(program)
    });
    program.is_some_and(|program| building || program.starts_with('/'))
}

/// Whether an error says that the daemon does not run, or disconnected.
fn is_about_the_daemon(error: &str) -> bool {
    [
        "unexpected end-of-file",
        "Nix daemon disconnected unexpectedly",
        "cannot connect to socket",
        "cannot open connection to remote store",
    ]
    .iter()
    .any(|start| error.starts_with(start))
}

/// What is wrong with the store that the host's settings name, or with a root in it: neither is a fault of an expression, which cannot
/// choose them.
fn of_the_store(message: &str) -> Option<Trouble> {
    let begins = |start: &str| message.starts_with(start);
    // The setting `store = dummy://`; a binary cache as `NIX_REMOTE`.
    let cannot = begins("operation '") && message.contains("' is not supported by store '")
        || begins("don't know how to open Nix store ")
        || begins("Cannot parse Nix store ")
        || begins("the path ")
            && message.contains(" is a symlink; this is not allowed for the Nix store")
        || message
            .trim_start_matches(['U', 'u'])
            .starts_with("nable to build with a primary store that isn't a local store");
    if cannot {
        return Some(Trouble::Store);
    }
    (begins("creating a garbage collector root (")
        && message.contains(" in the Nix store is forbidden"))
    .then_some(Trouble::RootInStore)
}

/// Whether Nix refuses its own settings: those of nix.conf and `NIX_CONFIG`.
pub(super) fn is_about_settings(message: &str) -> bool {
    let begins = |start: &str| message.starts_with(start);
    begins("illegal configuration line '")
        || begins("syntax error in configuration line '")
        || begins("configuration setting '")
        || ["setting '", "Boolean setting '", "option '"]
            .iter()
            .any(|start| begins(start))
            && message.contains("' has invalid value '")
        || is_about_build_users(message)
}

/// Whether Nix has no users to build as. It asks for them where root builds without a daemon, though nobody has set that.
pub(super) fn is_about_build_users(message: &str) -> bool {
    message.starts_with("the group '") && message.contains("' specified in 'build-users-group' ")
        || message.starts_with("the build users group '") && message.ends_with("' has no members")
}

/// What to do about it.
pub const BUILD_USERS: &str = "make the group, with users of its own for builds; or set `build-users-group =` in nix.conf, and builds run as root";

/// Whether a download failed because no server answered, or because of an answer that may differ on a retry. A server that has
/// no such file (404) or does not give it (401) answers the same again.
fn is_not_downloaded(error: &str) -> bool {
    if error.starts_with("some substitutes for ") {
        return true;
    }
    // Later versions quote it in their message about an archive.
    if !unquoted(error).ends_with("unable to download ") {
        return false;
    }
    let (_, why) = error.split_once('\'').unwrap_or_default();
    // 407 is the proxy's, of this host.
    let later = [
        "HTTP error 407",
        "HTTP error 408",
        "HTTP error 429",
        "rate limit",
    ];
    let never = [
        "HTTP error 4",
        "Unsupported protocol",
        "URL using bad/illegal format",
        // Of `file://`: 2.8 begins with "Couldn't", later versions with "Could not".
        "read a file:// file",
    ];
    later.iter().any(|words| why.contains(words)) || !never.iter().any(|words| why.contains(words))
}

/// Whether git, which Nix runs to fetch sources, reports that it cannot reach a server. Nix then only says that git failed.
pub(super) fn is_git_without_network(text: &str) -> bool {
    text.starts_with("fatal: unable to access '") && !text.contains("returned error: 4")
        || text.starts_with("ssh: Could not resolve hostname ")
        || text.starts_with("ssh: connect to host ")
}

/// Whether a message may be about a failed fetch by git: `program 'git' failed`, `resolving Git reference 'master'`,
/// `Failed to fetch git repository`. A name that the expression chose may hold these letters too.
pub(super) fn may_be_of_git(message: &str) -> bool {
    let by_itself = unquoted(message).to_ascii_lowercase();
    message.starts_with("program 'git'")
        || by_itself
            .split(|c: char| !c.is_ascii_alphanumeric())
            .any(|word| word == "git")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_system_is_not_confused_with_a_missing_file_of_the_user() {
        for (message, while_evaluating, while_building) in [
            (
                "committing transaction: database or disk is full, database or disk is full (in '/nix/var/nix/db/db.sqlite')",
                Some(Trouble::DiskFull),
                Some(Trouble::DiskFull),
            ),
            (
                "executing SQLite statement 'x': attempt to write a readonly database (in '/nix/var/nix/db/db.sqlite')",
                Some(Trouble::System),
                Some(Trouble::System),
            ),
            ("the database or disk is full", None, None),
            (
                "\"/nix/var/nix/db/schema\" is corrupt",
                Some(Trouble::System),
                Some(Trouble::System),
            ),
            (
                "error parsing derivation '/s/x.drv': error: expected string 'Derive(['",
                None,
                Some(Trouble::DamagedDrv),
            ),
            (
                "opening file '/x/ci.nix': No such file or directory",
                None,
                Some(Trouble::System),
            ),
            (
                "getting status of '/src/missing': No such file or directory",
                None,
                Some(Trouble::System),
            ),
            ("path '/x/ci.nix' does not exist", None, None),
            (
                "reading from file '/tmp': Is a directory",
                None,
                Some(Trouble::System),
            ),
            (
                "creating directory '/nonexistent/nix-build-x': No such file or directory",
                Some(Trouble::System),
                Some(Trouble::System),
            ),
            ("No space left on device is what it says", None, None),
            ("the disk: No space left on device!", None, None),
            (
                "executing SQLite statement 'pragma synchronous = normal': unable to open database file (in '/var/db/db.sqlite')",
                Some(Trouble::Limit),
                Some(Trouble::Limit),
            ),
            // A name that the expression chose, which 2.8 prints as it is.
            ("attribute 'SQLite is busy' missing", None, None),
            ("attribute 'a: Broken pipe\nb' missing", None, None),
            ("attribute 'unable to download 'x': y' missing", None, None),
        ] {
            assert_eq!(trouble(message, false), while_evaluating, "{message}");
            assert_eq!(trouble(message, true), while_building, "{message}");
        }
    }

    #[test]
    fn a_program_that_nix_runs_is_a_hook_unless_an_evaluation_may_have_asked_for_it() {
        for (message, while_evaluating, while_building) in [
            ("program '/etc/hook' failed with exit code 7", true, true),
            (
                "program \"/etc/hook\" failed due to signal 9 (Killed)",
                true,
                true,
            ),
            ("program 'hook' failed with exit code 1", false, true),
            ("program 'git' failed with exit code 128", false, true),
            ("program '/etc/hook' is what failed here", false, false),
            ("program '/etc/hook", false, false),
        ] {
            for (building, is_hook) in [(false, while_evaluating), (true, while_building)] {
                let is_found = trouble(message, building) == Some(Trouble::Hook);
                assert_eq!(is_found, is_hook, "{message}");
            }
        }
    }

    #[test]
    fn a_name_that_contains_git_is_not_about_git() {
        for (message, is_of_git) in [
            ("program 'git' failed with exit code 128", true),
            ("resolving Git reference 'master' in repository 'x'", true),
            ("Failed to fetch git repository 'https://x/y'", true),
            ("attribute 'digit' missing", false),
            ("attribute 'git' missing", false),
        ] {
            assert_eq!(may_be_of_git(message), is_of_git, "{message}");
        }
    }

    #[test]
    fn a_server_that_answers_is_no_trouble_unless_it_may_answer_otherwise() {
        for (why, is_trouble) in [
            ("Couldn't resolve host name (6)", true),
            ("Could not connect to server (7) Failed to connect", true),
            ("HTTP error 500", true),
            ("HTTP error 429", true),
            (
                "HTTP error 403\n\nresponse body:\n\nAPI rate limit exceeded",
                true,
            ),
            ("HTTP error 404 ('Not Found')", false),
            ("HTTP error 401", false),
            ("HTTP error 407", true),
            ("Unsupported protocol (1)", false),
            ("Couldn't read a file:// file (37)", false),
            ("Could not read a file:// file (37)", false),
        ] {
            let message = format!("unable to download 'https://x/y': {why}");
            let archive =
                format!("Failed to open archive (Source threw exception: error: {message})");
            for message in [message, archive] {
                assert_eq!(
                    trouble(&message, false) == Some(Trouble::NotDownloaded),
                    is_trouble,
                    "{message}"
                );
            }
        }
    }
}
