//! The command lines of Nix's programs. Each is a function from values to an argument vector.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, utf8_percent_encode};

use super::flake::URL_PART;
use super::{AttrPath, DrvPath, Evaluation, LockedFlake, Source, StorePath, StoreUrl};
use crate::command_line::{CommandLine, OutputLimit, Stdin};

/// Nix settings, in the order in which `--option` gets them: names and values.
pub type Options = [(String, String)];

/// The same, owned.
pub type OwnedOptions = Vec<(String, String)>;

fn command(program: &'static str, arguments: &[&str], options: &Options) -> CommandLine {
    let mut command = CommandLine::new(program, arguments);
    for (name, value) in options {
        command
            .arguments
            .extend(["--option".into(), name.into(), value.into()]);
    }
    command
}

fn rooted(mut command: CommandLine, link: Option<&Path>) -> CommandLine {
    if let Some(link) = link {
        command.arguments.extend(["--add-root".into(), link.into()]);
    }
    command
}

/// The same evaluation, which may read what is named in it whatever the settings say: it is ours, and reads nothing else.
fn unrestricted(mut command: CommandLine) -> CommandLine {
    for setting in ["restrict-eval", "pure-eval"] {
        command
            .arguments
            .extend(["--option", setting, "false"].map(OsString::from));
    }
    command
}

/// The same command, which collects nothing where `min-free` asks for that.
///
/// Each Nix that may write collects then, in a thread of its own, and does not wait for it in the end. 2.34.8 may die of that
/// where it has little to do (SIGSEGV), after it has done it; only without a daemon, which goes on. (In one store 14 of 14 bare
/// `nix-store --realise` did, in another one step of ten.)
#[must_use]
pub fn collecting_nothing(mut command: CommandLine) -> CommandLine {
    let nothing = ["--option", "min-free", "0"];
    command.arguments.extend(nothing.map(OsString::from));
    command
}

/// The same command, so that it says in a form that can be read what it does ([`super::structured`]). All versions from 2.8 on
/// take that, all programs too.
#[must_use]
pub fn structured(line: &CommandLine) -> CommandLine {
    let mut line = line.clone();
    line.arguments
        .extend(["--log-format", "internal-json"].map(OsString::from));
    line
}

/// Builds or substitutes all outputs of `drv`, and links them at `link`, `link-dev`, …; prints the links.
///
/// `nix-store --realise DRV` means the same in every version, which `nix build DRV` does not (from 2.15 on it builds nothing).
#[must_use]
pub fn realise(drv: &DrvPath, link: Option<&Path>, options: &Options) -> CommandLine {
    rooted(
        command(
            "nix-store",
            &["--realise", drv.as_store_path().as_str()],
            options,
        ),
        link,
    )
}

/// [`realise`] of what an evaluation prints, for showing: the path stands as `DRV`.
#[must_use]
pub fn realise_printed(link: Option<&Path>, options: &Options) -> CommandLine {
    rooted(command("nix-store", &["--realise", "DRV"], options), link)
}

/// Substitutes `paths` where they are not valid, and roots them at `link`, `link-2`, … in their order; makes no link
/// unless all of them are there in the end.
#[must_use]
pub fn obtain(paths: &[&StorePath], link: Option<&Path>, options: &Options) -> CommandLine {
    let mut arguments = vec!["--realise"];
    arguments.extend(paths.iter().map(|path| path.as_str()));
    rooted(command("nix-store", &arguments, options), link)
}

/// Writes the pin that `json` describes (pin.nix), and prints its path as a string. It reads nothing but that file, whatever the
/// settings say that evaluation may read.
#[must_use]
pub fn write_pin(json: &Path, options: &Options) -> CommandLine {
    let mut command = command(
        "nix-instantiate",
        &["--eval", "--read-write-mode", "-E", include_str!("pin.nix")],
        options,
    );
    command.name_argument(3, "pin");
    command
        .arguments
        .extend(["--argstr".into(), "json".into(), json.into()]);
    unrestricted(command)
}

/// `nix copy` is experimental in all versions so far.
const COPY: [&str; 3] = ["--extra-experimental-features", "nix-command", "copy"];

/// Copies `.drv`s with what they need to be realised, and not their outputs. (From 2.15 on, a `.drv` means itself; before, it means
/// its outputs, unless `--derivation` is given, which changes nothing later.)
#[must_use]
pub fn copy_drvs_to(to: &StoreUrl, drvs: &[&StorePath], options: &Options) -> CommandLine {
    let mut arguments = COPY.to_vec();
    arguments.extend(["--derivation", "--to", to.as_str()]);
    arguments.extend(drvs.iter().map(|path| path.as_str()));
    arguments.extend(remembered(to, SEEN_LATELY));
    arguments.extend(uploading(to));
    command("nix", &arguments, options)
}

/// Prints `drvs` and all that they need to be realised, each with the size of its NAR in bytes.
#[must_use]
pub fn sizes_of_closure(drvs: &[&StorePath], options: &Options) -> CommandLine {
    let mut arguments = vec!["--extra-experimental-features", "nix-command", "path-info"];
    arguments.extend(["--derivation", "--recursive", "--size"]);
    arguments.extend(drvs.iter().map(|path| path.as_str()));
    command("nix", &arguments, options)
}

/// Copies outputs with what they need. The store is asked for each of them, whatever this host remembers of it: a step that is green
/// has pushed them.
#[must_use]
pub fn copy_outputs_to(to: &StoreUrl, outputs: &[&StorePath], options: &Options) -> CommandLine {
    let mut arguments = COPY.to_vec();
    arguments.extend(["--to", to.as_str()]);
    arguments.extend(outputs.iter().map(|path| path.as_str()));
    arguments.extend(remembered(to, SEEN_NEVER));
    arguments.extend(uploading(to));
    command("nix", &arguments, options)
}

/// Prints those of `paths` that a store lacks, as it is now, whatever this host remembers of it: a store may delete, and other hosts
/// write to it. Status 0 says that it could be asked.
#[must_use]
pub fn lacking_in(store: &StoreUrl, paths: &[&StorePath], options: &Options) -> CommandLine {
    let mut arguments = vec!["--store", store.as_str()];
    arguments.extend(remembered(store, SEEN_NEVER));
    arguments.extend(remembered(store, MISSED_NEVER));
    arguments.extend(["--check-validity", "--print-invalid"]);
    arguments.extend(paths.iter().map(|path| path.as_str()));
    command("nix-store", &arguments, options)
}

/// Says on standard error which of `paths` would be fetched from a store, as it is now, and which it lacks: into a store that has
/// nothing, so that all of them count.
#[must_use]
pub fn would_obtain_from(store: &StoreUrl, paths: &[&StorePath], options: &Options) -> CommandLine {
    let mut arguments = vec!["--store", "dummy://", "--realise", "--dry-run"];
    arguments.extend(paths.iter().map(|path| path.as_str()));
    let mut command = command("nix-store", &arguments, options);
    command.answers_on_stderr = true;
    let memory = [SEEN_NEVER, MISSED_NEVER].concat();
    let substituters = ["--option", "substituters", store.as_str()];
    // Behind what the user sets, which is about this host.
    let last = memory.into_iter().chain(substituters);
    command.arguments.extend(last.map(OsString::from));
    command
}

/// Copies a `.drv` with what it needs to be realised into the store that is used here. (An ordinary user may, unsigned: all of it
/// is content-addressed.)
#[must_use]
pub fn copy_drv_from(from: &StoreUrl, drv: &DrvPath, options: &Options) -> CommandLine {
    let mut arguments = COPY.to_vec();
    arguments.extend([
        "--derivation",
        "--from",
        from.as_str(),
        drv.as_store_path().as_str(),
    ]);
    arguments.extend(remembered(from, MISSED_NEVER));
    command("nix", &arguments, options)
}

/// What this host has seen in a store counts for an hour. By default Nix believes it for 30 days, and would not copy again what
/// the store has deleted since (a bucket with a lifecycle: seen over HTTP with 2.8, 2.26 and 2.34).
const SEEN_LATELY: [&str; 3] = ["--option", "narinfo-cache-positive-ttl", "3600"];

/// What this host has not seen in a store is looked for again. By default Nix believes for an hour that it is missing, although a
/// recording may have copied it in the meantime.
const MISSED_NEVER: [&str; 3] = ["--option", "narinfo-cache-negative-ttl", "0"];

/// What this host has seen in a store is looked for again.
const SEEN_NEVER: [&str; 3] = ["--option", "narinfo-cache-positive-ttl", "0"];

/// The options for a store of which Nix remembers what it has.
fn remembered(store: &StoreUrl, options: [&'static str; 3]) -> Vec<&'static str> {
    match store.scheme() {
        "http" | "https" | "s3" => options.to_vec(),
        _ => Vec::new(),
    }
}

/// The options for an upload: curl gives up one that stands still for as long as a copy may (30 seconds), also while it
/// connects. By default that takes five minutes, each time of five.
fn uploading(store: &StoreUrl) -> Vec<&'static str> {
    let names = ["stalled-download-timeout", "connect-timeout"];
    match store.scheme() {
        "http" | "https" | "s3" => names
            .iter()
            .flat_map(|name| ["--option", name, "30"])
            .collect(),
        _ => Vec::new(),
    }
}

/// Prints what keeps `path` alive, one root on each line: `LINK -> PATH`. With a daemon, these are the roots that the daemon sees.
#[must_use]
pub fn roots_of(path: &StorePath, options: &Options) -> CommandLine {
    command("nix-store", &["--query", "--roots", path.as_str()], options)
}

/// Prints these paths and all that they refer to, one path on each line.
#[must_use]
pub fn closure(paths: &[&StorePath], options: &Options) -> CommandLine {
    let mut arguments = vec!["--query", "--requisites"];
    arguments.extend(paths.iter().map(|path| path.as_str()));
    command("nix-store", &arguments, options)
}

/// Prints those of `paths` that are not valid.
#[must_use]
pub fn invalid_of(paths: &[&StorePath], options: &Options) -> CommandLine {
    let mut arguments = vec!["--check-validity", "--print-invalid"];
    arguments.extend(paths.iter().map(|path| path.as_str()));
    command("nix-store", &arguments, options)
}

/// Prints the whole log of a derivation's build, where it was built here and its log was kept.
#[must_use]
pub fn read_log(drv: &DrvPath, options: &Options) -> CommandLine {
    command(
        "nix-store",
        &["--read-log", drv.as_store_path().as_str()],
        options,
    )
}

/// Prints the version of Nix.
#[must_use]
pub fn version() -> CommandLine {
    version_of("nix-instantiate")
}

/// Prints the version of a program of Nix's.
#[must_use]
pub fn version_of(program: &'static str) -> CommandLine {
    CommandLine::new(program, &["--version"])
}

/// Prints the version of the program `nix`, which builds flakes.
#[must_use]
pub fn version_of_nix() -> CommandLine {
    version_of("nix")
}

/// Says on standard error which of `paths` would be fetched, and which Nix would not know how to come by.
#[must_use]
pub fn would_obtain(paths: &[&StorePath], options: &Options) -> CommandLine {
    let mut arguments = vec!["--realise", "--dry-run"];
    arguments.extend(paths.iter().map(|path| path.as_str()));
    let mut command = command("nix-store", &arguments, options);
    command.answers_on_stderr = true;
    command
}

/// Prints `path` where it is not valid. Status 0 says that the store could be asked; without `--print-invalid` a dead
/// daemon would look like an invalid path.
#[must_use]
pub fn check_validity(path: &StorePath, options: &Options) -> CommandLine {
    invalid_of(&[path], options)
}

/// Prints a hash for each of `paths`, if all of them are valid: the one answer that a program which does nothing cannot give.
/// (Status 1 where one is not valid, on 2.8, 2.26 and 2.34.)
#[must_use]
pub fn hashes_of(paths: &[&StorePath], options: &Options) -> CommandLine {
    let mut arguments = vec!["--query", "--hash"];
    arguments.extend(paths.iter().map(|path| path.as_str()));
    command("nix-store", &arguments, options)
}

/// The same question as [`check_validity`] to a binary cache.
#[must_use]
pub fn check_cache(cache: &str, path: &StorePath, options: &Options) -> CommandLine {
    let question = [
        "--store",
        cache,
        "--check-validity",
        "--print-invalid",
        path.as_str(),
    ];
    command("nix-store", &question, options)
}

/// Says on standard error which of `paths` a substituter has (`checking '…'`), and which of those are not signed by a key that Nix
/// trusts (`is untrusted`). A signature is needed, whatever a store itself says that it has built.
#[must_use]
pub fn verify_signatures(
    substituter: &str,
    paths: &[&StorePath],
    options: &Options,
) -> CommandLine {
    let mut arguments = vec!["--extra-experimental-features", "nix-command", "store"];
    arguments.extend(["verify", "--no-contents", "--sigs-needed", "1"]);
    arguments.extend(["--store", substituter]);
    arguments.extend(paths.iter().map(|path| path.as_str()));
    let mut command = command("nix", &arguments, options);
    command.answers_on_stderr = true;
    command
}

/// Realises nothing at all: status 0 says that the store can be asked. (Measured: it connects to a daemon all the same.)
#[must_use]
pub fn ask_store(options: &Options) -> CommandLine {
    collecting_nothing(command("nix-store", &["--realise"], options))
}

/// Prints Nix's settings, `substituters = …` among them.
#[must_use]
pub fn show_config(options: &Options) -> CommandLine {
    command(
        "nix",
        &[
            "--extra-experimental-features",
            "nix-command",
            "show-config",
        ],
        options,
    )
}

/// Prints the settings that this host has for every user: those of a daemon, whatever this user's files and variables say.
#[must_use]
pub fn show_config_of_host() -> CommandLine {
    let mut command = show_config(&[]);
    command.variables = ["NIX_USER_CONF_FILES", "NIX_CONFIG"]
        .map(|name| (name, OsString::new()))
        .to_vec();
    command
}

/// Says which store this is, and from 2.26 on whether it trusts this user. Before, a daemon that does not trust the user says that it
/// ignores the substituter named here, which is not asked for anything. (The same on 2.8, 2.26 and 2.34; `ping` is the name before
/// 2.19.)
#[must_use]
pub fn store_identity(has_info: bool) -> CommandLine {
    let question = if has_info { "info" } else { "ping" };
    let substituters = ("substituters".into(), "http://untrusted.invalid".into());
    let arguments = ["--extra-experimental-features", "nix-command"];
    command(
        "nix",
        &[&arguments[..], &["store", question]].concat(),
        &[substituters],
    )
}

/// Writes a small file into the store, with this text, and prints its path as a string.
#[must_use]
pub fn write_small_file(text: &str) -> CommandLine {
    let expression = "{ text }: builtins.toFile \"eval-once-doctor\" text";
    let arguments = ["--eval", "--read-write-mode", "-E", expression];
    let mut command = command("nix-instantiate", &arguments, &[]);
    let text = ["--argstr", "text", text];
    command.arguments.extend(text.map(OsString::from));
    unrestricted(command)
}

/// Evaluates, writes the `.drv`, roots it at `root`, and prints one line for every derivation there is.
#[must_use]
pub fn instantiate(
    evaluation: &Evaluation,
    locked: Option<&LockedFlake>,
    root: Option<&Path>,
    options: &Options,
) -> CommandLine {
    rooted(
        evaluating("nix-instantiate", &[], evaluation, locked, options),
        root,
    )
}

/// How much is kept of a value, in bytes. Of it, a line is shown.
const VALUE_AT_MOST: usize = 64 << 10;

/// Prints the value that [`instantiate`] found no single derivation in.
#[must_use]
pub fn show_value(
    evaluation: &Evaluation,
    locked: Option<&LockedFlake>,
    options: &Options,
) -> CommandLine {
    let mut command = command("nix-instantiate", &["--eval"], options);
    command.arguments.extend(evaluation.showing(locked));
    command.output_limit = OutputLimit::Beginning(VALUE_AT_MOST);
    command.folder = Some(evaluation.folder.clone());
    command
}

/// Prints `false` where `evaluation` throws: then what it ended with are the expression's own words, whatever they sound like.
/// Nix before 2.2x does not say that of a message.
#[must_use]
pub fn catch(
    evaluation: &Evaluation,
    locked: Option<&LockedFlake>,
    options: &Options,
) -> CommandLine {
    let mut command = command("nix-instantiate", &["--eval", "--read-write-mode"], options);
    // Behind `-E`.
    command.name_argument(command.arguments.len() + 1, "catch");
    command.arguments.extend(evaluation.catching(locked));
    command.folder = Some(evaluation.folder.clone());
    command
}

/// How the walker comes into a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkerFile {
    /// By a file that every Nix carries.
    OfNix,
    /// By this file of ours, which has to be readable for the expression's evaluation.
    Ours,
    /// By this file of ours, as an entry of the search path: the one way to a file under `restrict-eval`, and on 2.8 in pure
    /// evaluation.
    OnSearchPath,
}

/// What a file of ours has to hold that gives an expression the name [`WALKER`].
pub const WALKER_FILE: &str = "{ url }: { inherit url; }\n";

/// The name of the walker in a conversation, which is the name of an argument of a file that every Nix carries.
pub const WALKER: &str = "url";

/// The name of our file on the search path.
const ON_SEARCH_PATH: &str = "eval-once-walker";

/// Evaluates what it is sent line by line, and says on standard error what the walker finds (walk.nix) in what is below
/// `evaluation`. Writes `.drv`s. [`load_walker`] is its first line; then [`WALKER`] is a function that takes tasks.
///
/// The expression travels as an argument, since lines hold neither line breaks nor, where readline reads them, tabs; and Nix gives
/// arguments only to the value of a file. `settings` is what walk.nix takes, as JSON; `heap` the size of the heap that the evaluator
/// begins with, in bytes: growing to it step by step costs as much again as the evaluation. None: what Nix begins with by itself,
/// which is less where it cannot have that much; a size that is set explicitly it must have. `folder` holds our file,
/// `walker.nix`, and what Nix keeps of the lines.
#[must_use]
pub fn converse(
    evaluation: &Evaluation,
    settings: &str,
    locked: Option<&LockedFlake>,
    heap: Option<u64>,
    (file, folder): (WalkerFile, &Path),
    options: &Options,
) -> CommandLine {
    // The output of builders included, as `nix-instantiate` shows it.
    let arguments = [
        "--extra-experimental-features",
        "nix-command",
        "repl",
        "--log-format",
        "raw-with-logs",
    ];
    let mut command = command("nix", &arguments, options);
    command.arguments.extend(evaluation.purity());
    command.arguments.extend(evaluation.search_path());
    if file == WalkerFile::OnSearchPath {
        let mut entry = OsString::from(format!("{ON_SEARCH_PATH}="));
        entry.push(our_file(folder));
        command.arguments.extend(["-I".into(), entry]);
    }
    let walker = evaluation.walking(settings, locked);
    // Behind `--arg` and its name.
    command.name_argument(command.arguments.len() + 2, "walk");
    command
        .arguments
        .extend(["--arg", WALKER, &walker].map(OsString::from));
    command.folder = Some(evaluation.folder.clone());
    command.stdin = Stdin::Lines;
    // It echoes the lines, and prints what they evaluate to.
    command.stdout = Some("/dev/null".into());
    command.variables = vec![
        // A person's settings for a terminal, and the file in which Nix keeps what a person has typed. (2.8 needs its folder.)
        ("INPUTRC", "/dev/null".into()),
        ("TERM", "dumb".into()),
        ("XDG_DATA_HOME", folder.into()),
        ("NIX_DATA_HOME", folder.into()),
    ];
    command.variables.extend(heap_variable(heap));
    command
}

/// The same for one task, in a process that the first error would end: for pure evaluation by a Nix that converses only in evaluation
/// that is not pure (2.8, 2.9). What it prints is not read: one whose task says `hold` waits there when it has done it, until it is ended,
/// and as long as it lives, Nix keeps what it has written from the collector.
#[must_use]
pub fn walk_once(
    evaluation: &Evaluation,
    settings: &str,
    locked: Option<&LockedFlake>,
    heap: Option<u64>,
    task: &str,
    options: &Options,
) -> CommandLine {
    let mut command = command("nix-instantiate", &["--eval", "--read-write-mode"], options);
    command.arguments.extend(evaluation.purity());
    command.arguments.extend(evaluation.search_path());
    let walker = evaluation.walking(settings, locked);
    // Behind `-E`.
    command.name_argument(command.arguments.len() + 1, "walk");
    command
        .arguments
        .extend(["-E".into(), format!("({walker}\n) {task}").into()]);
    command.folder = Some(evaluation.folder.clone());
    command.output_limit = OutputLimit::Unread;
    command.variables.extend(heap_variable(heap));
    command
}

fn heap_variable(heap: Option<u64>) -> Option<(&'static str, OsString)> {
    Some(("GC_INITIAL_HEAP_SIZE", heap?.to_string().into()))
}

/// Our file in its folder.
#[must_use]
pub fn our_file(folder: &Path) -> PathBuf {
    folder.join("walker.nix")
}

/// The line of a conversation that loads the walker.
#[must_use]
pub fn load_walker((file, folder): (WalkerFile, &Path)) -> Vec<u8> {
    let path = match file {
        WalkerFile::OfNix => "<nix/fetchurl.nix>".into(),
        WalkerFile::OnSearchPath => format!("<{ON_SEARCH_PATH}>").into(),
        WalkerFile::Ours => our_file(folder).into_os_string(),
    };
    [b":load ", path.as_bytes(), b"\n"].concat()
}

/// How much nix-eval-jobs may print, in bytes: 100,000 targets with 5 KiB of `meta` each.
const TARGETS_AT_MOST: usize = 512 << 20;

/// Prints a line of JSON for every target below `evaluation`, by `nix-eval-jobs`, in as many `workers`, each of which begins
/// anew beyond this much `memory` (MiB).
#[must_use]
pub fn eval_jobs(
    evaluation: &Evaluation,
    locked: Option<&LockedFlake>,
    workers: usize,
    memory: Option<u64>,
    all: bool,
    roots: Option<&Path>,
    options: &Options,
) -> CommandLine {
    let workers = workers.to_string();
    let mut arguments = vec!["--meta", "--workers", &workers];
    let memory = memory.map(|memory| memory.to_string());
    if let Some(memory) = &memory {
        arguments.extend(["--max-memory-size", memory]);
    }
    if all {
        arguments.push("--force-recurse");
    }
    let mut command = command("nix-eval-jobs", &arguments, options);
    if let Some(roots) = roots {
        command
            .arguments
            .extend(["--gc-roots-dir".into(), roots.into()]);
    }
    command.arguments.extend(evaluation.selecting(locked));
    command.folder = Some(evaluation.folder.clone());
    command.output_limit = OutputLimit::Whole(TARGETS_AT_MOST);
    command
}

/// Prints the system that Nix builds for here, as JSON.
#[must_use]
pub fn current_system(options: &Options) -> CommandLine {
    let arguments = ["--eval", "--json", "-E", "builtins.currentSystem"];
    unrestricted(command("nix-instantiate", &arguments, options))
}

/// Prints the folder of store paths, as JSON: of a store elsewhere (`local?root=`), the one that its paths name.
#[must_use]
pub fn store_folder(options: &Options) -> CommandLine {
    let arguments = ["--eval", "--json", "-E", "builtins.storeDir"];
    unrestricted(command("nix-instantiate", &arguments, options))
}

/// Prints where a flake is, as JSON, and changes no lock file: one that is missing or stale is an error, where it would be one of
/// pure evaluation only if an input is new.
#[must_use]
pub fn flake_metadata(flake: &str, folder: &Path, options: &Options) -> CommandLine {
    let arguments = [
        "--extra-experimental-features",
        "nix-command flakes",
        "flake",
        "metadata",
        "--json",
        "--no-update-lock-file",
        flake,
    ];
    let mut command = command("nix", &arguments, options);
    command.folder = Some(folder.to_owned());
    command
}

/// From this version of Nix on `FLAKE#.ATTR` is exactly that attribute (NixOS/nix#8852).
const EXACT_ATTRIBUTES: (u32, u32) = (2, 18);

/// What a flake's outputs begin with where others look for them. An attribute of these is hardly one of `packages.SYSTEM` too.
const OUTPUTS: [&str; 8] = [
    "apps",
    "checks",
    "devShells",
    "hydraJobs",
    "legacyPackages",
    "nixosConfigurations",
    "nixosTests",
    "packages",
];

/// Prints the settings that the flake in this file asks for, as JSON. They are literals: Nix has read them to print the metadata.
#[must_use]
pub fn flake_settings(file: &Path, options: &Options) -> CommandLine {
    let read = "{ file }: (import (/. + file)).nixConfig or { }";
    let arguments = ["--eval", "--strict", "--json", "-E", read];
    let mut command = command("nix-instantiate", &arguments, options);
    command
        .arguments
        .extend(["--argstr".into(), "file".into(), file.into()]);
    unrestricted(command)
}

/// What one would type to get the outputs of an evaluation without us, with this version of Nix; none where nothing does that
/// Nix takes on a command line.
#[must_use]
pub fn nix_build(
    evaluation: &Evaluation,
    link: Option<&Path>,
    options: &Options,
    version: Option<(u32, u32)>,
) -> Option<CommandLine> {
    let (mut by_hand, no_link) = if let Source::Flake(flake) = &evaluation.source {
        let arguments = [
            "build",
            "--extra-experimental-features",
            "nix-command flakes",
            "--no-update-lock-file",
            &installable(flake, &evaluation.attr, version)?,
        ];
        // A flake is evaluated purely, whatever they say: here they would count.
        let options: Vec<_> = options
            .iter()
            .filter(|(name, _)| name != "pure-eval")
            .cloned()
            .collect();
        let mut by_hand = command("nix", &arguments, &options);
        by_hand.folder = Some(evaluation.folder.clone());
        (by_hand, "--no-link")
    } else {
        (
            evaluating("nix-build", &[], evaluation, None, options),
            "--no-out-link",
        )
    };
    by_hand.arguments.extend(match link {
        Some(link) => vec!["--out-link".into(), link.into()],
        None => vec![no_link.into()],
    });
    Some(by_hand)
}

/// What is encoded in the fragment of a flake reference. Attribute paths have `"`, `+`, `@` and `/`, and Nix takes them there as
/// they are.
const FRAGMENT: &AsciiSet = &URL_PART.remove(b'"').remove(b'+').remove(b'@').remove(b'/');

/// What `nix build` takes for exactly this attribute of a flake. It looks for `a` as `packages.SYSTEM.a` first; only newer
/// versions can be told not to.
fn installable(flake: &str, attr: &AttrPath, version: Option<(u32, u32)>) -> Option<String> {
    let selection = attr.as_selection()?;
    let dot = if version.is_none_or(|version| version >= EXACT_ATTRIBUTES) {
        "."
    } else {
        let (first, below) = attr.names().split_first()?;
        if below.is_empty() || !OUTPUTS.contains(&first.as_str()) {
            return None;
        }
        ""
    };
    Some(format!(
        "{flake}#{dot}{}",
        utf8_percent_encode(&selection, FRAGMENT)
    ))
}

fn evaluating(
    program: &'static str,
    arguments: &[&str],
    evaluation: &Evaluation,
    locked: Option<&LockedFlake>,
    options: &Options,
) -> CommandLine {
    let mut command = command(program, arguments, options);
    command.arguments.extend(evaluation.arguments(locked));
    command.folder = Some(evaluation.folder.clone());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/s/w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-a.drv";
    const OUT: &str = "/s/0123456789abcdfghijklmnpqrsvwxyz-a";

    fn options() -> OwnedOptions {
        vec![("cores".into(), "2".into())]
    }

    fn evaluation(source: Source, names: &[&str]) -> Evaluation {
        Evaluation {
            source,
            attr: AttrPath::new(names.iter().map(ToString::to_string).collect()),
            arguments: Vec::new(),
            include: Vec::new(),
            call: true,
            folder: "/checkout".into(),
        }
    }

    fn of_file(names: &[&str]) -> Evaluation {
        evaluation(Source::File("ci.nix".into()), names)
    }

    #[test]
    fn a_copy_believes_an_hour_at_most_what_this_host_remembers_of_a_store() {
        let drv = DrvPath::parse(DRV).unwrap();
        let out = StorePath::parse(OUT).unwrap();
        let url = StoreUrl::parse("https://cache").unwrap();
        let file = StoreUrl::parse("file:///cache").unwrap();
        let seen = "--option narinfo-cache-positive-ttl 3600";
        let missed = "--option narinfo-cache-negative-ttl 0";
        // curl gives up an upload that stands still.
        let seen =
            format!("{seen} --option stalled-download-timeout 30 --option connect-timeout 30");
        // What the user sets comes later, and wins.
        let options = options();
        for (line, expected) in [
            (
                copy_drvs_to(&url, &[drv.as_store_path()], &options),
                format!("--derivation --to https://cache {DRV} {seen} --option cores 2"),
            ),
            (
                copy_outputs_to(&url, &[&out], &options),
                format!("--to https://cache {OUT} {seen} --option cores 2").replace("3600", "0"),
            ),
            (
                copy_drv_from(&url, &drv, &options),
                format!("--derivation --from https://cache {DRV} {missed} --option cores 2"),
            ),
            // Nix remembers nothing of it.
            (
                copy_outputs_to(&file, &[&out], &options),
                format!("--to file:///cache {OUT} --option cores 2"),
            ),
            (
                copy_drv_from(&file, &drv, &options),
                format!("--derivation --from file:///cache {DRV} --option cores 2"),
            ),
        ] {
            let copy = "nix --extra-experimental-features nix-command copy";
            assert_eq!(line.to_string(), format!("{copy} {expected}"));
        }
    }

    #[test]
    fn another_store_is_asked_whatever_this_host_remembers_of_it() {
        let out = StorePath::parse(OUT).unwrap();
        let asked = |url: &str| {
            let url = StoreUrl::parse(url).unwrap();
            lacking_in(&url, &[&out], &[]).to_string()
        };
        let question = format!("--check-validity --print-invalid {OUT}");
        assert_eq!(
            asked("s3://b"),
            format!(
                "nix-store --store s3://b --option narinfo-cache-positive-ttl 0 --option narinfo-cache-negative-ttl 0 {question}"
            )
        );
        assert_eq!(
            asked("ssh-ng://h"),
            format!("nix-store --store ssh-ng://h {question}")
        );
        let cache = StoreUrl::parse("s3://b").unwrap();
        let options = [("substituters".into(), "https://a".into())];
        assert_eq!(
            would_obtain_from(&cache, &[&out], &options).to_string(),
            format!(
                "nix-store --store dummy:// --realise --dry-run {OUT} --option substituters https://a \
                 --option narinfo-cache-positive-ttl 0 --option narinfo-cache-negative-ttl 0 --option substituters s3://b"
            )
        );
    }

    #[test]
    fn a_command_has_its_paths_then_the_options_then_the_root() {
        let drv = DrvPath::parse(DRV).unwrap();
        let out = StorePath::parse(OUT).unwrap();
        let both = [drv.as_store_path(), &out];
        let link = Some(Path::new("a link"));
        let options = options();
        for (line, expected) in [
            (
                realise(&drv, None, &options),
                format!("--realise {DRV} --option cores 2"),
            ),
            (
                realise(&drv, link, &options),
                format!("--realise {DRV} --option cores 2 --add-root 'a link'"),
            ),
            (
                obtain(&both, link, &options),
                format!("--realise {DRV} {OUT} --option cores 2 --add-root 'a link'"),
            ),
            (
                would_obtain(&both, &options),
                format!("--realise --dry-run {DRV} {OUT} --option cores 2"),
            ),
            (
                ask_store(&options),
                "--realise --option cores 2 --option min-free 0".into(),
            ),
            (roots_of(&out, &[]), format!("--query --roots {OUT}")),
            (
                closure(&[drv.as_store_path()], &[]),
                format!("--query --requisites {DRV}"),
            ),
            (hashes_of(&both, &[]), format!("--query --hash {DRV} {OUT}")),
            (
                check_validity(&out, &[]),
                format!("--check-validity --print-invalid {OUT}"),
            ),
            (
                check_cache("file:///c", &out, &[]),
                format!("--store file:///c --check-validity --print-invalid {OUT}"),
            ),
            (read_log(&drv, &[]), format!("--read-log {DRV}")),
            (
                structured(&realise(&drv, None, &[])),
                format!("--realise {DRV} --log-format internal-json"),
            ),
        ] {
            assert_eq!(line.to_string(), format!("nix-store {expected}"));
        }
    }

    #[test]
    fn an_evaluation_of_ours_is_unrestricted_whatever_the_options_say() {
        let options = ["restrict-eval", "pure-eval"].map(|name| (name.into(), "true".into()));
        for line in [
            write_pin(Path::new("/tmp/pin.json"), &options),
            flake_settings(Path::new("/tmp/flake.nix"), &options),
            current_system(&options),
            store_folder(&options),
        ] {
            let words = line.words();
            for (name, _) in &options {
                // The last of several values counts.
                let last = words.iter().rposition(|word| word == name).unwrap();
                assert_eq!(words[last + 1], "false", "{name} of {line}");
            }
        }
    }

    #[test]
    fn a_conversation_begins_with_the_heap_that_it_is_given() {
        let folder = (WalkerFile::Ours, Path::new("/state/x"));
        let converse = |heap| converse(&of_file(&["a"]), "{}", None, heap, folder, &options());
        let heap = |line: &CommandLine| {
            let mut variables = line.variables.iter();
            let heap = variables.find(|(name, _)| *name == "GC_INITIAL_HEAP_SIZE");
            heap.map(|(_, value)| value.clone())
        };
        assert_eq!(heap(&converse(Some(1 << 20))), Some("1048576".into()));
        assert_eq!(heap(&converse(None)), None);
        assert_eq!(
            converse(None).folder.as_deref(),
            Some(Path::new("/checkout"))
        );
        assert_eq!(converse(None).stdin, Stdin::Lines);
        let words = converse(None).words();
        let settings = words.iter().position(|word| word == "--option").unwrap();
        assert!(words[..settings].contains(&"repl".to_owned()), "{words:?}");
        assert_eq!(words[settings..settings + 3], ["--option", "cores", "2"]);
    }

    #[test]
    fn a_walker_is_loaded_by_a_file_that_can_be_typed() {
        let folder = Path::new("/state/x y");
        let load = |file| String::from_utf8(load_walker((file, folder))).unwrap();
        assert_eq!(load(WalkerFile::OfNix), ":load <nix/fetchurl.nix>\n");
        assert_eq!(load(WalkerFile::Ours), ":load /state/x y/walker.nix\n");
        let entry = |file| {
            let line = converse(&of_file(&["a"]), "{}", None, None, (file, folder), &[]);
            let name = "eval-once-walker=/state/x y/walker.nix".to_owned();
            line.words().contains(&name)
        };
        assert_eq!(load(WalkerFile::OnSearchPath), ":load <eval-once-walker>\n");
        assert!(entry(WalkerFile::OnSearchPath) && !entry(WalkerFile::Ours));
    }

    #[test]
    fn nix_eval_jobs_has_a_memory_limit_recurses_and_makes_roots_only_where_that_is_wanted() {
        let words = |memory, all, roots: Option<&str>| {
            let evaluation = evaluation(Source::Expr("x".into()), &[]);
            let words =
                eval_jobs(&evaluation, None, 3, memory, all, roots.map(Path::new), &[]).words();
            let end = words.iter().position(|word| word == "--expr").unwrap();
            words[..end].join(" ")
        };
        assert_eq!(words(None, false, None), "nix-eval-jobs --meta --workers 3");
        assert_eq!(
            words(Some(512), true, Some("/roots")),
            "nix-eval-jobs --meta --workers 3 --max-memory-size 512 --force-recurse --gc-roots-dir /roots"
        );
    }

    #[test]
    fn a_flake_is_located_in_its_folder_without_a_change_to_its_lock_file() {
        let line = flake_metadata(".", Path::new("/checkout"), &options());
        assert_eq!(
            line.to_string(),
            "nix --extra-experimental-features 'nix-command flakes' flake metadata --json --no-update-lock-file . \
             --option cores 2"
        );
        assert_eq!(line.folder.as_deref(), Some(Path::new("/checkout")));
    }

    #[test]
    fn a_file_is_reproduced_by_nix_build_with_or_without_a_link() {
        let by_hand = |link: Option<&str>| {
            let line = nix_build(&of_file(&["a"]), link.map(Path::new), &options(), None).unwrap();
            line.to_string()
        };
        assert_eq!(
            by_hand(None),
            "nix-build --option cores 2 ci.nix -A a --no-out-link"
        );
        assert_eq!(
            by_hand(Some("result")),
            "nix-build --option cores 2 ci.nix -A a --out-link result"
        );
    }

    #[test]
    fn a_flake_is_reproduced_without_options_that_would_make_it_impure() {
        let flake = evaluation(Source::Flake(".".into()), &["packages", "x", "a"]);
        let options = [
            ("pure-eval".to_owned(), "false".to_owned()),
            ("cores".to_owned(), "2".to_owned()),
        ];
        assert_eq!(
            nix_build(&flake, None, &options, None).unwrap().to_string(),
            "nix build --extra-experimental-features 'nix-command flakes' --no-update-lock-file '.#.packages.x.a' \
             --option cores 2 --no-link"
        );
    }

    #[test]
    fn an_attribute_of_a_flake_is_exact_or_has_no_command() {
        let of = |names: &[&str], version| {
            let attr = AttrPath::new(names.iter().map(ToString::to_string).collect());
            installable("f", &attr, version)
        };
        let newer = Some((2, 18));
        let older = Some((2, 17));
        for (names, version, expected) in [
            (&["a"][..], newer, Some("f#.a")),
            (&["a"], None, Some("f#.a")),
            // Before 2.18 this would be looked for below `packages.SYSTEM` first.
            (&["a"], older, None),
            (&["packages"], older, None),
            (&["mine", "a"], older, None),
            (&["checks", "a"], older, Some("f#checks.a")),
            (&["a", "b.c"], newer, Some("f#.a.\"b.c\"")),
            (&["a b", "c%", "d+@/"], newer, Some("f#.a%20b.c%25.d+@/")),
            // Nix takes no number and no quote as the name of an attribute.
            (&["a", "0"], newer, None),
            (&["a", "\""], newer, None),
        ] {
            assert_eq!(of(names, version).as_deref(), expected, "{names:?}");
        }
    }
}
