//! A storm: steps, recordings and uploads beside a garbage collector that never rests, killed at random moments, answered by a
//! Buildkite that fails. What was tried is counted, and every wrong outcome is shown with the seed that repeats it.
//!
//! Run by `script/storm`. The processes are those of the real program, the store and the daemon those of the real Nix, the agent is
//! the real one. A seed gives the same plan of actions again; what happens between them is the machine's timing, so a wrong outcome
//! that needs an unlucky moment may need several tries.
//!
//! Random delays are what a storm consists of, so it has them ([`kills`]). Nothing is synchronised by them.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a program that is run by hand and by script/test, and reports to its user alone"
)]

mod arguments;
mod kills;
mod place;
mod proxy;
mod recordings;
mod seed;
mod stage;
mod steps;
#[expect(
    dead_code,
    unused_imports,
    reason = "what the integration tests stand on; a storm needs a part of it"
)]
#[path = "../../tests/support/mod.rs"]
mod support;
mod tally;
mod uploads;

use std::{
    env,
    process::{Command, ExitCode},
    time::Duration,
};

use arguments::Arguments;
use stage::{Stage, Stop};
use tally::Tally;

/// A part: its name, how much of the time it gets, its columns, and what it does.
type Part = (&'static str, u32, &'static [&'static str], fn(&Stage));

/// The parts in their order. On two cores that had other work, half an hour was enough for 9,857 steps and 1,060
/// kills.
const PARTS: [Part; 4] = [
    ("steps", 50, &steps::COLUMNS, steps::run),
    ("recordings", 13, &recordings::COLUMNS, recordings::run),
    ("kills", 20, &kills::COLUMNS, kills::run),
    ("uploads", 17, &uploads::COLUMNS, uploads::run),
];

fn main() -> ExitCode {
    let arguments = match Arguments::read(env::args().skip(1), &PARTS.map(|part| part.0)) {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("storm: {wrong}");
            return ExitCode::from(64);
        }
    };
    // Without Nix a test is skipped; so is this, in the same words.
    if support::tool("nix-store").is_none() {
        return ExitCode::SUCCESS;
    }
    // A trial that panics is a wrong outcome, which is shown as the others are.
    std::panic::set_hook(Box::new(|_| ()));
    let stop = Stop::on_signals();
    let parts: Vec<Part> = PARTS
        .into_iter()
        .filter(|part| arguments.names(part.0))
        .collect();
    let shares: u32 = parts.iter().map(|part| part.1).sum();
    println!(
        "{}, seed {}, {} min",
        nix_version(),
        arguments.seed,
        arguments.minutes
    );
    let mut wrong = 0;
    for (name, share, columns, run) in parts {
        if stop.signal().is_some() {
            break;
        }
        let seconds = arguments.minutes * 60.0 * f64::from(share) / f64::from(shares);
        let tally = Tally::new(name, columns);
        let stage = Stage::new(&arguments, Duration::from_secs_f64(seconds), &stop, &tally);
        run(&stage);
        println!("\n{name}: {:.0} s", stage.took().as_secs_f64());
        tally.print();
        wrong += tally.wrong_outcomes();
    }
    println!();
    println!("Wrong outcomes: {wrong}");
    match stop.signal() {
        Some(signal) => {
            println!("Ended by a signal before its time was over.");
            ExitCode::from(u8::try_from(128 + signal).unwrap())
        }
        None if wrong > 0 => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    }
}

/// As Nix says it: `nix-store (Nix) 2.8.0`.
fn nix_version() -> String {
    let printed = Command::new("nix-store").arg("--version").output().unwrap();
    let printed = String::from_utf8_lossy(&printed.stdout);
    printed.trim().trim_start_matches("nix-store ").to_owned()
}
