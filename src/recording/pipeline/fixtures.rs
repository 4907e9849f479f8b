//! Targets, edges and requests for tests.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::OnceLock;

use serde_json::Value;

use super::edges::Edges;
use crate::buildkite::schema::Schema;
use crate::keys::Keys;
use crate::nix::{Argument, AttrPath, DrvPath, Evaluation, Source, StorePath};
use crate::recording::{
    Emit, Evaluator, KeyStyle, KnownOutputs, Meta, OnError, Phases, RecordingRequest, Recurse,
    SkipStyle, SkipWhich, Target,
};

/// Made once: in a debug build that takes longer than many tests.
pub(in crate::recording) fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| Schema::new().unwrap())
}

pub(in crate::recording) fn path(names: &[&str]) -> AttrPath {
    AttrPath::new(names.iter().map(ToString::to_string).collect())
}

pub(in crate::recording) fn drv(i: usize) -> DrvPath {
    DrvPath::parse(&format!("/nix/store/{i:032}-x.drv")).unwrap()
}

pub(in crate::recording) fn target(i: usize, names: &[&str]) -> Target {
    Target {
        attr: path(names),
        also: Vec::new(),
        name: "x".into(),
        drv: drv(i),
        outputs: KnownOutputs::from_iter([(
            "out".into(),
            StorePath::parse(&format!("/nix/store/{i:032}-x")).unwrap(),
        )]),
        system: "x86_64-linux".into(),
        features: Vec::new(),
        meta: Meta::default(),
        followers: Vec::new(),
    }
}

/// A target with this `meta.buildkite`.
pub(in crate::recording) fn target_wishing(i: usize, buildkite: &Value) -> Target {
    Target {
        meta: Meta {
            buildkite: buildkite.as_object().cloned(),
            ..Meta::default()
        },
        ..target(i, &["p", &format!("t{i}")])
    }
}

pub(in crate::recording) fn request() -> RecordingRequest {
    RecordingRequest {
        root: Evaluation {
            source: Source::File("ci.nix".into()),
            attr: path(&["p"]),
            arguments: vec![
                ("n".into(), Argument::Expr("5".into())),
                ("s".into(), Argument::String("x y".into())),
            ],
            include: vec!["x=.".into()],
            call: true,
            folder: "/checkout".into(),
        },
        by_default: false,
        options: vec![("cores".into(), "2".into())],
        recurse: Recurse::Marked,
        exclude: Vec::new(),
        workers: None,
        memory: None,
        evaluation_timeout: None,
        evaluator: Evaluator::Nix,
        skip: SkipWhich::Nothing,
        base: None,
        batch: None,
        shared_steps: None,
        skip_style: SkipStyle::Mark,
        on_error: OnError::Step,
        expect_errors: Vec::new(),
        key_style: KeyStyle::Drv,
        key_prefix: String::new(),
        phases: Phases {
            build: true,
            release: true,
        },
        emit: Emit::Plugin("your-org/eval-once#v1".into()),
        build_keys: Keys::new(),
        share: None,
        share_limit: None,
        share_required: false,
        push: None,
        checkout_fallback: false,
        below: None,
        step: Keys::new(),
        agents: BTreeMap::new(),
        group_by: 0,
        meta: true,
        notify_statuses: false,
        summary: false,
        summary_fails: false,
        chunk: NonZeroUsize::new(100).unwrap(),
        keep_days: 3,
    }
}

/// The request of a user with this `step`.
pub(in crate::recording) fn request_wishing(step: &Value) -> RecordingRequest {
    RecordingRequest {
        step: step.as_object().unwrap().clone(),
        ..request()
    }
}

/// No target depends on another.
pub(in crate::recording) fn no_edges(targets: &[Target]) -> Edges {
    edges_between(targets, &[])
}

/// Targets of which some depend on others, by their numbers.
pub(in crate::recording) fn edges_between(targets: &[Target], pairs: &[(usize, usize)]) -> Edges {
    let drvs: Vec<_> = targets.iter().map(|target| target.drv.clone()).collect();
    let mut inputs: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (from, to) in pairs {
        inputs.entry(drv(*from)).or_default().push(drv(*to));
    }
    Edges::load(&drvs, |read| Ok(inputs.remove(read).unwrap_or_default())).unwrap()
}

pub(in crate::recording) fn keys(value: &Value) -> Keys {
    value.as_object().unwrap().clone()
}

/// A target with this `meta.eval-once`.
pub(in crate::recording) fn target_building(i: usize, wishes: &Value) -> Target {
    let mut target = target(i, &["p", &format!("t{i}")]);
    target.meta.eval_once = wishes.as_object().cloned();
    target
}
