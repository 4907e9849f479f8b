//! A cache is believed where this host's Nix believes it: who can write a cache, and not sign, keeps no target from being built.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    daemon::Daemon,
    program::{Ended, Program},
    recording::Pipeline,
    stand_in::StandIns,
    store::Store,
    target::Target,
    web::{Trouble, Web},
};

/// A store with a folder `cache` in which something is signed by a key that the host trusts, by another one, by none, is
/// content-addressed, or was never built.
struct Scene {
    store: Store,
}

const ATTRS: [&str; 5] = ["fixed", "forged", "other", "signed", "unsigned"];

/// What Nix takes from the cache.
const TRUSTED: [&str; 2] = ["fixed", "signed"];

impl Scene {
    fn new() -> Option<Self> {
        let store = Store::new()?;
        store.targets(
            r#"{
  signed = file "signed"; unsigned = file "unsigned"; other = file "other"; forged = build "forged" "exit 1";
  fixed = with' {
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" "fixed\n";
  } "fixed" "echo fixed > $out";
}"#,
        );
        let scene = Self { store };
        let key = |name: &str| {
            let file = |end: &str| scene.root(&format!("{name}.{end}"));
            let files = [file("secret"), file("public")];
            let arguments = ["--generate-binary-cache-key", name, &files[0], &files[1]];
            scene.store.nix("nix-store", arguments);
            let public = fs::read_to_string(&files[1]).unwrap();
            (files[0].clone(), public)
        };
        let ((good, public), (bad, _)) = (key("good"), key("bad"));
        for (attr, key) in [
            ("signed", Some(good)),
            ("other", Some(bad)),
            ("unsigned", None),
            ("fixed", None),
        ] {
            let target = scene.target(attr);
            scene.store.build(&target.drv);
            let key = key.map_or_else(String::new, |key| format!("?secret-key={key}"));
            let to = format!("{}{key}", scene.folder());
            scene.store.nix("nix", ["copy", "--to", &to, target.out()]);
            scene.store.delete([target.out()]);
        }
        let forged = scene.target("forged");
        let zeros = "0".repeat(52);
        let narinfo = format!(
            "StorePath: {}\nURL: nar/x.nar\nCompression: none\nFileHash: sha256:{zeros}\nFileSize: 1\nNarHash: sha256:{zeros}\nNarSize: 1\nReferences: \n",
            forged.out()
        );
        let name = &Path::new(forged.out())
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()[..32];
        fs::write(scene.root(&format!("cache/{name}.narinfo")), narinfo).unwrap();
        scene.store.configure("require-sigs = true");
        let key = format!("trusted-public-keys = {public}");
        scene.store.configure(&key);
        Some(scene)
    }

    fn root(&self, name: &str) -> String {
        self.store.root().join(name).to_str().unwrap().to_owned()
    }

    fn target(&self, attr: &str) -> Target {
        self.store.target(attr)
    }

    /// The cache as a folder.
    fn folder(&self) -> String {
        format!("file://{}", self.root("cache"))
    }

    fn use_caches(&self, urls: &str) {
        self.store.configure(&format!("substituters = {urls}"));
    }

    fn record(&self) -> Program {
        let record = ["pipeline", "--dry-run", "--file", "default.nix"];
        self.store.eval_once(record)
    }

    /// What Nix itself would take from its caches.
    fn taken_by_nix(&self) -> Vec<&'static str> {
        let mut taken = Vec::new();
        for attr in ATTRS {
            let target = self.target(attr);
            let nix = self.store.program("nix-store");
            let ended = nix.args(["--realise", target.out()]).run();
            if ended.status.success() {
                taken.push(attr);
                self.store.delete([target.out()]);
            }
        }
        taken
    }
}

/// The targets that are skipped.
fn skipped(ended: &Ended) -> Vec<&'static str> {
    let pipeline = Pipeline::of(ended);
    let skip = |attr: &str| pipeline.step(&[attr]).json["skip"].clone();
    let skipped = ATTRS.into_iter().filter(|attr| !skip(attr).is_null());
    let skipped: Vec<_> = skipped.collect();
    for attr in &skipped {
        assert_eq!(skip(attr), "a cache has it", "{attr}: {ended}");
    }
    skipped
}

const UNTRUSTED: &str =
    "a cache has 3 targets, without a signature that this host trusts: not skipped";

#[test]
fn a_target_is_in_a_cache_only_where_nix_would_take_it_from_there() {
    let Some(scene) = Scene::new() else { return };
    let web = Web::serve(scene.root("cache"));
    for url in [scene.folder(), web.url()] {
        scene.use_caches(&url);
        let daemon = scene.store.daemon();
        for client in [Vec::new(), daemon.env()] {
            let ended = scene.record().envs(client).run();
            assert_eq!(skipped(&ended), TRUSTED, "{ended}");
            assert_eq!(ended.stderr.matches(UNTRUSTED).count(), 1, "{ended}");
        }
        assert_eq!(scene.taken_by_nix(), TRUSTED, "{url}");
    }
}

#[test]
fn a_cache_whose_paths_need_no_signature_is_believed_as_nix_believes_it() {
    let Some(scene) = Scene::new() else { return };
    // Nix would take what is forged, too, and see only then that it has no content.
    let trusting = format!("{}?trusted=true", scene.folder());
    scene.use_caches(&trusting);
    assert_eq!(skipped(&scene.record().run()), ATTRS);
    scene.use_caches(&scene.folder());
    scene.store.configure("require-sigs = false");
    let ended = scene.record().run();
    assert_eq!(skipped(&ended), ATTRS);
    ended.never_says("signature");
    let taken = ["fixed", "other", "signed", "unsigned"];
    assert_eq!(scene.taken_by_nix(), taken);
}

#[test]
fn a_target_that_any_cache_has_with_a_signature_is_in_a_cache() {
    let Some(scene) = Scene::new() else { return };
    let both = format!("file://{} {}", scene.root("second"), scene.folder());
    scene.store.build(&scene.target("signed").drv);
    let signed = scene.target("signed");
    let unsigned = scene.store.cache("second", [signed.out()]);
    for file in fs::read_dir(scene.root("second")).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_some_and(|end| end == "narinfo") {
            let text = fs::read_to_string(&file).unwrap();
            assert!(!text.contains("Sig:"), "{text}");
        }
    }
    scene.store.delete([signed.out()]);
    scene.use_caches(&both);
    assert_eq!(skipped(&scene.record().run()), TRUSTED);
    // The one alone has none.
    scene.use_caches(&unsigned);
    let ended = scene.record().run();
    assert_eq!(skipped(&ended), [""; 0]);
    ended.passes_on("a cache has 1 target, without a signature that this host trusts: not skipped");
    // A cache in a folder that does not exist is not made by asking it.
    scene.use_caches(&format!("{both} file://{}", scene.root("none")));
    assert_eq!(skipped(&scene.record().run()), TRUSTED);
}

#[test]
fn where_the_question_for_signatures_fails_nothing_is_skipped_because_of_it() {
    let Some(scene) = Scene::new() else { return };
    let web = Web::serve(scene.root("cache"));
    // Nix remembers what it has read of a cache. Then it asks again, and the cache is broken.
    scene.use_caches(&web.url());
    assert_eq!(skipped(&scene.record().run()), TRUSTED);
    let remembered = scene.store.root().join("home/.cache/nix");
    let daemon = scene.store.daemon();
    let recorded = |client| scene.record().envs(client).run();
    assert_eq!(skipped(&recorded(daemon.env())), TRUSTED);
    // The daemon has its own memory, and this user's is gone.
    fs::remove_dir_all(remembered).unwrap();
    web.spoil(".narinfo", Trouble::Answers(403));
    web.spoil("nix-cache-info", Trouble::Answers(403));
    let ended = recorded(daemon.env());
    assert_eq!(skipped(&ended), [""; 0], "{ended}");
    ended.passes_on(&format!(
        "5 targets are not skipped: {} cannot be asked for signatures: ",
        web.url()
    ));
    ended.never_says("without a signature");
}

#[test]
fn the_login_of_a_cache_stays_out_of_the_arguments() {
    let Some(scene) = Scene::new() else { return };
    let web = Web::serve(scene.root("cache"));
    let url = web.url().replace("http://", "http://user:s3cr3tpassw0rd@");
    scene.use_caches(&url);
    let stand_ins = StandIns::new(scene.root("stand-ins")).counting("nix");
    let path = stand_ins.path(&scene.store);
    let record = scene.record().env("EVAL_ONCE_LOG", "debug");
    let ended = record.env("PATH", path).run();
    assert_eq!(skipped(&ended), TRUSTED, "{ended}");
    ended.never_says("s3cr3tpassw0rd");
    let calls = stand_ins.calls("nix");
    let verified = calls.iter().filter(|call| call.contains(&"verify".into()));
    assert!(verified.count() > 0, "{calls:?}");
    for argument in calls.iter().flatten() {
        assert!(!argument.contains("s3cr3tpassw0rd"), "{argument}");
    }
}

#[test]
fn a_step_that_may_be_skipped_is_green_only_with_outputs_that_nix_would_take() {
    let Some(scene) = Scene::new() else { return };
    scene.use_caches(&scene.folder());
    let step = |attr: &str| {
        let target = scene.target(attr);
        let mut record: Value = json!({ "drv": target.drv, "skip": true });
        for (name, path) in &target.outputs {
            record["outputs"][name] = path.as_str().into();
        }
        let record = record.to_string();
        let explained = scene.store.eval_once(["explain", "--json"]);
        let explained = explained.env("EVAL_ONCE_STEP", &record).run();
        let no_flags: [&str; 0] = [];
        let step = scene.store.step(no_flags).env("EVAL_ONCE_STEP", record);
        (step.run(), explained.json())
    };
    for attr in TRUSTED {
        let (ended, explained) = step(attr);
        ended.exits(0).takes("available", "skipped");
        assert_eq!(explained["reason"], "skipped");
    }
    for attr in ["unsigned", "other"] {
        let (ended, explained) = step(attr);
        ended.exits(0).takes("realised", "drv-valid").counts(1, 0);
        assert_eq!(explained["reason"], "drv-valid", "{explained}");
    }
    let (ended, _) = step("forged");
    ended.fails(100, "build");
}

/// A daemon has its own memory of a cache, and its own settings.
#[test]
fn through_a_daemon_many_paths_are_asked_for_at_once() {
    let Some(scene) = Scene::new() else { return };
    let names: String = (0..130).fold(String::new(), |text, number| {
        text + &format!("t{number} = file \"t{number}\"; ")
    });
    scene.store.targets(&format!("{{ {names} }}"));
    let drvs = scene.store.nix("nix-instantiate", ["default.nix"]);
    let outputs = scene.store.nix(
        "nix-store",
        [&["--realise"][..], &drvs.lines().collect::<Vec<_>>()].concat(),
    );
    let outputs: Vec<&str> = outputs.lines().collect();
    let key = scene.root("good.secret");
    let to = format!("{}?secret-key={key}", scene.folder());
    let copy = [&["copy", "--to", &to][..], &outputs].concat();
    scene.store.nix("nix", copy);
    scene.store.delete(&outputs);
    let web = Web::serve(scene.root("cache"));
    scene.use_caches(&web.url());
    let daemon: Daemon = scene.store.daemon();
    let ended = scene.record().envs(daemon.env()).run();
    let pipeline = Pipeline::of(&ended);
    let steps = pipeline.steps();
    assert_eq!(steps.len(), 130);
    for (attr, step) in steps {
        assert_eq!(step.json["skip"], "a cache has it", "{attr}: {ended}");
    }
}
