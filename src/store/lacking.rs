//! Asking another store what it lacks: as it is now, whatever this host remembers of it.

use std::collections::HashSet;
use std::time::Instant;

use super::Store;
use super::printed::store_paths;
use crate::command_line::{CommandLine, Ending};
use crate::exit::{Class, Failure};
use crate::nix::{DryRun, NixOutput, StorePath, StoreUrl, caches, class, command, version};
use crate::parallel;
use crate::secrets::redacted;
use crate::supervise::{Finished, PATIENCE, Supervisor};

/// From this version of Nix on other stores are asked by dry runs: the first one that it was seen to work with.
const ASKS_BY_DRY_RUN: (u32, u32) = (2, 26);

/// How many paths one program asks another store about, and how many programs ask at once: by a dry run, and by a check. A check asks
/// for one path after the other: for 1,000 paths over HTTP one program takes 23 s where an answer takes 20 ms, ten take 3 s.
const PATHS_PER_DRY_RUN: (usize, usize) = (1_000, 2);
const PATHS_PER_CHECK: (usize, usize) = (100, 10);

impl Store {
    /// Which of `paths` a store lacks, as it is now; inside, why it cannot be asked. A cache in a folder is looked at as such: Nix
    /// would make the folder where it is missing, and this only asks.
    ///
    /// # Errors
    /// The program is missing (69); a signal asked us to end (128 + n).
    pub fn lacking(
        &mut self,
        supervisor: &mut Supervisor,
        store: &StoreUrl,
        paths: &[&StorePath],
    ) -> Result<Result<HashSet<StorePath>, String>, Failure> {
        if store.scheme() == "file" {
            let lacking = paths.iter().filter_map(|path| {
                let file = caches::file_in_cache(store.as_str(), path)?;
                match file.try_exists() {
                    Ok(true) => None,
                    Ok(false) => Some(Ok((*path).clone())),
                    Err(error) => Some(Err(format!("{}: {error}", file.display()))),
                }
            });
            return Ok(lacking.collect());
        }
        let by_dry_run = self.asks_by_dry_run(supervisor, store)?;
        let (at_a_time, at_once) = if by_dry_run {
            PATHS_PER_DRY_RUN
        } else {
            PATHS_PER_CHECK
        };
        let parts: Vec<&[&StorePath]> = paths.chunks(at_a_time).collect();
        let options = self.options(supervisor)?;
        let lines: Vec<CommandLine> = parts
            .iter()
            .map(|part| lacking_line(store, part, by_dry_run, &options))
            .collect();
        let mut lacking = HashSet::new();
        let mut why = None;
        let begun = Instant::now();
        let asked = parallel::each_within(
            supervisor,
            &lines,
            at_once,
            PATIENCE,
            |number, finished, stderr| {
                match read_lacking(store, parts[number], by_dry_run, &finished, &stderr) {
                    Ok(part) => lacking.extend(part),
                    Err(said) => {
                        let is_late = begun.elapsed() >= PATIENCE;
                        let said = match finished.ending {
                            Ending::Killed(_) if is_late => {
                                format!("no answer within {} s", PATIENCE.as_secs())
                            }
                            _ => said,
                        };
                        let failure = Failure::new(Class::Infrastructure, &said);
                        why = Some(redacted(&said).into_owned());
                        // The others would wait for the same store.
                        return Err(failure);
                    }
                }
                Ok(())
            },
        );
        match (asked, why) {
            (Ok(()), _) => Ok(Ok(lacking)),
            (Err(_), Some(why)) => Ok(Err(why)),
            (Err(failure), None) => Err(class::not_started(failure)),
        }
    }

    /// The command that asks a store which of `paths` it lacks.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn lacking_line(
        &mut self,
        supervisor: &mut Supervisor,
        store: &StoreUrl,
        paths: &[&StorePath],
    ) -> Result<CommandLine, Failure> {
        let by_dry_run = self.asks_by_dry_run(supervisor, store)?;
        let options = self.options(supervisor)?;
        Ok(lacking_line(store, paths, by_dry_run, &options))
    }

    /// Whether a store is asked by a dry run that has nothing but that store as substituter: where this Nix can, over HTTP. There is no
    /// question that all versions can be asked: to a dry run, 2.8 would answer that nothing is there, and the `nix-store` of 2.34 dies
    /// of SIGSEGV when it is asked for the validity of a path over HTTP. (`nix path-info --json` is understood by all, but asks twice
    /// for each path, and the substituters for what is missing.) A dry run asks for many paths at the same time: 1,000 over HTTP take
    /// 2.7 s where an answer takes 20 ms.
    pub(super) fn asks_by_dry_run(
        &mut self,
        supervisor: &mut Supervisor,
        store: &StoreUrl,
    ) -> Result<bool, Failure> {
        if !["http", "https", "s3"].contains(&store.scheme()) {
            return Ok(false);
        }
        let version = self.version(supervisor)?;
        let numbers = version.and_then(|version| version::numbers(&version));
        Ok(numbers.is_some_and(|numbers| numbers >= ASKS_BY_DRY_RUN))
    }
}

pub(super) fn lacking_line(
    store: &StoreUrl,
    paths: &[&StorePath],
    by_dry_run: bool,
    options: &command::Options,
) -> CommandLine {
    if by_dry_run {
        command::would_obtain_from(store, paths, options)
    } else {
        command::lacking_in(store, paths, options)
    }
}

/// Which of `paths` a store lacks that was asked by [`lacking_line`]; or why it could not be asked.
pub(super) fn read_lacking(
    store: &StoreUrl,
    paths: &[&StorePath],
    by_dry_run: bool,
    finished: &Finished,
    stderr: &str,
) -> Result<Vec<StorePath>, String> {
    if by_dry_run {
        lacking_by_dry_run(store, paths, finished, stderr)
    } else {
        lacking_by_check(finished, stderr)
    }
}

/// Which of `paths` a store lacks that was asked by a dry run; or why it could not be asked.
fn lacking_by_dry_run(
    store: &StoreUrl,
    paths: &[&StorePath],
    finished: &Finished,
    stderr: &str,
) -> Result<Vec<StorePath>, String> {
    refuse_failure(finished, stderr)?;
    let answer = DryRun::read(stderr.as_bytes());
    // Nix warns of a substituter that it cannot use, and all of its paths are missing then.
    let (url, _parameters) = store
        .as_str()
        .split_once('?')
        .unwrap_or((store.as_str(), ""));
    let warnings = stderr
        .lines()
        .filter_map(|line| line.strip_prefix("warning: "))
        .filter(|warning| !warning.contains("; retrying in "));
    let mut of_store = warnings.filter(|warning| {
        warning.contains(url)
            || warning.contains("unable to download")
            || warning.contains("know how to open Nix store")
    });
    if let Some(warning) = of_store.next() {
        return Err(warning.into());
    }
    if !answer.unreachable.is_empty() || !answer.failing.is_empty() {
        return Err("it answers with errors".into());
    }
    let lacking = paths.iter().filter(|path| !answer.fetched.contains(**path));
    Ok(lacking.map(|path| (*path).clone()).collect())
}

/// Which paths a store lacks that was asked for their validity; or why it could not be asked.
fn lacking_by_check(finished: &Finished, stderr: &str) -> Result<Vec<StorePath>, String> {
    refuse_failure(finished, stderr)?;
    Ok(store_paths(finished).collect())
}

/// Refuses the answer to a question that failed.
fn refuse_failure(finished: &Finished, stderr: &str) -> Result<(), String> {
    if finished.ending.success() {
        return Ok(());
    }
    Err(NixOutput::of(stderr.as_bytes()).final_message(finished.ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_lacks_what_it_would_not_fetch_and_an_unreachable_store_is_no_answer() {
        let path = |name: &str| {
            StorePath::parse(&format!("/s/0123456789abcdfghijklmnpqrsvwxyz-{name}")).unwrap()
        };
        let (a, b) = (path("a"), path("b"));
        let ended = |ending| Finished {
            ending,
            stdout: Vec::new(),
        };
        let store = StoreUrl::parse("http://c?x=y").unwrap();
        let read =
            |ending, stderr: &str| lacking_by_dry_run(&store, &[&a, &b], &ended(ending), stderr);
        let fetched = format!("this path will be fetched (0.00 MiB download):\n  {a}\n");
        assert_eq!(read(Ending::Exited(0), &fetched), Ok(vec![b.clone()]));
        let nothing = format!("don't know how to build these paths:\n  {a}\n  {b}\n");
        assert_eq!(
            read(Ending::Exited(0), &nothing),
            Ok(vec![a.clone(), b.clone()])
        );
        let retry = "warning: unable to download 'http://c/nix-cache-info': Could not connect to server (7); retrying in 250 ms\n";
        for warning in [
            "unable to download 'http://c/nix-cache-info': Could not connect to server (7)",
            "'http://c' does not appear to be a binary cache",
            "don't know how to open Nix store with scheme 's3'",
        ] {
            let stderr = format!("{retry}warning: {warning}\n{nothing}");
            assert_eq!(read(Ending::Exited(0), &stderr).unwrap_err(), warning);
        }
        // Of this host, and not of the store.
        let other = format!("warning: unknown setting 'x'\n{nothing}");
        assert!(read(Ending::Exited(0), &other).is_ok());
        assert_eq!(
            read(Ending::Exited(1), "error: no bucket").unwrap_err(),
            "no bucket"
        );
    }
}
