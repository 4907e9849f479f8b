//! `explain`: what `step` would do with the same keys, and why. It only asks.

use std::borrow::Cow;

use serde::Serialize;

use super::StepOrder;
use super::advice;
use super::program::StepProgram;
use super::pushing::push_line;
use super::report::{Reason, WayName};
use super::request::{OutLink, StepRequest};
use super::run::StepRun;
use super::ways::{Fact, fact, in_order, placeholder};
use crate::command_line::{CommandLine, shell_word};
use crate::exit::Failure;
use crate::keys::refuse;
use crate::log::Log;
use crate::nix::command;
use crate::secrets::redacted;
use crate::supervise::Supervisor;
use crate::text::is_hidden;

/// What a step would do.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The version of this format.
    pub version: u32,
    /// The way that the step would take; none where no way leads to the outputs.
    pub would: Option<WayName>,
    /// Why that way.
    pub reason: Option<Reason>,
    /// What was examined, and what was found, in this order.
    pub facts: Vec<Fact>,
    /// The argument vectors that the step would run, in order. `NEW` stands for a folder's random name, `LOCKED` for a flake's
    /// locked reference, and `DRV` for a path that is not known before the evaluation.
    pub commands: Vec<Vec<String>>,
    /// One command that reproduces it: `nix-build` (of a flake, `nix build`), or what comes closest where only a record is
    /// known, or Nix has no spelling for the attribute. (With several outputs, `nix-build` links only the default one.)
    #[serde(rename = "nix-build")]
    pub nix_build: Option<String>,
}

/// Asks the ways, in the order in which `step` tries them.
///
/// # Errors
/// The store cannot be asked (75).
pub fn explain(
    order: StepOrder,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Explanation, Failure> {
    if !order.request.targets.is_empty() {
        return Err(
            refuse("`explain` is of one target, and this step builds several")
                .hint("name one of them with its keys: --drv, --file, --attr"),
        );
    }
    let StepOrder {
        request,
        place,
        repository,
        host,
        in_build,
        ..
    } = order;
    let mut step = StepRun::new(&request, &place, &host, supervisor, log);
    step.repository = repository.as_ref();
    step.in_build = in_build;
    step.prepare()?;
    if request.out_link == OutLink::State {
        step.link = placeholder(&step, "outputs/NEW/result");
    }
    let mut explanation = Explanation {
        version: 1,
        would: None,
        reason: None,
        facts: needs_fact(&request).into_iter().collect(),
        commands: Vec::new(),
        nix_build: None,
    };
    for way in in_order(request.skip, step.drv_file) {
        if way.needs_record() && step.other_store().is_some() {
            continue;
        }
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
    explanation.facts.extend(program_fact(&request));
    // Of outputs that are not recorded, the paths are not known before.
    let is_pushed = explanation
        .reason
        .is_some_and(|reason| reason != Reason::Skipped);
    if is_pushed && let Some(line) = push_line(&mut step, &request.outputs)? {
        explanation.commands.push(line.words());
    }
    let version = step.nix_version()?;
    let reproduce = explanation
        .would
        .and_then(|way| reproduce(&request, way, version));
    explanation.nix_build = reproduce.map(|line| line.to_string());
    explanation.redact();
    Ok(explanation)
}

impl Explanation {
    /// Hides the credentials in it: the host's own settings may have some.
    fn redact(&mut self) {
        let facts = self.facts.iter_mut();
        let facts = facts.flat_map(|fact| [&mut fact.what, &mut fact.found]);
        let texts = facts.chain(self.commands.iter_mut().flatten());
        for text in texts.chain(&mut self.nix_build) {
            if let Cow::Owned(shown) = redacted(text) {
                *text = shown;
            }
        }
    }
}

/// The target that is realised first, if there is one.
fn needs_fact(request: &StepRequest) -> Option<Fact> {
    let needs = request.needs.as_ref()?;
    let what = match (&needs.drv, &needs.evaluation) {
        (Some(drv), _) => drv.to_string(),
        (None, Some(evaluation)) => evaluation.attr.to_string(),
        (None, None) => "the target".to_owned(),
    };
    Some(fact(
        what,
        "is realised first: the program needs its outputs",
    ))
}

/// The program that is run afterwards, if there is one.
fn program_fact(request: &StepRequest) -> Option<Fact> {
    let found = match request.run.as_ref()? {
        StepProgram::Named(name) => {
            format!(
                "is {name:?} in `bin` of the outputs, or an output that is a file, and is run after the build"
            )
        }
        StepProgram::Only => {
            "is the only executable file of the outputs, and is run after the build".to_owned()
        }
    };
    Some(fact("the program", found))
}

/// One command that gives what `way` gives.
fn reproduce(
    request: &StepRequest,
    way: WayName,
    version: Option<(u32, u32)>,
) -> Option<CommandLine> {
    let link = match &request.out_link {
        OutLink::At(link) => Some(link.as_path()),
        OutLink::State => None,
    };
    let options = &request.options;
    match (way, &request.evaluation, &request.drv) {
        (_, Some(_), _) => advice::reproduce(request, link, version),
        (WayName::Available, ..) => {
            let outputs: Vec<_> = request.outputs.values().collect();
            Some(command::obtain(&outputs, link, options))
        }
        (_, None, drv) => Some(command::realise(drv.as_ref()?, link, options)),
    }
}

/// For people.
impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let (Some(way), Some(reason)) = (self.would, self.reason) {
            writeln!(
                f,
                "the step would take the way `{}` ({})",
                way.word(),
                reason.word()
            )?;
        } else {
            writeln!(f, "the step would fail: no way leads to the outputs")?;
        }
        writeln!(f, "because")?;
        for fact in &self.facts {
            writeln!(f, "  {}: {}", fact.what, fact.found)?;
        }
        if !self.commands.is_empty() {
            writeln!(f, "it would run")?;
        }
        for command in &self.commands {
            let words: Vec<String> = command
                .iter()
                .map(|word| shell_word(word.as_ref()).to_string_lossy().into_owned())
                .collect();
            let line = words.join(" ");
            if line.contains(|c| c != '\n' && is_hidden(c)) {
                writeln!(
                    f,
                    "  a command with characters that are not seen: `explain --json` prints it"
                )?;
            } else {
                writeln!(f, "  {line}")?;
            }
        }
        if let Some(nix_build) = &self.nix_build {
            writeln!(f, "reproduce without eval-once\n  {nix_build}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explanation(would: Option<(WayName, Reason)>) -> Explanation {
        let command = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Explanation {
            version: 1,
            would: would.map(|(way, _)| way),
            reason: would.map(|(_, reason)| reason),
            facts: Vec::new(),
            commands: vec![
                command(&["nix-build", "a\u{1b}[2Jb"]),
                command(&["nix-instantiate", "a b.nix", "--argstr", "x", "it's"]),
                command(&["nix-store", "--realise", "DRV"]),
            ],
            nix_build: would.map(|_| "nix-build 'a b.nix'".into()),
        }
    }

    #[test]
    fn an_explanation_is_text_whose_commands_can_be_pasted() {
        let evaluated = explanation(Some((WayName::Evaluated, Reason::DrvMissing)));
        assert_eq!(
            evaluated.to_string(),
            "the step would take the way `evaluated` (drv-missing)\nbecause\nit would run\n  \
             a command with characters that are not seen: `explain --json` prints it\n  nix-instantiate 'a b.nix' --argstr x 'it'\\''s'\n  \
             nix-store --realise DRV\nreproduce without eval-once\n  nix-build 'a b.nix'\n"
        );
        let none = explanation(None).to_string();
        assert!(
            none.starts_with("the step would fail: no way leads to the outputs\nbecause\n"),
            "{none}"
        );
        assert!(!none.contains("reproduce"), "{none}");
        let nothing = Explanation {
            commands: Vec::new(),
            ..explanation(None)
        };
        assert!(!nothing.to_string().contains("it would run"), "{nothing}");
    }
}
