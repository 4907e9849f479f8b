//! The program `eval-once`: reads what it is asked for, does it, and ends with the status that says how it went.

use std::io::Write as _;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

use eval_once::exit::{Class, Failure};
use eval_once::job::{self, Given};
use eval_once::log::Log;
use eval_once::options::{self, Invocation};
use eval_once::step::{self, Order};
use eval_once::supervise::Supervisor;
use eval_once::{environment, keys};

fn main() -> ExitCode {
    let (invocation, log) = options::read(Instant::now());
    // Rust's own status for a panic, 101, means something else to whoever retries.
    let status = match catch_unwind(std::panic::AssertUnwindSafe(|| run(invocation, log))) {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => {
            log.failure(&failure);
            failure.class.status()
        }
        Err(_) => {
            log.say("error: this is a bug in eval-once: please report it with the lines above");
            Class::Bug.status()
        }
    };
    ExitCode::from(status)
}

fn run(invocation: Invocation, log: Log) -> Result<u8, Failure> {
    match invocation {
        Invocation::OtherJob(job) => Ok(job::pass_through(job)),
        Invocation::JobStep(order, job) => job::step(order, job, Supervisor::install(log)?, log),
        Invocation::Step(order, command) => step_by_hand(order, command, log),
        Invocation::Explain(order, json) => {
            let explanation = step::explain(order, &mut Supervisor::install(log)?, log)?;
            if json {
                print(serde_json::to_string_pretty(&explanation).map_err(keys::refuse)? + "\n");
            } else {
                print(explanation.to_string());
            }
            Ok(0)
        }
        Invocation::PrintEnvironment(surroundings) => {
            print(environment::as_shell(&environment::variables(
                &surroundings,
            )));
            Ok(0)
        }
        Invocation::SetEnvironment(surroundings) => {
            environment::set_in_job(
                &environment::variables(&surroundings),
                &mut Supervisor::install(log)?,
            )?;
            Ok(0)
        }
        Invocation::Completions(shell) => {
            options::write_completions(shell, &mut std::io::stdout());
            Ok(0)
        }
        Invocation::Message(message, status) => {
            let _ = message.print();
            Ok(status)
        }
    }
}

/// Builds a step; then becomes the command that follows it, or prints its outputs as `nix-build` does.
fn step_by_hand(order: Order, given: Option<Given>, log: Log) -> Result<u8, Failure> {
    let mut supervisor = Supervisor::install(log)?;
    let done = step::perform(order, &mut supervisor, log)?;
    if let Some(given) = given {
        return Err(job::become_given(given, &done.outputs, supervisor));
    }
    for path in done.outputs.values() {
        print(format!("{path}\n"));
    }
    Ok(0)
}

/// Prints to standard output. A reader that has gone is no failure.
fn print(text: impl AsRef<[u8]>) {
    let _ = std::io::stdout().write_all(text.as_ref());
}
