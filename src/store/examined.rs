//! Questions about the store itself, for one who wants to know why it does not work: each has a limit, since a daemon that hangs never
//! answers.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::lacking::{lacking_line, read_lacking};
use super::rooting::{names_root, rooting_line};
use super::{ATTEMPTS, Answer, PathQuestion, Store};
use crate::command_line::CommandLine;
use crate::exit::{Class, Failure};
use crate::nix::{NixOutput, StorePath, StoreUrl, caches, command, version};
use crate::parallel;
use crate::supervise::{Finished, Printed, Sight, Supervisor};
use crate::text::without_escapes;

/// How long a question may take that this host answers by itself.
pub const LOCAL_LIMIT: Duration = Duration::from_secs(10);

/// How long a question may take that goes over a network: Nix tries a cache five times, in five seconds where that refuses at once.
pub const NETWORK_LIMIT: Duration = Duration::from_secs(15);

/// The file of a cache that says for which stores it is.
const CACHE_INFO: &str = "nix-cache-info";

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAnswer {
    /// Nix has said this.
    Because(String),
    /// There was none within so many seconds.
    Within(u64),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Because(message) => f.write_str(message),
            Self::Within(seconds) => write!(f, "no answer within {seconds} s"),
        }
    }
}

/// Which store this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreIdentity {
    /// Its URL: `local`, `daemon`, …
    pub url: String,
    /// The version of Nix that works on it: the daemon's, where there is one.
    pub version: Option<String>,
    /// Whether it trusts this user.
    pub trusted: bool,
}

impl StoreIdentity {
    /// Whether a daemon works on the store.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.url == "daemon" || self.url.starts_with("unix://")
    }

    /// What Nix prints about its store. (To standard error, where it is not asked for JSON.)
    fn read(printed: &str) -> Option<Self> {
        let value = |name: &str| {
            let mut values = printed.lines().filter_map(|line| line.strip_prefix(name));
            Some(values.next()?.trim().to_owned())
        };
        let ignored = printed.contains("ignoring untrusted substituter");
        Some(Self {
            url: value("Store URL:")?,
            version: value("Version:"),
            trusted: value("Trusted:").map_or(!ignored, |trusted| trusted == "1"),
        })
    }
}

/// What a trial of a GC root has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSight {
    /// The root keeps its path.
    Kept,
    /// It was made, and what collects does not see it.
    Unseen,
    /// It cannot be made.
    No(NoAnswer),
}

impl Store {
    /// The version that one of Nix's programs prints.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn version_of(
        &mut self,
        supervisor: &mut Supervisor,
        program: &'static str,
    ) -> Result<Result<String, NoAnswer>, Failure> {
        let printed = self.printed_within(supervisor, &command::version_of(program))?;
        Ok(printed.and_then(|printed| {
            let version = version::of_program(&printed)
                .filter(|version| version::numbers(version).is_some() && printed.contains("Nix"));
            version.ok_or_else(|| {
                NoAnswer::Because(if printed.is_empty() {
                    "it prints no version".into()
                } else {
                    format!("it prints {printed:?} as its version")
                })
            })
        }))
    }

    /// Which store this is; `nix` has this version.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn identity(
        &mut self,
        supervisor: &mut Supervisor,
        version_of_nix: &str,
    ) -> Result<Result<StoreIdentity, NoAnswer>, Failure> {
        let has_info = version::numbers(version_of_nix).is_some_and(|numbers| numbers >= (2, 19));
        let line = command::store_identity(has_info);
        let Answer { finished, stderr } =
            match self.answer_within(supervisor, &line, LOCAL_LIMIT)? {
                Ok(answer) => answer,
                Err(why) => return Ok(Err(why)),
            };
        let printed = format!("{}\n{}", String::from_utf8_lossy(&stderr), finished.text());
        Ok(StoreIdentity::read(&printed)
            .filter(|_| finished.ending.success())
            .ok_or_else(|| because(&finished, &stderr)))
    }

    /// Whether the store answers, and in which folder its paths are.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn answers_within(
        &mut self,
        supervisor: &mut Supervisor,
    ) -> Result<Result<PathBuf, NoAnswer>, Failure> {
        let line = self.ask_store_line(supervisor)?;
        if let Err(why) = self.printed_within(supervisor, &line)? {
            return Ok(Err(why));
        }
        let line = self.folder_line(supervisor)?;
        let printed = self.printed_within(supervisor, &line)?;
        Ok(printed.and_then(|printed| {
            serde_json::from_str(&printed).map_err(|_| {
                NoAnswer::Because(format!("the folder of the store is {printed:?} to Nix"))
            })
        }))
    }

    /// Nix's settings: of this user, or those that this host has for every user.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn settings_within(
        &mut self,
        supervisor: &mut Supervisor,
        of_host: bool,
    ) -> Result<Result<String, NoAnswer>, Failure> {
        let line = if of_host {
            command::show_config_of_host()
        } else {
            self.show_config_line()
        };
        self.printed_within(supervisor, &line)
    }

    /// Writes a small file into the store, which no root keeps.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn write_small_file(
        &mut self,
        supervisor: &mut Supervisor,
        text: &str,
    ) -> Result<Result<StorePath, NoAnswer>, Failure> {
        let printed = self.printed_within(supervisor, &command::write_small_file(text))?;
        Ok(printed.and_then(|printed| {
            StorePath::parse(printed.trim().trim_matches('"'))
                .map_err(|wrong| NoAnswer::Because(wrong.to_string()))
        }))
    }

    /// The command that prints what keeps `path`, for `names_root`.
    #[must_use]
    pub fn roots_line(path: &StorePath, options: &command::Options) -> CommandLine {
        command::roots_of(path, options)
    }

    /// Roots a small file at `link`, and looks whether that keeps it.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn try_root(
        &mut self,
        supervisor: &mut Supervisor,
        text: &str,
        link: &Path,
    ) -> Result<RootSight, Failure> {
        let mut sight = RootSight::Unseen;
        // A collection may take the file before it is rooted.
        for _ in 0..ATTEMPTS {
            let path = match self.write_small_file(supervisor, text)? {
                Ok(path) => path,
                Err(why) => return Ok(RootSight::No(why)),
            };
            let root = rooting_line(&path, link, &[]);
            if let Err(why) = self.printed_within(supervisor, &root)? {
                sight = RootSight::No(why);
                continue;
            }
            let question = Self::roots_line(&path, &[]);
            match self.answer_within(supervisor, &question, LOCAL_LIMIT)? {
                Err(why) => return Ok(RootSight::No(why)),
                Ok(Answer { finished, stderr }) if !finished.ending.success() => {
                    sight = RootSight::No(because(&finished, &stderr));
                }
                Ok(Answer { finished, .. }) if names_root(&finished, link) => {
                    return Ok(RootSight::Kept);
                }
                Ok(_) => sight = RootSight::Unseen,
            }
        }
        Ok(sight)
    }

    /// Asks each of these substituters for `path`, which none of them has: what is wrong with it, or none where it answers. They are
    /// asked in parallel.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn examine_substituters(
        &mut self,
        supervisor: &mut Supervisor,
        substituters: &[String],
        path: &StorePath,
    ) -> Result<Vec<Option<NoAnswer>>, Failure> {
        let store = path.store();
        let asked: Vec<&String> = substituters
            .iter()
            .filter(|one| caches::folder_of_cache(one).is_none())
            .collect();
        let lines: Vec<CommandLine> = asked
            .iter()
            .flat_map(|one| {
                let only = ("substituters".into(), (*one).clone());
                Self::asked_by(PathQuestion::DryRun, &[path], &[only])
            })
            .collect();
        let mut wrong: Vec<Option<NoAnswer>> = substituters
            .iter()
            .map(|one| wrong_with_folder(one, store))
            .collect();
        let began = Instant::now();
        let ran = parallel::each_within(
            supervisor,
            &lines,
            lines.len(),
            NETWORK_LIMIT,
            |number, finished, stderr| {
                // Stopped by us. (All of them were started at once, and Nix may end by itself then.)
                let complaint = if began.elapsed() >= NETWORK_LIMIT {
                    Some(in_time(NETWORK_LIMIT))
                } else {
                    let said = caches::complaint(&stderr, asked[number]);
                    said.map(NoAnswer::Because).or_else(|| {
                        let failed = !finished.ending.success();
                        failed.then(|| because(&finished, stderr.as_bytes()))
                    })
                };
                let place = substituters.iter().position(|one| one == asked[number]);
                if let Some(place) = place {
                    wrong[place] = complaint;
                }
                Ok(())
            },
        );
        if let Err(failure) = ran {
            let why = not_started(failure)?;
            wrong.fill(Some(why));
        }
        Ok(wrong)
    }

    /// Whether a store can be read. What Nix remembers of it does not count, for which `empty` is a folder: else it would ask for one
    /// path alone, and take a refusal (401) for a path that is missing.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn reads_from(
        &mut self,
        supervisor: &mut Supervisor,
        store: &StoreUrl,
        path: &StorePath,
        empty: &Path,
    ) -> Result<Result<(), NoAnswer>, Failure> {
        let by_dry_run = self.asks_by_dry_run(supervisor, store)?;
        let mut line = lacking_line(store, &[path], by_dry_run, &[]);
        line.variables = ["XDG_CACHE_HOME", "NIX_CACHE_HOME"]
            .map(|name| (name, empty.into()))
            .to_vec();
        let answer = self.answer_within(supervisor, &line, NETWORK_LIMIT)?;
        Ok(answer.and_then(|Answer { finished, stderr }| {
            let stderr = without_escapes(&String::from_utf8_lossy(&stderr));
            let lacking = read_lacking(store, &[path], by_dry_run, &finished, &stderr);
            lacking.map(drop).map_err(NoAnswer::Because)
        }))
    }

    /// Whether `path` can be copied to a store, where it stays.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn writes_to(
        &mut self,
        supervisor: &mut Supervisor,
        store: &StoreUrl,
        path: &StorePath,
    ) -> Result<Result<(), NoAnswer>, Failure> {
        let line = command::copy_outputs_to(store, &[path], &[]);
        let printed = self.printed_in(supervisor, &line, NETWORK_LIMIT)?;
        Ok(printed.map(drop))
    }

    fn printed_within(
        &mut self,
        supervisor: &mut Supervisor,
        line: &CommandLine,
    ) -> Result<Result<String, NoAnswer>, Failure> {
        self.printed_in(supervisor, line, LOCAL_LIMIT)
    }

    fn printed_in(
        &mut self,
        supervisor: &mut Supervisor,
        line: &CommandLine,
        limit: Duration,
    ) -> Result<Result<String, NoAnswer>, Failure> {
        let answer = self.answer_within(supervisor, line, limit)?;
        Ok(answer.and_then(|Answer { finished, stderr }| {
            if finished.ending.success() {
                Ok(finished.text())
            } else {
                Err(because(&finished, &stderr))
            }
        }))
    }

    /// The answer to a question. That its program is missing, or does not start, is no more than that there is none.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    fn answer_within(
        &mut self,
        supervisor: &mut Supervisor,
        line: &CommandLine,
        limit: Duration,
    ) -> Result<Result<Answer, NoAnswer>, Failure> {
        let mut stderr = Printed::by(line);
        let ran = supervisor.run_patiently(line, limit, |_, printed| {
            stderr.add(printed);
            Sight::StandsStill
        });
        match ran {
            Ok((_, Some(_))) => {
                self.log.debug(format_args!("stopped: {}", line.in_short()));
                Ok(Err(in_time(limit)))
            }
            Ok((finished, None)) => match stderr.into_answer(line) {
                Ok(stderr) => Ok(Ok(Answer { finished, stderr })),
                Err(failure) => not_started(failure).map(Err),
            },
            Err(failure) => not_started(failure).map(Err),
        }
    }
}

/// A failure to start a program as the reason for no answer.
fn not_started(failure: Failure) -> Result<NoAnswer, Failure> {
    match failure.class {
        Class::Signal(_) => Err(failure),
        _ => Ok(NoAnswer::Because(failure.to_string())),
    }
}

fn in_time(limit: Duration) -> NoAnswer {
    NoAnswer::Within(limit.as_secs())
}

/// Nix's last message.
fn because(finished: &Finished, stderr: &[u8]) -> NoAnswer {
    NoAnswer::Because(NixOutput::of(stderr).final_message(finished.ending))
}

/// What is wrong with a cache in a folder of this host, for a store in `store`. It is looked at as such: Nix would make the folder where
/// it is missing.
#[must_use]
pub fn wrong_with_folder(cache: &str, store: &Path) -> Option<NoAnswer> {
    let folder = caches::folder_of_cache(cache)?;
    let shown = folder.display();
    if let Err(error) = folder.read_dir() {
        return Some(NoAnswer::Because(if folder.is_dir() {
            error.to_string()
        } else {
            format!("{shown} is not a folder")
        }));
    }
    let info = match fs::read_to_string(folder.join(CACHE_INFO)) {
        Ok(info) => info,
        // What is copied there first writes it.
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return Some(NoAnswer::Because(format!("{CACHE_INFO}: {error}"))),
    };
    let of = caches::store_folder(&info).filter(|of| Path::new(of) != store)?;
    Some(NoAnswer::Because(format!(
        "{shown} is for stores in {of}, and this one is in {}",
        store.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_says_which_it_is_and_whether_it_trusts_in_every_version() {
        let identity = |printed: &str| StoreIdentity::read(printed).unwrap();
        let old = identity("Store URL: daemon\nVersion: 2.8.0\n");
        assert!(old.trusted && old.is_daemon());
        assert_eq!(old.version.as_deref(), Some("2.8.0"));
        let old = "warning: ignoring untrusted substituter 'http://untrusted.invalid'\nStore URL: daemon\nVersion: 2.8.0\n";
        assert!(!identity(old).trusted);
        let new = "Store URL: unix:///x\nVersion: 2.34.8\nTrusted: 0\n";
        assert!(!identity(new).trusted && identity(new).is_daemon());
        let local = identity("Store URL: local\nVersion: 2.26.3\nTrusted: 1\n");
        assert!(local.trusted && !local.is_daemon());
        assert_eq!(StoreIdentity::read("hello"), None);
    }
}
