//! Nix, its store, and the settings that hurt.

use std::path::Path;

use unix::unistd::{Group, geteuid};

use super::{Doctor, Outcome};
use crate::command_line::find_program;
use crate::exit::Failure;
use crate::fingerprint::fingerprint;
use crate::nix::{BUILD_USERS, NixOutput, StorePath, caches, version};
use crate::store::{NoAnswer, StoreIdentity};

/// The first version of Nix that this program works with.
const OLDEST: (u32, u32) = (2, 8);

const PUT_ON_PATH: &str =
    "put Nix on PATH: in the agent's environment hook, with eval \"$(eval-once environment)\"";

impl Doctor<'_> {
    /// Which programs of Nix's there are.
    pub(super) fn programs(&mut self) -> Result<Outcome, Failure> {
        let mut versions = Vec::new();
        let mut places = Vec::new();
        for program in ["nix-store", "nix-instantiate", "nix"] {
            let Some(file) = find_program(program.as_ref(), &self.order.path) else {
                if program == "nix" {
                    return Ok(Outcome::warning(
                        "nix is not on PATH: steps work, and recordings and steps of flakes do not",
                        "install the whole of Nix, in one version",
                    ));
                }
                return Ok(Outcome::failure(
                    format!("{program} is not on PATH"),
                    PUT_ON_PATH,
                ));
            };
            match self.store.version_of(self.supervisor, program)? {
                Ok(version) => versions.push(version),
                Err(NoAnswer::Because(why)) if refuses_settings(&why) => {
                    return Ok(Outcome::failure(
                        format!("{} refuses its settings: {why}", file.display()),
                        "correct NIX_CONFIG, or the nix.conf that has it",
                    ));
                }
                Err(why) => {
                    return Ok(Outcome::failure(
                        format!("{} is no Nix that works: {why}", file.display()),
                        "run it by hand, and put a working Nix before it on PATH",
                    ));
                }
            }
            places.push(file);
            self.found.has_programs = places.len() >= 2;
        }
        self.found.nix = versions.last().cloned();
        let first = versions[0].clone();
        let seen = format!("Nix {first}, {}", places[0].display());
        if versions
            .iter()
            .any(|it| version::numbers(it) < Some(OLDEST))
        {
            return Ok(Outcome::failure(
                format!("{seen}: older than 2.8"),
                "install Nix 2.8 or later",
            ));
        }
        if versions.iter().any(|it| *it != first) {
            let all = places.iter().zip(&versions);
            let all: Vec<String> = all
                .map(|(file, version)| format!("{} is {version}", file.display()))
                .collect();
            return Ok(Outcome::warning(
                format!(
                    "the programs of Nix have different versions: {}",
                    all.join(", ")
                ),
                "put the folder of one Nix first on PATH",
            ));
        }
        Ok(Outcome::ok(seen))
    }

    /// Whether the store answers.
    pub(super) fn answers(&mut self) -> Result<Outcome, Failure> {
        if !self.found.has_programs {
            return Ok(Outcome::not_applicable("there is no Nix to ask"));
        }
        let folder = match self.store.answers_within(self.supervisor)? {
            Ok(folder) => folder,
            Err(why) => {
                // A daemon tells a user whom it refuses nothing: it closes the connection.
                let is_cut_off = matches!(&why, NoAnswer::Because(why) if CUT_OFF.iter().any(|it| why.contains(it)));
                let mend = if is_cut_off {
                    "check that `allowed-users` in the daemon's nix.conf has this user, and look into the daemon's log (`journalctl -u nix-daemon`)"
                } else {
                    "start or restart the Nix daemon (`systemctl restart nix-daemon`), and check NIX_REMOTE"
                };
                return Ok(Outcome::failure(
                    format!("the store does not answer: {why}"),
                    mend,
                ));
            }
        };
        // No store has this path: it is another one each time.
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let hash = fingerprint([now.as_nanos().to_string(), std::process::id().to_string()])
            .replace('e', "z");
        let missing = format!("{}/{hash}-eval-once-doctor", folder.display());
        self.found.missing = StorePath::parse(&missing).ok();
        let mut seen = format!("{} answers", folder.display());
        self.found.store = Some(folder);
        if let Some(nix) = self.found.nix.clone() {
            match self.store.identity(self.supervisor, &nix)? {
                Ok(identity) => {
                    seen.push_str(&used_how(&identity));
                    self.found.identity = Some(identity);
                }
                Err(why) => {
                    return Ok(Outcome::warning(
                        format!("{seen}, but not the program nix: {why}"),
                        "run `nix --extra-experimental-features nix-command store ping` by hand",
                    ));
                }
            }
        }
        Ok(match self.no_build_users()? {
            None => Outcome::ok(seen),
            Some(why) => {
                Outcome::failure(format!("{seen}, and builds nothing: {why}"), BUILD_USERS)
            }
        })
    }

    /// Why root cannot build as another user, where it would and there is no daemon: Nix says so when it builds.
    fn no_build_users(&mut self) -> Result<Option<String>, Failure> {
        let is_here = |identity: &StoreIdentity| identity.url == "local";
        if !self.found.identity.as_ref().is_some_and(is_here) || !geteuid().is_root() {
            return Ok(None);
        }
        let Ok(settings) = self.store.settings_within(self.supervisor, false)? else {
            return Ok(None);
        };
        let setting = |name| caches::setting(&settings, name).filter(|value| !value.is_empty());
        if setting("auto-allocate-uids") == Some("true") {
            return Ok(None);
        }
        let Some(name) = setting("build-users-group") else {
            return Ok(None);
        };
        Ok(match Group::from_name(name) {
            Ok(None) => Some(format!(
                "the group `{name}` of `build-users-group` does not exist"
            )),
            Ok(Some(group)) if group.mem.is_empty() => Some(format!(
                "the group `{name}` of `build-users-group` has no members"
            )),
            // What the system does not say, Nix may know.
            Ok(Some(_)) | Err(_) => None,
        })
    }

    /// Whether the daemon trusts this user. Nothing here needs that.
    pub(super) fn trust(&mut self) -> Result<Outcome, Failure> {
        Ok(match &self.found.identity {
            None => Outcome::not_applicable(self.no_settings()),
            Some(identity) if !identity.is_daemon() => {
                Outcome::not_applicable("there is no daemon: this user writes the store directly")
            }
            Some(identity) if identity.trusted => Outcome::ok(
                "trusted by the daemon: so is every job of this user, and may act as root through it",
            ),
            Some(_) => Outcome::ok(
                "not trusted by the daemon, which is enough: it ignores restricted settings, such as substituters that are not in trusted-substituters",
            ),
        })
    }

    /// Why Nix cannot be asked for its settings.
    fn no_settings(&self) -> &'static str {
        if self.found.store.is_none() {
            "there is no store that answers"
        } else {
            "there is no `nix` to ask"
        }
    }

    /// A setting of what collects garbage. A daemon has those of the host, whatever this user's files say.
    fn collectors_setting(&mut self, name: &str) -> Result<Result<String, Outcome>, Failure> {
        let Some(identity) = &self.found.identity else {
            return Ok(Err(Outcome::not_applicable(self.no_settings())));
        };
        let of_host = identity.is_daemon();
        let settings = match self.store.settings_within(self.supervisor, of_host)? {
            Ok(settings) => settings,
            Err(why) => {
                return Ok(Err(Outcome::warning(
                    format!("Nix does not say its settings: {why}"),
                    "run `nix --extra-experimental-features nix-command show-config` by hand",
                )));
            }
        };
        Ok(caches::setting(&settings, name)
            .map(str::to_owned)
            .ok_or_else(|| Outcome::not_applicable(format!("this Nix has no setting `{name}`"))))
    }

    /// Where a setting of what collects garbage was read: a daemon may read another file, as in a container or outside of this one.
    fn read_where(&self) -> &'static str {
        let identity = self.found.identity.as_ref();
        if identity.is_some_and(StoreIdentity::is_daemon) {
            " in the nix.conf that is seen here"
        } else {
            ""
        }
    }

    /// Whether a `.drv` is kept as long as its output.
    pub(super) fn keep_derivations(&mut self) -> Result<Outcome, Failure> {
        Ok(match self.collectors_setting("keep-derivations")? {
            Err(outcome) => outcome,
            Ok(value) if value == "false" => Outcome::warning(
                "keep-derivations = false: the collector takes the .drv of an output that is in use, and a step whose pin has expired evaluates again",
                "remove `keep-derivations = false` from nix.conf; or record with a longer `keep-days`",
            ),
            Ok(value) => Outcome::ok(format!("keep-derivations = {value}{}", self.read_where())),
        })
    }

    /// Whether pins keep outputs as well.
    pub(super) fn keep_outputs(&mut self) -> Result<Outcome, Failure> {
        Ok(match self.collectors_setting("keep-outputs")? {
            Err(outcome) => outcome,
            Ok(value) if value == "true" => Outcome::warning(
                "keep-outputs = true: each pin also keeps every output of its .drvs that is built, for `keep-days`",
                "remove `keep-outputs = true` from nix.conf; or record with a shorter `keep-days`",
            ),
            Ok(value) => Outcome::ok(format!("keep-outputs = {value}{}", self.read_where())),
        })
    }

    /// Whether a build may start a collection.
    pub(super) fn min_free(&mut self) -> Result<Outcome, Failure> {
        let value = match self.collectors_setting("min-free")? {
            Err(outcome) => return Ok(outcome),
            Ok(value) => value,
        };
        if value == "0" {
            let read_where = self.read_where();
            return Ok(Outcome::ok(if read_where.is_empty() {
                "min-free = 0: no build starts a collection".to_owned()
            } else {
                format!(
                    "min-free = 0{read_where}: no build starts a collection, if the daemon reads the same"
                )
            }));
        }
        let identity = self.found.identity.as_ref();
        let version = identity.and_then(|identity| identity.version.clone());
        let version = version
            .or_else(|| self.found.nix.clone())
            .unwrap_or_default();
        Ok(if version::collects_what_is_in_use(&version) {
            Outcome::warning(
                format!(
                    "min-free = {value}, and this is Nix {version}: before 2.35 a low disk makes it collect paths that running builds use"
                ),
                "collect garbage at fixed times instead, or use Nix 2.35 or later",
            )
        } else {
            Outcome::ok(format!("min-free = {value}{}", self.read_where()))
        })
    }

    /// Which substituters do not answer.
    pub(super) fn substituters(&mut self) -> Result<Outcome, Failure> {
        let (Some(path), Some(_)) = (self.found.missing.clone(), &self.found.identity) else {
            return Ok(Outcome::not_applicable(self.no_settings()));
        };
        let settings = match self.store.settings_within(self.supervisor, false)? {
            Ok(settings) => settings,
            Err(why) => {
                return Ok(Outcome::warning(
                    format!("Nix does not say its substituters: {why}"),
                    "run `nix --extra-experimental-features nix-command show-config` by hand",
                ));
            }
        };
        if caches::setting(&settings, "substitute") == Some("false") {
            return Ok(Outcome::ok("substitute = false: everything is built here"));
        }
        let substituters = caches::substituters(&settings).unwrap_or_default();
        if substituters.is_empty() {
            return Ok(Outcome::ok("there are none: everything is built here"));
        }
        let wrong = self
            .store
            .examine_substituters(self.supervisor, &substituters, &path)?;
        let wrong: Vec<String> = substituters
            .iter()
            .zip(&wrong)
            .filter_map(|(one, wrong)| Some(format!("{one}: {}", wrong.as_ref()?)))
            .collect();
        if wrong.is_empty() {
            return Ok(Outcome::ok(format!("{} answer", substituters.join(" "))));
        }
        let mend = "check this host's network and `netrc-file`, or remove them from `substituters` in nix.conf: each step loses seconds with each of them";
        let all = wrong.len() == substituters.len();
        Ok(if all {
            Outcome::failure(format!("none can be used: {}", wrong.join("; ")), mend)
        } else {
            Outcome::warning(
                format!(
                    "{} of {} cannot be used: {}",
                    wrong.len(),
                    substituters.len(),
                    wrong.join("; ")
                ),
                mend,
            )
        })
    }

    /// The folder of the store, where its files are those of this host.
    pub(super) fn local_store(&self) -> Option<&Path> {
        let folder = self.found.store.as_deref()?;
        folder.is_dir().then_some(folder)
    }
}

/// What Nix says where the daemon has closed the connection.
const CUT_OFF: [&str; 3] = [
    "unexpected end-of-file",
    "Connection reset by peer",
    "Broken pipe",
];

/// Whether Nix refuses a setting, or a line where one should be.
fn refuses_settings(why: &str) -> bool {
    let message = why
        .rsplit_once("error: ")
        .map_or(why, |(_, message)| message);
    NixOutput::of(format!("error: {message}\n").as_bytes()).refuses_settings()
}

/// How Nix uses a store.
fn used_how(identity: &StoreIdentity) -> String {
    let version = identity.version.as_deref();
    match identity.url.as_str() {
        _ if identity.is_daemon() => format!(
            ", through the daemon (Nix {})",
            version.unwrap_or("of unknown version")
        ),
        "local" => ", without a daemon".into(),
        url => format!(", as {url}"),
    }
}
