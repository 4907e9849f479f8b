//! The checkout that the agent makes for a job, as data: which commands of git it runs, with which arguments.
//!
//! Followed are the rules of the agent's default checkout (`internal/job/checkout.go`, `checkout_workdir.go` and
//! `checkout_fetch.go` of v3.137.0) into an empty folder: `git clone` with the clone flags; `git fetch` of the refspec, else of the
//! pull request's reference and the commit (GitHub), else of the branch (where the commit is `HEAD`), else of the commit, with the
//! fetch flags, and of all branches and tags where a known commit cannot be fetched by its name; `git checkout` with the checkout
//! flags; `git submodule sync` and `update`.
//!
//! Not followed: mirrors, sparse checkouts, `ssh-keyscan`, `BUILDKITE_GIT_SSH_KEY`, Git LFS beyond the filters that git's own
//! configuration has, the verification of commits, and `checkout` hooks. A folder that is new needs no `git clean`.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use super::shell_words::{self, EmptyWords};
use crate::command_line::{CommandLine, OutputLimit, shell_word};
use crate::fingerprint::fingerprint;
use crate::secrets::{self, redacted};

/// The commit of a build that is to find its branch's latest one.
const HEAD: &str = "HEAD";

/// All branches and tags.
const EVERYTHING: [&str; 2] = [
    "+refs/heads/*:refs/remotes/origin/*",
    "+refs/tags/*:refs/tags/*",
];

/// What the agent would check out for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// `BUILDKITE_REPO`, which may hold credentials; empty where the job has none.
    pub url: String,
    /// `BUILDKITE_COMMIT`: usually a full hash; or `HEAD`, or another name.
    pub commit: String,
    /// `BUILDKITE_BRANCH`.
    pub branch: String,
    /// `BUILDKITE_REFSPEC`: one or several, which are fetched instead.
    pub refspec: Option<String>,
    /// `BUILDKITE_PULL_REQUEST`: its number.
    pub pull_request: Option<String>,
    /// `BUILDKITE_PULL_REQUEST_USING_MERGE_REFSPEC`: the merge of the pull request is built, not its head.
    pub merged: bool,
    /// `BUILDKITE_PIPELINE_PROVIDER`.
    pub provider: String,
    /// `BUILDKITE_GIT_CLONE_FLAGS`.
    pub clone_flags: String,
    /// `BUILDKITE_GIT_FETCH_FLAGS`.
    pub fetch_flags: String,
    /// `BUILDKITE_GIT_CHECKOUT_FLAGS`.
    pub checkout_flags: String,
    /// `BUILDKITE_GIT_SUBMODULES`.
    pub submodules: bool,
    /// `BUILDKITE_GIT_SUBMODULE_CLONE_CONFIG`: settings of git, separated by commas.
    pub submodule_config: String,
    /// `BUILDKITE_BUILD_ID`: what is not named by its hash may be another commit in another build.
    pub build: String,
    /// The name of the folder of the agent's own checkout. Nix takes it into the store path of `./.`, and so into the `.drv`.
    pub folder_name: OsString,
}

/// The repository and the commit, without credentials.
impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { commit, url, .. } = self;
        write!(f, "{commit} of {}", redacted(url))
    }
}

/// The commands that make a checkout, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckoutLines {
    /// Clones the repository, without files.
    pub clone: CommandLine,
    /// Fetches what is checked out.
    pub fetch: CommandLine,
    /// Fetches all branches and tags, where the former fails: a known commit may be among them.
    pub fetch_all: Option<CommandLine>,
    /// Checks out.
    pub check_out: CommandLine,
    /// Gets the submodules, where the commit has some.
    pub submodules: Vec<CommandLine>,
}

/// A URL that holds a login, in parts.
struct Login<'a> {
    /// The URL of the server, without the login.
    server: String,
    /// What follows.
    path: &'a str,
    /// The login as git's helper `credential-store` reads it.
    text: String,
}

impl Repository {
    /// The login in the repository's URL, where that holds one. It is given to git in a file: the URL would be in the arguments of git
    /// and of its transport, which every user of the host can read, and in the checkout.
    fn login(&self) -> Option<Login<'_>> {
        let (scheme, rest) = self.url.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let (user, host) = authority.rsplit_once('@')?;
        let is_http = ["http", "https"]
            .iter()
            .any(|it| scheme.eq_ignore_ascii_case(it));
        if !is_http || secrets::find(&self.url).is_none() {
            return None;
        }
        // A token alone is a user with an empty password.
        let colon = if user.contains(':') { "" } else { ":" };
        Some(Login {
            server: format!("{scheme}://{host}"),
            path: &rest[authority.len()..],
            text: format!("{scheme}://{user}{colon}@{host}\n"),
        })
    }

    /// What has to be in a file that only this user can read, for [`Self::lines`] to name: the login that the URL holds.
    #[must_use]
    pub fn login_file(&self) -> Option<String> {
        self.login().map(|login| login.text)
    }

    /// The commands that make the checkout in an empty `folder`; `login` is the file with [`Self::login_file`].
    ///
    /// # Errors
    /// A variable makes no sense; the sentence names it.
    pub fn lines(&self, folder: &Path, login: Option<&Path>) -> Result<CheckoutLines, String> {
        let clone_flags = split("BUILDKITE_GIT_CLONE_FLAGS", &self.clone_flags)?;
        let fetch_flags = split("BUILDKITE_GIT_FETCH_FLAGS", &self.fetch_flags)?;
        let checkout_flags = split("BUILDKITE_GIT_CHECKOUT_FLAGS", &self.checkout_flags)?;
        if !is_reference(&self.commit) {
            return Err(format!(
                "BUILDKITE_COMMIT is {:?}, which names no commit",
                self.commit
            ));
        }
        let is_known = self.commit != HEAD;
        let refs = self.fetched()?;
        // A refspec is fetched as it is, or not at all.
        let has_second_try = is_known && self.refspec.is_none();
        let mut url = Cow::Borrowed(self.url.as_str());
        let mut settings = Vec::new();
        if let (Some(Login { server, path, .. }), Some(file)) = (self.login(), login) {
            // The name of a setting ends at the first of these, and what follows would be its value: a helper, which git runs.
            if server.contains('=') {
                return Err(format!(
                    "BUILDKITE_REPO names the server {server:?}, which is none"
                ));
            }
            // What other helpers know of this server does not count: the URL would not have asked them.
            let setting = format!("credential.{server}.helper=");
            // Git passes a helper to a shell.
            let file = shell_word(file.as_os_str());
            let ours = format!("{setting}store --file={}", file.to_string_lossy());
            settings = vec!["-c".to_owned(), setting, "-c".to_owned(), ours];
            url = Cow::Owned(server + path);
        }
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let git = |words: &[&[&str]]| git(folder, &[&[&settings[..]], words].concat());
        let fetch = |refs: &[&str]| {
            let flags: Vec<&str> = fetch_flags.iter().map(String::as_str).collect();
            git(&[&["fetch", "--progress"], &flags, &["--", "origin"], refs])
        };
        let clone_flags: Vec<&str> = clone_flags.iter().map(String::as_str).collect();
        let checkout_flags: Vec<&str> = checkout_flags.iter().map(String::as_str).collect();
        let refs: Vec<&str> = refs.iter().map(String::as_str).collect();
        let commit = if is_known { &self.commit } else { "FETCH_HEAD" };
        let config = self.submodule_config.split(',');
        let config: Vec<&str> = config
            .filter(|setting| !setting.is_empty())
            .flat_map(|setting| ["-c", setting])
            .collect();
        let update: &[&str] = &["submodule", "update", "--init", "--recursive", "--force"];
        Ok(CheckoutLines {
            clone: git(&[
                &["clone", "--progress", "--no-checkout"],
                &clone_flags,
                &["--", &url, "."],
            ]),
            fetch: fetch(&refs),
            fetch_all: has_second_try.then(|| fetch(&EVERYTHING)),
            check_out: git(&[
                &["checkout", "--progress"],
                &checkout_flags,
                &[commit, "--"],
            ]),
            submodules: if self.submodules {
                vec![
                    git(&[&["submodule", "sync", "--recursive"]]),
                    git(&[&config, update, &["--progress"]]),
                ]
            } else {
                Vec::new()
            },
        })
    }

    /// What is fetched, each as one argument.
    fn fetched(&self) -> Result<Vec<String>, String> {
        let pull_request = self
            .pull_request
            .as_ref()
            .filter(|_| self.provider.contains("github"));
        Ok(match (&self.refspec, pull_request) {
            (Some(refspec), _) => split("BUILDKITE_REFSPEC", refspec)?,
            (None, Some(number)) => {
                let which = if self.merged { "merge" } else { "head" };
                let mut refs = vec![format!("refs/pull/{number}/{which}")];
                // It may not be in the history of the reference any more.
                refs.extend((self.commit != HEAD).then(|| self.commit.clone()));
                refs
            }
            (None, None) if self.commit == HEAD => vec![self.branch.clone()],
            (None, None) => vec![self.commit.clone()],
        })
    }

    /// A name for a folder that holds this checkout: the same for all jobs that get the same files.
    #[must_use]
    pub fn name(&self) -> String {
        let build = if is_hash(&self.commit) {
            ""
        } else {
            &self.build
        };
        // Credentials may be new in each job.
        let url = redacted(&self.url);
        let parts: [&str; 12] = [
            &url,
            &self.commit,
            &self.branch,
            self.refspec.as_deref().unwrap_or_default(),
            self.pull_request.as_deref().unwrap_or_default(),
            &self.provider,
            &self.clone_flags,
            &self.fetch_flags,
            &self.checkout_flags,
            &self.submodule_config,
            if self.submodules { "submodules" } else { "" },
            build,
        ];
        let bytes = parts.iter().map(|part| part.as_bytes());
        let digits = fingerprint(bytes.chain([self.folder_name.as_encoded_bytes()]));
        format!("eval-once-checkout-{digits}")
    }
}

/// Whether this is the full hash of a commit.
#[must_use]
pub fn is_hash(commit: &str) -> bool {
    matches!(commit.len(), 40 | 64) && commit.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Prints which commit is checked out in `folder`, and what of it was changed or added since; files that it ignores do not count. It
/// writes nothing, not even what it would have to look at less often.
#[must_use]
pub fn status(folder: &Path) -> CommandLine {
    let before: &[&str] = &[
        "--no-optional-locks",
        "status",
        "--porcelain=v2",
        "--branch",
    ];
    let mut line = git(
        folder,
        &[
            before,
            &["--untracked-files=normal", "--ignore-submodules=none"],
        ],
    );
    // A checkout may have millions of new files; one is enough to know that it is not clean.
    line.output_limit = OutputLimit::Beginning(STATUS_AT_MOST);
    line
}

/// How much is kept of what [`status`] prints, in bytes: more than the lines about the branch, which come first.
const STATUS_AT_MOST: usize = 64 << 10;

/// Whether exactly this commit is checked out, by what [`status`] prints.
#[must_use]
pub fn is_clean(printed: &[u8], commit: &str) -> bool {
    let text = String::from_utf8_lossy(printed);
    let head = text
        .lines()
        .find_map(|line| line.strip_prefix("# branch.oid "));
    head == Some(commit) && text.lines().all(|line| line.starts_with("# "))
}

/// A command of git, which asks nothing, leaves nothing to a process behind it, and speaks English.
fn git(folder: &Path, words: &[&[&str]]) -> CommandLine {
    let settings = [
        "-c",
        "advice.detachedHead=false",
        "-c",
        "gc.auto=0",
        "-c",
        "maintenance.auto=false",
    ];
    let mut line = CommandLine::new("git", &settings);
    line.arguments
        .extend(words.iter().copied().flatten().map(OsString::from));
    line.folder = Some(folder.to_owned());
    line.variables = vec![("GIT_TERMINAL_PROMPT", "0".into()), ("LC_ALL", "C".into())];
    line
}

fn split(name: &str, value: &str) -> Result<Vec<String>, String> {
    shell_words::split(value, EmptyWords::Keep)
        .map_err(|error| format!("{name} is {value:?}, which cannot be split into words: {error}"))
}

/// Whether the agent takes this as the name of what it checks out (`gitCheckRefFormat`): above all, no option of git.
fn is_reference(name: &str) -> bool {
    let forbidden = |c: char| c.is_ascii_control() || " ~^:\\".contains(c);
    !(name.is_empty()
        || name.contains("..")
        || name.contains(forbidden)
        || name.ends_with('.')
        || name == "@"
        || name.starts_with('-'))
}

/// Why a command of git failed, from what it printed: the first line that says so, with the one before it where that is git's or
/// the transport's (`git@host: Permission denied`).
#[must_use]
pub fn reason(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    let lines: Vec<&str> = text
        .split(['\n', '\r'])
        .map(str::trim)
        .filter(|line| !line.is_empty() && !is_progress(line))
        .collect();
    let says_so = |line: &&str| line.starts_with("fatal: ") || line.starts_with("error: ");
    let end = lines.iter().position(says_so).unwrap_or(lines.len());
    let begin = end.saturating_sub(1);
    let shown = lines.iter().skip(begin).take(end - begin + 1);
    let shown: Vec<&str> = shown.copied().collect();
    redacted(&shown.join("; ")).into_owned()
}

/// Whether git prints this where nothing is wrong.
fn is_progress(line: &str) -> bool {
    let begins = ["Cloning into", "From ", "POST ", "remote: ", "* ", "hint: "];
    line.contains('%') || begins.iter().any(|begin| line.starts_with(begin))
}

/// Whether git could not check out because there is no such commit, by its [`reason`].
#[must_use]
pub fn is_missing(reason: &str) -> bool {
    ["is not a tree", "invalid reference", "unable to read tree"]
        .iter()
        .any(|words| reason.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn repository() -> Repository {
        Repository {
            url: "https://h/r.git".into(),
            commit: COMMIT.into(),
            branch: "main".into(),
            refspec: None,
            pull_request: None,
            merged: false,
            provider: "github".into(),
            clone_flags: "-v".into(),
            fetch_flags: "-v --prune".into(),
            checkout_flags: "-f".into(),
            submodules: true,
            submodule_config: String::new(),
            build: "b".into(),
            folder_name: "pipeline".into(),
        }
    }

    fn shown(line: &CommandLine) -> String {
        let text = line.to_string();
        let (_, words) = text.split_once("maintenance.auto=false ").unwrap();
        words.to_owned()
    }

    fn fetches(repository: &Repository) -> (String, bool, String) {
        let lines = repository.lines(Path::new("/f"), None).unwrap();
        (
            shown(&lines.fetch),
            lines.fetch_all.is_some(),
            shown(&lines.check_out),
        )
    }

    #[test]
    fn a_checkout_is_clean_where_it_is_exactly_that_commit() {
        let head = format!("# branch.oid {COMMIT}\n# branch.head (detached)\n");
        assert!(is_clean(head.as_bytes(), COMMIT));
        for (printed, commit) in [
            (head.clone(), "HEAD"),
            (format!("{head}? new\n"), COMMIT),
            (
                format!("{head}1 .M N... 100644 100644 100644 a a f\n"),
                COMMIT,
            ),
            ("# branch.oid (initial)\n".into(), COMMIT),
            (String::new(), COMMIT),
        ] {
            assert!(!is_clean(printed.as_bytes(), commit), "{printed}");
        }
        assert!(is_hash(COMMIT) && !is_hash("HEAD") && !is_hash(&COMMIT[1..]));
    }

    #[test]
    fn a_commit_is_cloned_fetched_and_checked_out_as_the_agent_does() {
        let lines = repository().lines(Path::new("/f"), None).unwrap();
        assert_eq!(
            lines.clone.to_string(),
            "GIT_TERMINAL_PROMPT=0 LC_ALL=C git -c advice.detachedHead=false -c gc.auto=0 -c maintenance.auto=false \
             clone --progress --no-checkout -v -- https://h/r.git ."
        );
        assert_eq!(lines.clone.folder.as_deref(), Some(Path::new("/f")));
        assert_eq!(
            shown(&lines.fetch),
            format!("fetch --progress -v --prune -- origin {COMMIT}")
        );
        assert_eq!(
            shown(&lines.fetch_all.unwrap()),
            "fetch --progress -v --prune -- origin '+refs/heads/*:refs/remotes/origin/*' '+refs/tags/*:refs/tags/*'"
        );
        assert_eq!(
            shown(&lines.check_out),
            format!("checkout --progress -f {COMMIT} --")
        );
        let submodules: Vec<String> = lines.submodules.iter().map(shown).collect();
        assert_eq!(
            submodules,
            [
                "submodule sync --recursive",
                "submodule update --init --recursive --force --progress"
            ]
        );
    }

    #[test]
    fn what_is_fetched_depends_on_the_build() {
        let head = Repository {
            commit: "HEAD".into(),
            ..repository()
        };
        let of_pull_request = |repository: Repository, merged| Repository {
            pull_request: Some("7".into()),
            merged,
            ..repository
        };
        let of_refspec = |repository: Repository| Repository {
            refspec: Some("refs/a 'refs/b c'".into()),
            ..repository
        };
        let elsewhere = Repository {
            provider: "gitlab".into(),
            ..repository()
        };
        let fetch_head = "checkout --progress -f FETCH_HEAD --";
        let commit = format!("checkout --progress -f {COMMIT} --");
        for (repository, refs, second, checkout) in [
            (head.clone(), "main", false, fetch_head),
            (
                of_pull_request(repository(), false),
                &format!("refs/pull/7/head {COMMIT}"),
                true,
                &commit,
            ),
            (
                of_pull_request(repository(), true),
                &format!("refs/pull/7/merge {COMMIT}"),
                true,
                &commit,
            ),
            (
                of_pull_request(head.clone(), false),
                "refs/pull/7/head",
                false,
                fetch_head,
            ),
            (of_pull_request(elsewhere, false), COMMIT, true, &commit),
            (
                of_refspec(repository()),
                "refs/a 'refs/b c'",
                false,
                &commit,
            ),
            (of_refspec(head), "refs/a 'refs/b c'", false, fetch_head),
        ] {
            let fetch = format!("fetch --progress -v --prune -- origin {refs}");
            assert_eq!(fetches(&repository), (fetch, second, checkout.to_owned()));
        }
    }

    #[test]
    fn a_login_in_the_url_is_given_to_git_in_a_file() {
        let file = Path::new("/t/it's");
        for (url, text, server, plain) in [
            (
                "https://u:p@h:8/r?x",
                "https://u:p@h:8\n",
                "https://h:8",
                "https://h:8/r?x",
            ),
            (
                "https://t@h/r",
                "https://t:@h\n",
                "https://h",
                "https://h/r",
            ),
        ] {
            let with_login = Repository {
                url: url.into(),
                ..repository()
            };
            assert_eq!(with_login.login_file().as_deref(), Some(text));
            let lines = with_login.lines(Path::new("/f"), Some(file)).unwrap();
            for line in [&lines.clone, &lines.fetch, &lines.submodules[1]] {
                let words = line.words().join(" ");
                let ours = format!(
                    "-c credential.{server}.helper= -c credential.{server}.helper=store --file='/t/it'\\''s'"
                );
                assert!(words.contains(&ours), "{words}");
            }
            assert!(lines.clone.words().contains(&plain.to_owned()));
        }
        for url in [
            "https://h/r",
            "https://git@h/r",
            "ssh://git@h/r",
            "git@h:r",
            "/r",
            "",
        ] {
            let without = Repository {
                url: url.into(),
                ..repository()
            };
            assert_eq!(without.login_file(), None, "{url}");
            let words = without.lines(Path::new("/f"), None).unwrap().clone.words();
            assert!(words.contains(&url.to_owned()), "{words:?}");
        }
    }

    #[test]
    fn what_a_repository_names_is_no_option_of_git() {
        let branch = Repository {
            commit: "HEAD".into(),
            branch: "--upload-pack=touch /x".into(),
            ..repository()
        };
        let lines = branch.lines(Path::new("/f"), None).unwrap();
        let words = lines.fetch.words();
        assert_eq!(words.last().unwrap(), "--upload-pack=touch /x");
        assert_eq!(words[words.len() - 3], "--");
        let url = Repository {
            url: "--upload-pack=x".into(),
            ..repository()
        };
        let words = url.lines(Path::new("/f"), None).unwrap().clone.words();
        assert_eq!(words[words.len() - 3..], ["--", "--upload-pack=x", "."]);
        for commit in [
            "",
            "--orphan=x",
            "-f",
            "a b",
            "a..b",
            "@",
            "a:b",
            "a^",
            "a.",
        ] {
            let repository = Repository {
                commit: commit.into(),
                ..repository()
            };
            let wrong = repository.lines(Path::new("/f"), None).unwrap_err();
            assert!(wrong.starts_with("BUILDKITE_COMMIT is "), "{wrong}");
        }
        let helper = Repository {
            url: "https://u:p@h.helper=!touch x/r".into(),
            ..repository()
        };
        assert_eq!(
            helper.lines(Path::new("/f"), Some(Path::new("/login"))),
            Err(
                "BUILDKITE_REPO names the server \"https://h.helper=!touch x\", which is none"
                    .into()
            )
        );
        let flags = Repository {
            fetch_flags: "--depth='1".into(),
            ..repository()
        };
        let wrong = flags.lines(Path::new("/f"), None).unwrap_err();
        assert!(
            wrong.starts_with("BUILDKITE_GIT_FETCH_FLAGS is "),
            "{wrong}"
        );
    }

    #[test]
    fn the_same_files_have_one_name_and_others_another() {
        let name = repository().name();
        assert!(
            name.starts_with("eval-once-checkout-") && name.len() == 51,
            "{name}"
        );
        let with = |change: fn(&mut Repository)| {
            let mut repository = repository();
            change(&mut repository);
            repository.name()
        };
        assert_eq!(with(|it| it.build = "c".into()), name);
        let first = with(|it| it.url = "https://a:b@h/r.git".into());
        assert_eq!(with(|it| it.url = "https://a:c@h/r.git".into()), first);
        let head = with(|it| it.commit = "HEAD".into());
        let later = with(|it| {
            it.commit = "HEAD".into();
            it.build = "c".into();
        });
        assert_ne!(head, later);
        for other in [
            with(|it| it.url = "https://h/s.git".into()),
            with(|it| it.commit = COMMIT.replace('0', "f")),
            with(|it| it.folder_name = "other".into()),
            with(|it| it.submodules = false),
        ] {
            assert_ne!(other, name);
        }
    }

    #[test]
    fn the_reason_is_the_line_that_says_so() {
        for (printed, shown) in [
            (
                "Cloning into '.'...\nremote: Counting: 5%\rReceiving: 7%\nfatal: early EOF\nfatal: more\n",
                "fatal: early EOF",
            ),
            (
                "git@h: Permission denied (publickey).\r\nfatal: Could not read from remote repository.\n\nPlease make sure\n",
                "git@h: Permission denied (publickey).; fatal: Could not read from remote repository.",
            ),
            (
                "fatal: unable to access 'https://u:p@h/': no route\n",
                "fatal: unable to access 'https://***@h/': no route",
            ),
            ("killed\n", "killed"),
            ("", ""),
        ] {
            assert_eq!(reason(printed.as_bytes()), shown);
        }
    }
}
