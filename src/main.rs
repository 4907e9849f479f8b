//! The program `eval-once`: reads what it is asked for, does it, and ends with the status that says how it went.

use std::io::{ErrorKind, Write as _};
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

use eval_once::agent;
use eval_once::base;
use eval_once::doctor::{self, Check};
use eval_once::environment;
use eval_once::exit::{Class, Classify as _, Failure};
use eval_once::job::{self, TrailingCommand};
use eval_once::log::{Log, for_output};
use eval_once::options::{self, Invocation, Refusal};
use eval_once::recording;
use eval_once::secrets::redacted;
use eval_once::step::{self, StepOrder};
use eval_once::summary;
use eval_once::supervise::Supervisor;
use eval_once::text::seen_json;
use unix::errno::Errno;

fn main() -> ExitCode {
    // Rust's own status for a panic is 101, which is a timeout to rules for a retry.
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
        Invocation::OtherJob(job) => return Ok(job::pass_through(job, log)),
        Invocation::Step(order, command) => step_by_hand(order, command, log)?,
        Invocation::JobStep(order, job) => {
            return job::step(order, job, Supervisor::install(log)?, log);
        }
        Invocation::Pipeline(order) => {
            order.open_group(log);
            let pipeline = recording::perform(*order, &mut Supervisor::install(log)?, log)?;
            print(&*seen_json(&String::from_utf8_lossy(
                &pipeline.unwrap_or_default(),
            )))?;
        }
        Invocation::JobPipeline(order, job) => {
            return job::recording(*order, job, Supervisor::install(log)?, log);
        }
        Invocation::Pin(order) => {
            print(recording::pin_drvs(
                &order,
                &mut Supervisor::install(log)?,
                log,
            )?)?;
        }
        Invocation::Summary(order) => {
            return summary::perform(&order, &mut Supervisor::install(log)?, log);
        }
        Invocation::JobSummary { order, job } => {
            return job::summary(&order, job, Supervisor::install(log)?, log);
        }
        Invocation::Base(order) => base::fetch(&order, log),
        Invocation::Prune(host) => recording::prune(&host, log)?,
        Invocation::Explain { order, json } => {
            let explanation = step::explain(order, &mut Supervisor::install(log)?, log)?;
            if json {
                let json = serde_json::to_string_pretty(&explanation);
                let json = json.classify(Class::Bug, || "cannot write JSON".into())? + "\n";
                print(&*seen_json(&json))?;
            } else {
                print(for_output(&explanation.to_string()))?;
            }
        }
        Invocation::Doctor { order, json } => {
            let mut supervisor = Supervisor::install(log)?;
            let show = |check: &Check| {
                if json {
                    Ok(())
                } else {
                    print(check.to_string())
                }
            };
            let checkup = doctor::examine(&order, &mut supervisor, log, show)?;
            if json {
                let json = serde_json::to_string_pretty(&checkup);
                print(json.classify(Class::Bug, || "cannot write JSON".into())? + "\n")?;
            } else {
                print(checkup.to_string())?;
            }
            return Ok(checkup.status());
        }
        Invocation::PrintEnvironment(host) => {
            print(environment::as_shell(&environment::variables(&host)))?;
        }
        Invocation::SetEnvironment(host) => agent::set_environment(
            &mut Supervisor::install(log)?,
            &environment::variables(&host),
        )?,
        Invocation::Completions(shell) => print(options::completions(shell))?,
        Invocation::Message(message, status) => {
            // clap prints it: it knows by itself where to, and whether in colour. Nothing else runs then. But it repeats arguments as they
            // are, and those of a generated command come from a repository, or hold a credential.
            let text = message.render().to_string();
            let is_plain = redacted(&text) == text && for_output(&text) == text;
            if message.use_stderr() && !is_plain {
                log.plain(text.trim_end());
            } else {
                let _ = message.print();
            }
            return Ok(status);
        }
        Invocation::Refused(refusal) => return Err(report(refusal, log)?),
    }
    Ok(0)
}

/// Reports that what was asked for is refused. Gives the failure to end with.
fn report(Refusal { failure, step }: Refusal, log: &Log) -> Result<Failure, Failure> {
    Ok(match step {
        Some(reporting) => step::refuse(failure, &reporting, &mut Supervisor::install(log)?, log),
        None => failure,
    })
}

/// Builds a step; then becomes the command that follows it, or prints its outputs as `nix-build` does.
fn step_by_hand(
    order: StepOrder,
    command: Option<TrailingCommand>,
    log: &Log,
) -> Result<(), Failure> {
    let mut supervisor = Supervisor::install(log)?;
    let done = step::perform(order, &mut supervisor, log)?;
    if let Some(command) = command {
        return Err(job::become_trailing(command, done, supervisor));
    }
    supervisor.hand_over()?;
    for path in done.outputs.values() {
        print(format!("{path}\n"))?;
    }
    Ok(())
}

/// Prints to standard output. A pipe or a terminal that is closed at its other end is no failure.
fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    let printed = stdout
        .write_all(text.as_ref())
        .and_then(|()| stdout.flush());
    let is_closed = |error: &std::io::Error| {
        error.kind() == ErrorKind::BrokenPipe || error.raw_os_error() == Some(Errno::EIO as i32)
    };
    match printed {
        Err(error) if !is_closed(&error) => Err(error).classify(Class::Infrastructure, || {
            "cannot write to standard output".into()
        }),
        _ => Ok(()),
    }
}
