//! The Buildkite agent, and whether it reaches Buildkite.

use super::{Doctor, Outcome};
use crate::agent::{last_line, run_within};
use crate::buildkite::agent;
use crate::command_line::CommandLine;
use crate::command_line::find_program;
use crate::exit::{Class, Failure};
use crate::nix::version::numbers;
use crate::store::{LOCAL_LIMIT, NETWORK_LIMIT};
use crate::supervise::Finished;
use std::time::Duration;

/// The oldest agent that this program is tested with.
const OLDEST: (u32, u32) = (3, 83);

impl Doctor<'_> {
    /// Which agent there is.
    pub(super) fn agent(&mut self) -> Result<Outcome, Failure> {
        let Some(file) = find_program("buildkite-agent".as_ref(), &self.order.path) else {
            return Ok(if self.order.is_job {
                Outcome::failure(
                    "this is a job, and buildkite-agent is not on PATH: nothing can be uploaded or reported",
                    "keep BUILDKITE_BIN_PATH on the job's PATH, in a container too",
                )
            } else {
                Outcome::not_applicable(
                    "buildkite-agent is not on PATH; in a job, the agent puts it there",
                )
            });
        };
        let answer = self.ask_agent(&agent::version(), LOCAL_LIMIT)?;
        let version = answer.and_then(|(finished, _)| {
            let printed = finished.text();
            let version = agent::version_in(&printed).map(str::to_owned);
            version
                .filter(|version| numbers(version).is_some())
                .ok_or_else(|| "it prints no version".to_owned())
        });
        let version = match version {
            Ok(version) => version,
            Err(why) => {
                return Ok(Outcome::failure(
                    format!("{} is no agent that works: {why}", file.display()),
                    "run `buildkite-agent --version` by hand",
                ));
            }
        };
        let seen = format!("buildkite-agent {version}, {}", file.display());
        let is_old = numbers(&version).is_some_and(|numbers| numbers < OLDEST);
        self.found.agent = Some(version);
        Ok(if is_old {
            Outcome::warning(
                format!("{seen}: older than 3.83, the oldest that is tested"),
                "install a later agent",
            )
        } else {
            Outcome::ok(seen)
        })
    }

    /// Whether Buildkite answers this job.
    pub(super) fn buildkite(&mut self) -> Result<Outcome, Failure> {
        if !self.order.is_job {
            return Ok(Outcome::not_applicable("this is not a job"));
        }
        if self.found.agent.is_none() {
            return Ok(Outcome::not_applicable("there is no agent to ask"));
        }
        let answer = self.ask_agent(&agent::meta_data_keys(), NETWORK_LIMIT)?;
        let answer = answer.and_then(|(finished, stderr)| {
            if finished.ending.success() {
                return Ok(());
            }
            let last = last_line(&stderr).map(str::to_owned);
            Err(last.unwrap_or_else(|| finished.ending.to_string()))
        });
        Ok(match answer {
            Ok(()) => Outcome::ok("Buildkite answers"),
            Err(why) => Outcome::failure(
                format!("Buildkite does not answer: {why}"),
                "check that this host reaches Buildkite, and that the job's BUILDKITE_AGENT_… variables are passed on, into a container too",
            ),
        })
    }

    fn ask_agent(
        &mut self,
        line: &CommandLine,
        limit: Duration,
    ) -> Result<Result<(Finished, String), String>, Failure> {
        match run_within(self.supervisor, line, limit, || ()) {
            Ok(answer) => {
                Ok(answer.ok_or_else(|| format!("no answer within {} s", limit.as_secs())))
            }
            Err(failure) if matches!(failure.class, Class::Signal(_)) => Err(failure),
            Err(failure) => Ok(Err(failure.to_string())),
        }
    }
}
