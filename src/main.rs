//! The program `eval-once`: reads what it is asked for, does it, and ends with the status that says how it went.

use std::io::{ErrorKind, Write as _};
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

use eval_once::environment;
use eval_once::exit::{Class, Classify as _, Failure};
use eval_once::job::{self, TrailingCommand};
use eval_once::log::Log;
use eval_once::options::{self, Invocation};
use eval_once::recording;
use eval_once::step::{self, StepOrder};
use eval_once::summary;
use eval_once::supervise::Supervisor;
use unix::errno::Errno;

fn main() -> ExitCode {
    // Rust's own status for a panic, 101, means something else to whoever retries.
    let status = catch_unwind(|| {
        let (invocation, log) = options::read(Instant::now());
        run(invocation, &log).unwrap_or_else(|failure| {
            log.failure(&failure);
            failure.class.status()
        })
    });
    ExitCode::from(status.unwrap_or_else(|_| {
        Log::default()
            .say("error: this is a bug in eval-once: please report it with the lines above");
        Class::Bug.status()
    }))
}

fn run(invocation: Invocation, log: &Log) -> Result<u8, Failure> {
    match invocation {
        Invocation::OtherJob(job) => Ok(job::pass_through(job, log)),
        Invocation::JobStep(order, job) => job::step(order, job, Supervisor::install(log)?, log),
        Invocation::Step(order, command) => step_by_hand(order, command, log),
        Invocation::Pipeline(order) => {
            order.open_group(log);
            let pipeline = recording::perform(*order, &mut Supervisor::install(log)?, log)?;
            print(pipeline.unwrap_or_default())?;
            Ok(0)
        }
        Invocation::JobPipeline(order, job) => {
            job::recording(*order, job, Supervisor::install(log)?, log)
        }
        Invocation::Summary(in_job) => {
            summary::perform(in_job, &mut Supervisor::install(log)?, log)?;
            Ok(0)
        }
        Invocation::JobSummary(asked, job) => {
            job::summary(asked, job, Supervisor::install(log)?, log)
        }
        Invocation::Prune(host) => {
            recording::prune(&host?, log)?;
            Ok(0)
        }
        Invocation::Explain(order, json) => {
            let explanation = step::explain(order, &mut Supervisor::install(log)?, log)?;
            if json {
                let json = serde_json::to_string_pretty(&explanation);
                print(json.classify(Class::Bug, || "cannot write JSON".into())? + "\n")?;
            } else {
                print(explanation.to_string())?;
            }
            Ok(0)
        }
        Invocation::PrintEnvironment(surroundings) => {
            print(environment::as_shell(&environment::variables(
                &surroundings?,
            )))?;
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
            print(options::completions(shell))?;
            Ok(0)
        }
        Invocation::Message(message, status) => {
            // clap prints it: it knows by itself where to, and whether in colour. Nothing else runs then.
            let _ = message.print();
            Ok(status)
        }
    }
}

/// Builds a step; then becomes the command that follows it, or prints its outputs as `nix-build` does.
fn step_by_hand(
    order: StepOrder,
    given: Option<TrailingCommand>,
    log: &Log,
) -> Result<u8, Failure> {
    let mut supervisor = Supervisor::install(log)?;
    let done = step::perform(order, &mut supervisor, log)?;
    if let Some(given) = given {
        return Err(job::become_given(given, &done.outputs, supervisor));
    }
    for path in done.outputs.values() {
        print(format!("{path}\n"))?;
    }
    Ok(0)
}

/// Prints to standard output. A reader that has gone, a pipe's or a terminal's, is no failure.
fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    let printed = stdout
        .write_all(text.as_ref())
        .and_then(|()| stdout.flush());
    let nobody_reads = |error: &std::io::Error| {
        error.kind() == ErrorKind::BrokenPipe || error.raw_os_error() == Some(Errno::EIO as i32)
    };
    match printed {
        Err(error) if !nobody_reads(&error) => Err(error).classify(Class::Infrastructure, || {
            "cannot write to standard output".into()
        }),
        _ => Ok(()),
    }
}
