//! `explain`: what `step` would do with the same keys, and why. It asks, and does nothing.

use serde::Serialize;

use super::Order;
use super::context::Step;
use super::report::{Reason, WayName};
use super::request::Request;
use super::ways::{Fact, in_order, placeholder_link};
use crate::exit::Failure;
use crate::log::Log;
use crate::nix::command;
use crate::supervise::{CommandLine, Supervisor};

/// What a step would do.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The version of this format.
    pub version: u32,
    /// The way that would be taken; none where no way leads to the outputs.
    pub would: Option<WayName>,
    /// Why that way.
    pub reason: Option<Reason>,
    /// What was looked at, and found, in this order.
    pub facts: Vec<Fact>,
    /// The argument vectors that would be run, in order. `NEW` stands for a folder's random name, `DRV` for a path that is
    /// not known before the evaluation.
    pub commands: Vec<Vec<String>>,
    /// One command that gives the same outputs by hand.
    #[serde(rename = "nix-build")]
    pub nix_build: Option<String>,
}

/// Asks the ways, in the order in which `step` would go them.
///
/// # Errors
/// What is ordered is refused (64), or the store cannot be asked (75).
pub fn explain(
    order: Order,
    supervisor: &mut Supervisor,
    log: Log,
) -> Result<Explanation, Failure> {
    let request = Request::read(order.keys?, &order.place)?;
    let host = order.host?;
    let mut step = Step::new(&request, &order.place, &host, supervisor, log);
    step.prepare()?;
    step.link = placeholder_link(&step);
    let mut explanation = Explanation {
        version: 1,
        would: None,
        reason: None,
        facts: Vec::new(),
        commands: Vec::new(),
        nix_build: by_hand(&request, step.link.as_deref()).map(|line| line.to_string()),
    };
    for way in in_order(step.drv_file) {
        let answer = (way.ask)(&mut step)?;
        explanation.facts.extend(answer.facts);
        explanation
            .commands
            .extend(answer.commands.iter().map(CommandLine::words));
        if let Some(reason) = answer.takes {
            explanation.would = Some(way.name);
            explanation.reason = Some(reason);
            break;
        }
    }
    Ok(explanation)
}

fn by_hand(request: &Request, link: Option<&std::path::Path>) -> Option<CommandLine> {
    match (&request.evaluation, &request.drv) {
        (Some(evaluation), _) => Some(command::nix_build(evaluation, link, &request.options)),
        (None, Some(drv)) => Some(command::nix_build_drv(drv, link, &request.options)),
        (None, None) => None,
    }
}

/// For people.
impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let (Some(way), Some(reason)) = (self.would, self.reason) {
            writeln!(f, "the step would be {} ({})", way.word(), reason.word())?;
        } else {
            writeln!(f, "no way leads to the outputs: the step would fail")?;
        }
        writeln!(f, "because")?;
        for fact in &self.facts {
            writeln!(f, "  {}: {}", fact.what, fact.found)?;
        }
        writeln!(f, "it would run")?;
        for command in &self.commands {
            let words: Vec<String> = command
                .iter()
                .map(|word| crate::supervise::shell_word(word))
                .collect();
            writeln!(f, "  {}", words.join(" "))?;
        }
        if let Some(nix_build) = &self.nix_build {
            writeln!(f, "by hand, without eval-once\n  {nix_build}")?;
        }
        Ok(())
    }
}
