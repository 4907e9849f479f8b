//! The steps that build: of a target, of a derivation that several targets need, of a batch of targets.

use serde_json::{Value, json};

use super::checkout;
use super::labels::{attr_name, check_names, inert, label};
use super::maker::{STEP, StepMaker, UnlinkedStep, add_outputs, our_plugin};
use super::record::text;
use super::step_key::shared_key;
use super::variables::{self, size};
use super::wishes::{BuildWishes, FOR_OUTPUTS, FOR_TARGETS, StepWishes, build_wishes};
use crate::buildkite::pipeline::{CommandStep, StepCommand, StepSkip};
use crate::exit::{Class, Failure};
use crate::keys::Keys;
use crate::recording::pipeline::limits::{JOBS_PER_UPLOAD, REASON_AT_MOST};
use crate::recording::{Emit, SkipStyle, Target};
use crate::secrets::shortened;

/// What stands around the targets of a batch in its record, in bytes: `"out-link":false,"targets":[],`.
const AROUND_TARGETS: usize = 64;

/// What stands around a target there and its key, in bytes, with the key: `{"key":"…"},`.
const AROUND_KEY: usize = 128;

impl StepMaker<'_> {
    /// The step of a target.
    ///
    /// # Errors
    /// The target makes no step that Buildkite or an agent would take; the sentence says why.
    pub(super) fn target(
        &self,
        target: &Target,
        skip: Option<&str>,
    ) -> Result<UnlinkedStep, String> {
        check_names(&target.attr)?;
        let meta = &target.meta;
        let in_buildkite = |message| format!("in its `meta.buildkite`, {message}");
        let buildkite = meta.buildkite.as_ref().filter(|_| self.request.meta);
        let wishes = buildkite.map_or(Ok(StepWishes::default()), |keys| {
            let wishes = StepWishes::read(keys, &self.request.emit, self.schema)?;
            self.check_circle(&target.attr).map(|()| wishes)
        });
        let wishes = wishes.map_err(in_buildkite)?;
        let eval_once = meta.eval_once.as_ref().filter(|_| self.request.meta);
        let BuildWishes { keys, fallback } = eval_once
            .map_or(Ok(BuildWishes::default()), |keys| {
                build_wishes(keys, self.request)
            })
            .map_err(|message| format!("in its `meta.eval-once`, {message}"))?;
        let skips_checkout =
            checkout::skips(self.request, &[&self.step, &wishes]).map_err(in_buildkite)?;
        let own_command = self.step.has("command") || wishes.has("command");
        let other_plugin = self.step.has("plugins") || wishes.has("plugins");
        let mut record = self.record(&target.attr);
        record.extend(self.request.build_keys.clone());
        record.extend(keys);
        if let Some(fallback) = fallback {
            fallback.replace_in(&mut record, target);
        }
        let leaves_command = record.get("command").is_some_and(|when| when == "none");
        if leaves_command && !other_plugin {
            if own_command {
                return Err("its step has a command, which `command: none` leaves to another plugin, and it has no other plugin".into());
            }
            // No command, and no plugin to leave it to.
            record.remove("command");
        }
        // A skipped step runs nothing, so only a step that does nothing but build is skipped. What another plugin runs may be
        // in that plugin's configuration, which we do not know. And an explicit `skip` is the user's decision.
        let runs_more = own_command || leaves_command && other_plugin;
        let has_skip = self.step.has("skip") || wishes.has("skip");
        let skip = skip.filter(|_| !runs_more && !has_skip);
        let skip = skip.map(|reason| shortened(&inert(reason), REASON_AT_MOST));
        let ends_at_once = skip.is_some() && self.request.skip_style == SkipStyle::Run;
        if ends_at_once {
            record.insert("skip".into(), true.into());
        }
        if skips_checkout {
            record.insert("checkout".into(), "fallback".into());
        }
        add_findings(&mut record, target);
        let name = match target.attr.names() {
            [] => target.name.clone(),
            _ => attr_name(&target.attr),
        };
        let label = label(":nix:", &name);
        let is_plain = buildkite.is_none()
            && eval_once.is_none()
            && target.followers.is_empty()
            && timeout_in_minutes(target).is_none()
            && skip.is_none();
        let alone = self
            .request
            .batch
            .filter(|_| is_plain)
            .map(|_| record.clone());
        let mut step = match buildkite {
            Some(_) => self
                .checked_step(target, label, record, &wishes, skips_checkout)
                .map_err(in_buildkite)?,
            None => self.step_of_kind(target, label, record, skips_checkout)?,
        };
        if step.jobs() > JOBS_PER_UPLOAD {
            return Err(format!(
                "its step makes {} jobs, and Buildkite takes at most {JOBS_PER_UPLOAD} in one upload",
                step.jobs()
            ));
        }
        if let Some(reason) = skip.as_ref().filter(|_| !ends_at_once) {
            step.skip = Some(StepSkip::Reason(reason.clone()));
        }
        let step = self.with_status(step, Some(&name));
        let step = self.with_command_carried(step);
        variables::fit(&step)?;
        Ok(UnlinkedStep {
            step: step.into(),
            skip,
            record: alone,
        })
    }

    /// The step of a derivation that several targets need; none where it has more outputs than a job can be told. It has no attribute, so
    /// that it never evaluates.
    ///
    /// # Errors
    /// It is no step that Buildkite would take: a bug (70).
    pub(super) fn shared(&self, drv: &Target) -> Result<Option<UnlinkedStep>, Failure> {
        let mut record = self.request.build_keys.clone();
        // Nothing else is done in its step, and nothing looks for its outputs.
        record.remove("command");
        record.insert("out-link".into(), false.into());
        if let Some(options) = self.source.get("options") {
            record.insert("options".into(), options.clone());
        }
        add_findings(&mut record, drv);
        let label = label(":nix:", &format!("{} (shared)", drv.name));
        let mut step = self.begin(label, shared_key(&drv.drv, self.request), record)?;
        self.skip_checkout(&mut step);
        self.step
            .without(&[&FOR_TARGETS, &FOR_OUTPUTS])
            .merge_into(&mut step);
        // Where the collector took its `.drv`, or the store gives no answer, the targets that need it can still be built, each by
        // itself. Only where its builder fails, theirs would. (`true` and `false` are a user's own.)
        let soft = step.entry("soft_fail").or_insert_with(|| json!([]));
        if let Value::Array(rules) = soft {
            rules.push(json!({ "exit_status": Class::Infrastructure.status() }));
        }
        self.merge_agents(&mut step, &drv.system, &drv.features);
        let step = self
            .check(step)
            .map_err(|message| Failure::new(Class::Bug, message))?;
        Ok(variables::fit(&step).is_ok().then_some(UnlinkedStep {
            step: step.into(),
            skip: None,
            record: None,
        }))
    }

    /// The most bytes of the records of a batch's targets, as [`Self::bytes_in_batch`] counts them.
    pub(super) fn room_in_batch(&self) -> usize {
        let common = size(&self.source) + size(&self.request.build_keys);
        self.room.saturating_sub(common + AROUND_TARGETS)
    }

    /// What of a target's record a batch has besides what all have in common. Options are counted for each: where those of one differ, they
    /// are not common.
    pub(super) fn bytes_in_batch(&self, record: &Keys) -> usize {
        let is_common = |key: &str| {
            key != "options"
                && (self.source.contains_key(key) || self.request.build_keys.contains_key(key))
        };
        let mut own = record.clone();
        own.retain(|key, _| !is_common(key));
        size(&own) + AROUND_KEY
    }

    /// The step with this key that builds several targets, one after the other.
    ///
    /// # Errors
    /// It is no step that Buildkite would take: a bug (70), for that of each target is one.
    pub(super) fn batch(
        &self,
        key: &str,
        mut members: Vec<(&Target, UnlinkedStep)>,
    ) -> Result<UnlinkedStep, Failure> {
        members.sort_by(|(one, _), (other, _)| one.attr.cmp(&other.attr));
        let Some((first, _)) = members.first() else {
            return Err(Failure::new(Class::Bug, "a batch is empty"));
        };
        let first = *first;
        let name = format!("{} and {} more", attr_name(&first.attr), members.len() - 1);
        let mut records: Vec<(String, Keys)> = members
            .into_iter()
            .map(|(target, draft)| (self.keys.target(target), draft.record.unwrap_or_default()))
            .collect();
        // What all of them say is said once.
        let mut common = records
            .first()
            .map(|(_, record)| record.clone())
            .unwrap_or_default();
        common.retain(|key, value| records.iter().all(|(_, it)| it.get(key) == Some(value)));
        for (key, record) in &mut records {
            record.retain(|name, _| !common.contains_key(name));
            record.insert("key".into(), key.as_str().into());
        }
        // They have no link in common, and none of them needs one.
        common.insert("out-link".into(), false.into());
        let targets = records.into_iter().map(|(_, record)| record);
        common.insert("targets".into(), targets.map(Value::Object).collect());
        let skips_checkout = common.contains_key("checkout");
        let step = self
            .checked_step(
                first,
                label(":nix:", &name),
                common,
                &StepWishes::default(),
                skips_checkout,
            )
            .map(|step| {
                self.with_command_carried(CommandStep {
                    key: key.to_owned(),
                    ..step
                })
            })
            .and_then(|step| variables::fit(&step).map(|()| step))
            .map_err(|message| Failure::new(Class::Bug, message))?;
        Ok(UnlinkedStep {
            step: step.into(),
            skip: None,
            record: None,
        })
    }

    /// The step of a target that has no wishes. The first of its kind is made and checked; the others are the same with other labels,
    /// keys and records, in which nothing is left to check. (To make and check each took half of our own time in a recording of
    /// 10,000 light targets.)
    fn step_of_kind(
        &self,
        target: &Target,
        label: String,
        record: Keys,
        skips_checkout: bool,
    ) -> Result<CommandStep, String> {
        let timeout = timeout_in_minutes(target);
        let kind = (
            target.system.clone(),
            target.features.clone(),
            timeout.is_some(),
        );
        let checked = self.checked.borrow().get(&kind).cloned();
        let Some(mut step) = checked else {
            let wishes = StepWishes::default();
            let step = self.checked_step(target, label, record, &wishes, skips_checkout)?;
            let mut without_record = step.clone();
            self.put_record(&mut without_record, Keys::new());
            self.checked.borrow_mut().insert(kind, without_record);
            return Ok(step);
        };
        if self.step.get("label").is_none() {
            step.label = label;
        }
        step.key = self.keys.target(target);
        if timeout.is_some() {
            step.timeout_in_minutes = timeout;
        }
        self.put_record(&mut step, record);
        Ok(step)
    }

    /// Replaces the record of a step.
    fn put_record(&self, step: &mut CommandStep, record: Keys) {
        match &self.request.emit {
            // Ours is the first one.
            Emit::Plugin(reference) => {
                if let Some(plugin) = step.plugins.first_mut() {
                    *plugin = our_plugin(reference, record.into());
                }
            }
            Emit::Command => {
                step.env
                    .insert("EVAL_ONCE_STEP".into(), text(&record).into());
            }
        }
    }

    /// The step of a target, made of all wishes and checked.
    fn checked_step(
        &self,
        target: &Target,
        label: String,
        record: Keys,
        wishes: &StepWishes,
        skips_checkout: bool,
    ) -> Result<CommandStep, String> {
        let mut step = self
            .begin(label, self.keys.target(target), record)
            .map_err(|failure| failure.to_string())?;
        if skips_checkout {
            step.extend(checkout::properties());
        }
        self.merge_wishes(&mut step, target, wishes);
        self.check(step)
    }

    /// Merges wishes in the order of their scope, so that the more specific one counts: those of every step, of the target's
    /// system, of its features, and of the target itself.
    fn merge_wishes(&self, step: &mut Keys, target: &Target, wishes: &StepWishes) {
        self.step.merge_into(step);
        self.merge_agents(step, &target.system, &target.features);
        if let Some(minutes) = timeout_in_minutes(target) {
            step.insert("timeout_in_minutes".into(), minutes.into());
        }
        wishes.merge_into(step);
    }

    /// With `emit: command`, a command of the user's own is carried beside the record, and `eval-once step` runs it after the
    /// build. As the step's own command, an agent without our hook would run it with nothing built before it.
    pub(super) fn with_command_carried(&self, mut step: CommandStep) -> CommandStep {
        if self.request.emit != Emit::Command || !step.env.contains_key("EVAL_ONCE_STEP") {
            return step;
        }
        let step_command = Some(StepCommand::One(STEP.into()));
        let text = match std::mem::replace(&mut step.command, step_command) {
            None => return step,
            Some(StepCommand::One(command)) if command == STEP => return step,
            Some(StepCommand::One(command)) => command,
            // As Buildkite joins them for an agent.
            Some(StepCommand::Several(commands)) => commands.join("\n"),
        };
        step.env.insert("EVAL_ONCE_COMMAND".into(), text.into());
        step
    }
}

/// The timeout of a target; none where it has none.
fn timeout_in_minutes(target: &Target) -> Option<u64> {
    let seconds = target.meta.timeout.filter(|seconds| *seconds > 0);
    seconds.map(|seconds| seconds.div_ceil(60))
}

/// Adds to a record what the evaluation found of its target.
fn add_findings(record: &mut Keys, target: &Target) {
    if let Some(seconds) = target.meta.max_silent {
        let options = record.entry("options").or_insert_with(|| json!({}));
        options["max-silent-time"] = seconds.into();
    }
    add_outputs(record, &target.drv, &target.outputs);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build_keys::BuildKeys;
    use crate::evaluation_keys::{self, Checkout};
    use crate::keys::KeyReader;
    use crate::nix::{Evaluation, Source};
    use crate::recording::pipeline::steps::fixtures::{made_steps, make, record_of};
    use crate::recording::{KnownOutputs, RecordingRequest};

    use crate::recording::pipeline::fixtures::*;

    use std::path::{Path, PathBuf};

    /// The evaluation of a record.
    fn evaluation_of(record: Keys) -> Evaluation {
        let place = Checkout {
            folder: "/checkout".into(),
            confined: false,
            no_checkout: false,
        };
        let mut reader = KeyReader::new(record).unwrap();
        let (evaluation, _) = evaluation_keys::read(&mut reader, &place, true).unwrap();
        evaluation.unwrap()
    }

    #[test]
    fn a_step_carries_the_whole_record_of_its_target() {
        for emit in [Emit::Command, request().emit] {
            let request = RecordingRequest { emit, ..request() };
            let target = target(1, &["p", "a.b"]);
            let step = &made_steps(std::slice::from_ref(&target), &request)[0];
            let record = record_of(step);
            let expected = json!({
                "file": "ci.nix", "arg": { "n": "5" }, "argstr": { "s": "x y" }, "include": ["x=."],
                "options": { "cores": "2" }, "attr": ["p", "a.b"], "drv": target.drv.as_store_path().as_str(),
                "outputs": { "out": target.outputs["out"].as_str() }
            });
            assert_eq!(Value::Object(record.clone()), expected);
            let expected = Evaluation {
                attr: target.attr.clone(),
                ..request.root.clone()
            };
            assert_eq!(evaluation_of(record), expected);
            assert_eq!(step["label"], ":nix: p.\"a.b\"");
            assert_eq!(
                step["key"],
                format!("drv-{}", target.drv.as_store_path().hash())
            );
            assert_eq!(step["depends_on"], json!([]));
            assert_eq!(step["command"].is_string(), request.emit == Emit::Command);
            assert_eq!(
                step["retry"]["automatic"],
                json!([
                    { "exit_status": 75, "limit": 2 },
                    { "exit_status": -1, "signal_reason": "none", "limit": 2 },
                    { "signal_reason": "agent_stop", "limit": 2 },
                    { "exit_status": 255, "signal_reason": "none", "limit": 1 }
                ])
            );
        }
    }

    #[test]
    fn a_step_is_the_same_whether_it_is_the_first_of_its_kind_or_not() {
        let wishes = json!({
            "env": { "A": "1" }, "plugins": ["docker#v5"], "retry": { "automatic": [{ "exit_status": 75, "limit": 9 }] },
            "timeout_in_minutes": 7, "depends_on": ["before"]
        });
        let own_label = json!({ "label": "the same for all", "soft_fail": true });
        let mut targets: Vec<Target> = (0..9)
            .map(|i| target(i, &["p", &format!("t{i}")]))
            .collect();
        targets[1].system = "aarch64-linux".into();
        targets[2].features = vec!["kvm".into()];
        targets[3].meta.timeout = Some(61);
        targets[4].meta.timeout = Some(4_000);
        targets[5].meta.max_silent = Some(5);
        targets[6].meta.eval_once = Some(keys(&json!({ "log": "raw" })));
        targets[7].outputs = KnownOutputs::default();
        targets[8].meta.buildkite = Some(keys(&json!({ "priority": 1 })));
        // Once more, each behind the first of its kind.
        let again: Vec<Target> = targets
            .iter()
            .map(|one| Target {
                drv: target(20, &[]).drv,
                attr: path(&["p", "again"]),
                ..one.clone()
            })
            .collect();
        for emit in [Emit::Command, request().emit] {
            for wishes in [&json!({}), &wishes, &own_label] {
                for checkout_fallback in [false, true] {
                    let request = RecordingRequest {
                        emit: emit.clone(),
                        checkout_fallback,
                        agents: [("aarch64-linux", "arm"), ("feature:kvm", "metal")]
                            .map(|(name, queue)| {
                                (name.to_owned(), keys(&json!({ "queue": queue })))
                            })
                            .into(),
                        ..request_wishing(wishes)
                    };
                    for again in &again {
                        let mut all = targets.clone();
                        all.push(again.clone());
                        let alone = made_steps(std::slice::from_ref(again), &request);
                        assert_eq!(made_steps(&all, &request).last(), alone.first());
                    }
                }
            }
        }
    }

    #[test]
    fn every_source_is_read_back_from_the_record() {
        for source in [
            Source::File("default.nix".into()),
            Source::Expr("import ./. { }".into()),
            Source::Flake(".".into()),
        ] {
            let mut request = request();
            request.root.source = source.clone();
            if matches!(source, Source::Flake(_)) {
                request.root.arguments.clear();
                request.root.include.clear();
            }
            let steps = made_steps(&[target(1, &[])], &request);
            let evaluation = evaluation_of(record_of(&steps[0]));
            assert_eq!(evaluation.source, source);
            assert_eq!(evaluation.attr, path(&[]));
            assert_eq!(
                steps[0]["label"], ":nix: x",
                "the root is called by its derivation"
            );
        }
    }

    #[test]
    fn wishes_are_merged_and_those_of_the_target_come_last() {
        let request = request_wishing(&json!({
            "agents": ["queue=a", "big"], "env": { "A": "1", "B": "1" }, "plugins": ["docker#v5"],
            "depends_on": "before", "soft_fail": [{ "exit_status": 1 }], "timeout_in_minutes": 9,
            "retry": { "manual": false }
        }));
        let mut wish = target_wishing(
            1,
            &json!({
                "name": "mine", "agents": { "queue": "b" }, "env": { "B": 2 }, "plugins": { "x#v1": { "y": 1 } },
                "depends_on": [{ "step": "other" }, "before"], "commands": ["t"], "soft_fail": false
            }),
        );
        wish.meta.timeout = Some(60);
        let step = &made_steps(&[wish], &request)[0];
        assert_eq!(step["label"], "mine");
        assert_eq!(step["agents"], json!({ "queue": "b", "big": "true" }));
        assert_eq!(step["env"], json!({ "A": "1", "B": 2 }));
        assert_eq!(step["plugins"][1], "docker#v5");
        assert_eq!(step["plugins"][2], json!({ "x#v1": { "y": 1 } }));
        assert_eq!(step["depends_on"], json!(["before", { "step": "other" }]));
        assert_eq!(step["command"], json!(["t"]));
        assert_eq!(step["soft_fail"], false);
        assert_eq!(step["timeout_in_minutes"], 1, "the target's own counts");
        assert_eq!(step["retry"]["manual"], false);
        assert_eq!(step["retry"]["automatic"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn build_keys_are_in_every_record_and_those_of_the_target_win() {
        let build_keys =
            json!({ "command": "none", "log": "raw", "on-drift": "fail", "out-link": "out/a" });
        let docker = request_wishing(&json!({ "plugins": ["docker#v5"] }));
        for below in [None, Some(PathBuf::from("nix"))] {
            let link = "out/a";
            let request = RecordingRequest {
                build_keys: keys(&build_keys),
                below,
                ..docker.clone()
            };
            let other = json!({ "command": "after", "log": "pretty", "on-drift": "warn", "out-link": false });
            let targets = [target(0, &["p", "t0"]), target_building(1, &other)];
            let steps = made_steps(&targets, &request);
            let [first, second] = [0, 1].map(|i| Value::Object(record_of(&steps[i])));
            for (key, value) in build_keys.as_object().unwrap() {
                let expected = if key == "out-link" {
                    &json!(link)
                } else {
                    value
                };
                assert_eq!(&first[key], expected, "{key}");
                assert_eq!(second[key], other[key], "{key}");
            }
            let mut reader = KeyReader::new(record_of(&steps[0])).unwrap();
            let build = BuildKeys::read(&mut reader, Path::new("/checkout")).unwrap();
            assert!(build.leaves_the_command() && build.fail_on_drift == Some(true));
            let untrusted = RecordingRequest {
                meta: false,
                ..request
            };
            let steps = made_steps(&targets, &untrusted);
            assert_eq!(
                record_of(&steps[1])["log"],
                "raw",
                "`meta: false` ignores it"
            );
        }
    }

    #[test]
    fn a_command_that_no_other_plugin_would_run_refuses_that_target_alone() {
        let none = keys(&json!({ "command": "none" }));
        let mut with_command = target_wishing(0, &json!({ "command": "make" }));
        with_command.meta.eval_once = Some(none.clone());
        let targets = [with_command.clone(), target(1, &["b"])];
        let steps = make(&targets, &no_edges(&targets), &[], &request()).unwrap();
        let message = steps.errors.refused[0].message.clone().unwrap();
        assert!(message.contains("it has no other plugin"), "{message}");
        assert_eq!(steps.steps.len(), 2);

        // Without a command there is none to leave to another plugin.
        let mut bare = target(0, &["a"]);
        bare.meta.eval_once = Some(none);
        let step = &made_steps(&[bare.clone()], &request())[0];
        assert!(!record_of(step).contains_key("command"));

        let command = RecordingRequest {
            emit: Emit::Command,
            ..request()
        };
        for target in [bare, with_command] {
            let targets = [target];
            let steps = make(&targets, &no_edges(&targets), &[], &command).unwrap();
            let message = steps.errors.refused[0].message.clone().unwrap();
            assert!(
                message.contains("`command: none` cannot be combined with `emit: command`"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_wish_that_a_target_cannot_have_is_refused_by_name() {
        for (wishes, sentence) in [
            (
                json!({ "log": "loud" }),
                "`log` is \"loud\", and must be `pretty` or `raw`",
            ),
            (json!({ "command": true }), "`command` is true"),
            (
                json!({ "out-link": "a/" }),
                "`out-link` cannot be the path of a link",
            ),
            (json!({ "on-drift": null }), "`on-drift` is null"),
            (json!({ "flake": "x" }), "`flake` is not a key of a target"),
            (json!({ "push": "artifact" }), "`push` is no URL of a store"),
            (
                json!({ "share-required": 1 }),
                "`share-required` is 1, and must be `true` or `false`",
            ),
            (
                json!({ "artifacts": ["../x"] }),
                "`artifacts` holds \"../x\", which is not a path below the output",
            ),
        ] {
            let targets = [target_building(0, &wishes)];
            let steps = make(&targets, &no_edges(&targets), &[], &request()).unwrap();
            let message = steps.errors.refused[0].message.clone().unwrap();
            let expected = format!("in its `meta.eval-once`, {sentence}");
            assert!(message.starts_with(&expected), "{wishes}: {message}");
        }
    }

    #[test]
    fn how_long_a_build_may_print_nothing_is_an_option_of_its_step_alone() {
        let request = RecordingRequest {
            options: vec![
                ("cores".into(), "2".into()),
                ("max-silent-time".into(), "9".into()),
            ],
            ..request()
        };
        let mut quiet = target(0, &["a"]);
        quiet.meta.max_silent = Some(600);
        let steps = made_steps(&[quiet.clone(), target(1, &["b"])], &request);
        assert_eq!(
            record_of(&steps[0])["options"],
            json!({ "cores": "2", "max-silent-time": 600 })
        );
        assert_eq!(
            record_of(&steps[1])["options"],
            json!({ "cores": "2", "max-silent-time": "9" })
        );
        let steps = made_steps(
            &[quiet],
            &RecordingRequest {
                options: Vec::new(),
                ..request
            },
        );
        assert_eq!(
            record_of(&steps[0])["options"],
            json!({ "max-silent-time": 600 })
        );
        assert_eq!(
            evaluation_keys::read_options(&mut KeyReader::new(record_of(&steps[0])).unwrap())
                .unwrap(),
            [("max-silent-time".into(), "600".into())]
        );
    }

    #[test]
    fn a_timeout_in_seconds_becomes_whole_minutes() {
        for (seconds, minutes) in [
            (1, json!(1)),
            (60, json!(1)),
            (61, json!(2)),
            (0, Value::Null),
        ] {
            let mut target = target(1, &["a"]);
            target.meta.timeout = Some(seconds);
            assert_eq!(
                made_steps(&[target], &request())[0]["timeout_in_minutes"],
                minutes
            );
        }
    }

    #[test]
    fn a_command_of_its_own_is_carried_beside_the_record_where_steps_are_commands() {
        for (command, carried) in [
            (json!("make test"), json!("make test")),
            (json!(["a $x", "", "b"]), json!("a $x\n\nb")),
            (json!("eval-once step"), Value::Null),
            (json!(" "), Value::Null),
        ] {
            let request = RecordingRequest {
                emit: Emit::Command,
                ..request_wishing(&json!({ "command": command }))
            };
            let step = &made_steps(&[target(1, &["a"])], &request)[0];
            assert_eq!(step["command"], "eval-once step");
            assert_eq!(step["env"]["EVAL_ONCE_COMMAND"], carried);
        }
    }

    #[test]
    fn a_target_whose_command_another_plugin_runs_is_never_skipped() {
        let skip = [Some("built".to_owned())];
        let request = RecordingRequest {
            build_keys: keys(&json!({ "command": "none" })),
            ..request_wishing(&json!({ "plugins": ["docker#v5"] }))
        };
        let targets = [target(0, &["a"])];
        let steps = make(&targets, &no_edges(&targets), &skip, &request).unwrap();
        assert_eq!(steps.targets[0].skip, None);
    }

    #[test]
    fn a_step_with_a_command_of_its_own_is_never_skipped() {
        let skip = [
            Some("x".repeat(90)),
            Some("built".into()),
            Some("built".into()),
        ];
        let targets = [
            target(0, &["a"]),
            target_wishing(1, &json!({ "command": "test" })),
            target_wishing(2, &json!({ "skip": false })),
        ];
        let steps = make(&targets, &no_edges(&targets), &skip, &request()).unwrap();
        assert_eq!(steps.targets[0].skip.as_ref().unwrap().chars().count(), 70);
        assert_eq!(steps.targets[1].skip, None);
        assert_eq!(steps.targets[2].skip, None);
        let steps = make(
            &targets,
            &no_edges(&targets),
            &skip,
            &request_wishing(&json!({ "command": "t" })),
        );
        assert!(
            steps
                .unwrap()
                .targets
                .iter()
                .all(|step| step.skip.is_none())
        );
    }

    #[test]
    fn with_meta_false_metadata_is_ignored() {
        let wish = json!({
            "command": "evil", "agents": { "queue": "evil" }, "plugins": [{ "evil#v1": null }], "env": { "EVIL": "1" },
        });
        let made = |meta| {
            let request = RecordingRequest { meta, ..request() };
            made_steps(&[target_wishing(1, &wish)], &request).remove(0)
        };
        let (taken, ignored) = (made(true), made(false));
        for key in ["command", "agents", "plugins", "env"] {
            assert!(
                taken[key].to_string().to_lowercase().contains("evil"),
                "{key}: {taken}"
            );
        }
        assert!(
            !ignored.to_string().to_lowercase().contains("evil"),
            "{ignored}"
        );
    }
}
