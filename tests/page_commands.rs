//! The commands on the pages print what the pages show.
//!
//! The commands of a page are one session, from top to bottom. After a change of words the pages are written anew:
//!
//! ```sh
//! UPDATE_PAGES=1 cargo test --test integration -- page_commands::
//! ```
//!
//! That needs a mount namespace, for the pages show a store in `/nix/store`. Comparing needs none: it ignores the hashes of paths, which
//! are others in a private store, and the order of lines, for Nix builds in the order of hashes.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    pages::{hashed, pages, root},
    support::{EVAL_ONCE, loudly, store::Store, tool},
};

#[test]
fn every_command_on_a_page_prints_what_stands_below_it() {
    let update = std::env::var_os("UPDATE_PAGES").is_some();
    let mut commands = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let session = Session::of(&text);
        if session.commands.is_empty() {
            continue;
        }
        let Some(place) = Place::new(update) else {
            return;
        };
        commands += session.commands.len();
        let printed = place.run(&session.script);
        assert_eq!(printed.len(), session.commands.len(), "{}", page.display());
        if update {
            let outputs = session.commands.iter().zip(&printed);
            // An output in which only times differ stays as it is.
            let outputs = outputs.map(|((_, shown), printed)| {
                let same = without_times(shown) == without_times(printed);
                if same { shown } else { printed }.as_str()
            });
            fs::write(&page, with_outputs(&text, outputs)).unwrap();
            continue;
        }
        for ((command, shown), printed) in session.commands.iter().zip(&printed) {
            let (shown, printed) = (comparable(shown), comparable(printed));
            assert_eq!(shown, printed, "{}: $ {command}", page.display());
        }
    }
    assert!(commands > 15, "only {commands} commands were found");
}

/// The commands of a page, and the files that it shows.
#[derive(Default)]
struct Session {
    /// Bash, to be run in a checkout of this repository. It prints [`MARK`] before each command.
    script: String,
    /// Each command with what is shown below it.
    commands: Vec<(String, String)>,
}

const MARK: char = '\u{1}';

impl Session {
    /// Commands are the lines of `console` blocks that begin with `$ `. A `nix` block that begins with the comment `# NAME.nix` is
    /// that file.
    fn of(page: &str) -> Self {
        let mut session = Self::default();
        let mut lines = page.lines();
        while let Some(line) = lines.next() {
            let block = lines.by_ref().take_while(|line| *line != "```");
            match line {
                "```console" => {
                    for line in block {
                        if let Some(command) = line.strip_prefix("$ ") {
                            session.script.extend(["printf '\\1'\n", command, "\n"]);
                            session.commands.push((command.to_owned(), String::new()));
                        } else if let Some((_, shown)) = session.commands.last_mut() {
                            shown.extend([line, "\n"]);
                        }
                    }
                }
                "```nix" => {
                    let block: Vec<&str> = block.collect();
                    let name = block[0].strip_prefix("# ").unwrap_or_default();
                    if Path::new(name).extension().is_some_and(|it| it == "nix") {
                        let text = block.join("\n");
                        let parts = ["cat > ", name, " << 'THE END'\n", &text, "\nTHE END\n"];
                        session.script.extend(parts);
                    }
                }
                _ if line.starts_with("```") => block.for_each(drop),
                _ => {}
            }
        }
        session
    }
}

/// Where a session runs: a private store, and a home with nothing in it.
struct Place {
    store: Store,
    /// What makes the private store one in `/nix`, where the pages are to be written.
    mounted: Option<Vec<OsString>>,
}

impl Place {
    /// `None` where the pages cannot be compared or written, with a message.
    fn new(update: bool) -> Option<Self> {
        let (_, store) = (tool("jq")?, Store::new()?);
        let nix = store.nix("nix-store", ["--version"]);
        if !(nix.ends_with(" 2.8.0") && cfg!(all(target_arch = "x86_64", target_os = "linux"))) {
            loudly(&format!(
                "the pages show Nix 2.8.0 on x86_64-linux, and here is {nix}"
            ));
            return None;
        }
        store.configure("system-features = benchmark big-parallel kvm nixos-test");
        let mounted = if update {
            let folder = store.root().join("nix");
            fs::create_dir(&folder).unwrap();
            let mount = format!("mount --bind '{}' /nix", folder.display());
            Some(store.with_mounts(&mount)?)
        } else {
            None
        };
        Some(Self { store, mounted })
    }

    /// Runs all commands in a copy of the examples, and gives what each has printed.
    fn run(&self, script: &str) -> Vec<String> {
        let ours = |name: &str| self.store.root().join(name);
        let folder = if self.mounted.is_some() {
            PathBuf::from("/nix")
        } else {
            self.store.root().to_owned()
        };
        let nix_store = folder.join("store").display().to_string();
        let mut path = OsString::from(Path::new(EVAL_ONCE).parent().unwrap());
        path.push(":");
        path.push(self.store.path());
        let examples = root().join("examples");
        let script = script.replace("/nix/store", &nix_store);
        let script = format!("exec 2>&1\ncp -R '{}' .\n{script}", examples.display());
        let mut session = self
            .store
            .program("bash")
            .args(["-c", &script])
            // The state folder is where a user has it.
            .without("EVAL_ONCE_STATE_DIR")
            .env("PATH", path)
            .env("NIX_STORE_DIR", &nix_store)
            .env("NIX_STATE_DIR", folder.join("var"));
        if let Some(mounted) = &self.mounted {
            session = session.behind(mounted);
        }
        let printed = session.run().stdout.replace(&nix_store, "/nix/store");
        let printed = printed.replace(&ours("home").display().to_string(), "/home/ci");
        printed.split(MARK).skip(1).map(str::to_owned).collect()
    }
}

/// The page with these outputs below its commands.
fn with_outputs<'a>(page: &str, mut outputs: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        text.extend([line, "\n"]);
        if line != "```console" {
            continue;
        }
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if !block[0].starts_with("$ ") {
            text.extend([block.join("\n").as_str(), "\n"]);
        }
        for command in block.into_iter().filter(|line| line.starts_with("$ ")) {
            text.extend([command, "\n", outputs.next().unwrap()]);
        }
        text += "```\n";
    }
    text
}

/// The lines of an output, sorted, without what differs between two runs: hashes of paths, and numbers with a decimal point.
fn comparable(output: &str) -> Vec<String> {
    let without_hashes = |line: &str| {
        let mut line = line.to_owned();
        for prefix in ["/nix/store/", "drv-", "attr-"] {
            for name in hashed(prefix, &line) {
                let rest = &name[prefix.len() + 32..];
                line = line.replace(&name, &format!("{prefix}…{rest}"));
            }
        }
        line
    };
    let lines = output.lines().map(without_hashes);
    let mut lines: Vec<String> = lines.map(|line| without_times(&line)).collect();
    lines.sort_unstable();
    lines
}

/// A text without its numbers that have a decimal point.
fn without_times(text: &str) -> String {
    text.split_inclusive(|c: char| !c.is_ascii_digit() && c != '.')
        .map(|part| {
            let number = part.trim_end_matches(|c: char| !c.is_ascii_digit());
            match number.parse::<f64>() {
                Ok(_) if number.contains('.') => part.replace(number, "…"),
                _ => part.to_owned(),
            }
        })
        .collect()
}
