//! A build at a glance: how every target stands, told from what recordings have planned, what steps have left, and how Buildkite
//! says that they ended.
//!
//! From top to bottom: gather, set plans and reports side by side, ask Buildkite where they do not tell how a step ended, then
//! tell it as an annotation and as JUnit. A report that is not there is something to tell, and no failure: whoever looks at a
//! summary looks at what went wrong.

mod ask;
mod gather;
mod held;
mod junit;
mod rows;
mod saved;
mod table;
mod terms;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::agent;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::supervise::Supervisor;

use gather::BuildData;
use rows::Rows;

/// The name of the artifact.
const JUNIT: &str = "eval-once-junit.xml";

/// The annotation's context: a build has one summary, and a later one replaces it.
const CONTEXT: &str = "eval-once-summary";

/// Sums the build up; temporary files are made below `temporary`. That steps of it failed is told, and is no failure of this.
///
/// # Errors
/// Buildkite cannot be reached (75); there is no `buildkite-agent` (69).
pub fn perform(temporary: &Path, supervisor: &mut Supervisor, log: &Log) -> Result<(), Failure> {
    sum_up(temporary, supervisor, log).map_err(|failure| match failure.class {
        Class::MissingProgram => failure.hint("in a job the agent puts it on PATH"),
        Class::Infrastructure => {
            failure.hint("can this host reach Buildkite? The job can be retried")
        }
        _ => failure,
    })
}

fn sum_up(temporary: &Path, supervisor: &mut Supervisor, log: &Log) -> Result<(), Failure> {
    let mut gathered = gather::gather(temporary, supervisor, log)?;
    if gathered.is_empty() {
        log.say(
            "nothing to sum up: no recording has left a plan in this build, and no step a report",
        );
        return Ok(());
    }
    let rows = with_outcomes(&mut gathered, supervisor, log)?;
    agent::keep_artifact(supervisor, temporary, JUNIT, &junit::document(&rows)?)?;
    let (body, style) = table::annotation(&rows);
    agent::annotate(supervisor, temporary, CONTEXT, style, &body)?;
    log.say(table::counts(&rows));
    Ok(())
}

/// The rows, once Buildkite has said how those steps ended of which the reports and the plans alone do not tell.
fn with_outcomes(
    gathered: &mut BuildData,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Rows, Failure> {
    loop {
        let rows = Rows::new(gathered);
        let keys = rows.not_told(gathered);
        if keys.is_empty() {
            return Ok(rows);
        }
        let outcomes = ask::outcomes(supervisor, &keys, log)?;
        gathered.outcomes.extend(outcomes);
        gathered.now = now();
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}
