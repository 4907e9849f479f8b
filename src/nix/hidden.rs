//! Secrets in the arguments of Nix's programs, which every user of the host reads in the list of processes: they are given in `NIX_CONFIG`
//! instead, which only their own user reads. They are the host's, as a substituter with a password is: a key that holds one is refused.

use std::collections::BTreeSet;
use std::ffi::OsString;

use crate::command_line::CommandLine;
use crate::secrets;

/// The command without secrets in its arguments; none where it has none. `nix_config` is the host's `NIX_CONFIG`: what is added to it
/// counts more, as an argument does, also through a daemon (measured on 2.8, 2.26 and 2.34).
#[must_use]
pub fn without_secrets(line: &CommandLine, nix_config: &str) -> Option<CommandLine> {
    let settings = settings_in(&line.arguments);
    let hidden: BTreeSet<&str> = settings
        .iter()
        .filter(|setting| secrets::find(setting.value).is_some() && fits(setting.value))
        .map(ArgumentSetting::base)
        .collect();
    if !line.program.starts_with("nix") || hidden.is_empty() {
        return None;
    }
    let mut shorter = line.clone();
    let mut text = nix_config.to_owned();
    let mut taken = BTreeSet::new();
    // All that is set for a name stays in its order: an argument would replace what NIX_CONFIG says.
    for setting in settings {
        if hidden.contains(setting.base()) && fits(setting.value) {
            text.extend(["\n", setting.name, " = ", setting.value]);
            taken.extend(setting.place);
        }
    }
    let arguments = line.arguments.iter().enumerate();
    let arguments = arguments.filter(|(place, _)| !taken.contains(place));
    shorter.arguments = arguments.map(|(_, argument)| argument.clone()).collect();
    shorter.variables.retain(|(name, _)| *name != "NIX_CONFIG");
    shorter.variables.push(("NIX_CONFIG", text.into()));
    Some(shorter)
}

/// A setting in arguments.
struct ArgumentSetting<'a> {
    name: &'a str,
    value: &'a str,
    /// Which of the arguments it is.
    place: std::ops::Range<usize>,
}

impl<'a> ArgumentSetting<'a> {
    /// The setting that it adds to or replaces.
    fn base(&self) -> &'a str {
        self.name.strip_prefix("extra-").unwrap_or(self.name)
    }
}

fn settings_in(arguments: &[OsString]) -> Vec<ArgumentSetting<'_>> {
    let mut settings = Vec::new();
    let text = |place: usize| arguments.get(place)?.to_str();
    let mut place = 0;
    while place < arguments.len() {
        let (name, length) = match text(place) {
            Some("--option") => (text(place + 1), 3),
            Some("--store") => (Some("store"), 2),
            _ => (None, 1),
        };
        if let (Some(name), Some(value)) = (name, text(place + length - 1)) {
            settings.push(ArgumentSetting {
                name,
                value,
                place: place..place + length,
            });
        }
        place += length;
    }
    settings
}

/// Whether a value is the same in the form of nix.conf. One of the host's is, since it comes from there.
fn fits(value: &str) -> bool {
    !value.contains(['\n', '#'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://u:s3cr3tpassw0rd@h";

    fn hidden(arguments: &[&str]) -> Option<(Vec<String>, String)> {
        let line = CommandLine::new("nix-store", arguments);
        let line = without_secrets(&line, "cores = 1")?;
        let text = line.variables[0].1.to_str().unwrap().to_owned();
        Some((line.words(), text))
    }

    #[test]
    fn a_secret_in_an_option_or_the_url_of_a_store_is_in_the_environment() {
        let (words, text) = hidden(&[
            "--realise",
            "/p",
            "--option",
            "cores",
            "2",
            "--option",
            "substituters",
            URL,
        ])
        .unwrap();
        assert_eq!(
            words,
            ["nix-store", "--realise", "/p", "--option", "cores", "2"]
        );
        assert_eq!(text, format!("cores = 1\nsubstituters = {URL}"));
        let (words, text) = hidden(&["--store", URL, "--check-validity"]).unwrap();
        assert_eq!(words, ["nix-store", "--check-validity"]);
        assert_eq!(text, format!("cores = 1\nstore = {URL}"));
    }

    #[test]
    fn what_else_is_set_for_its_name_stays_in_its_order() {
        let (words, text) = hidden(&[
            "--option",
            "substituters",
            "https://a",
            "--option",
            "extra-substituters",
            URL,
        ])
        .unwrap();
        assert_eq!(words, ["nix-store"]);
        assert_eq!(
            text,
            format!("cores = 1\nsubstituters = https://a\nextra-substituters = {URL}")
        );
    }

    #[test]
    fn a_command_without_a_secret_is_run_as_it_is() {
        assert!(hidden(&["--store", "https://h", "--option", "cores", "1"]).is_none());
        assert!(hidden(&["--option"]).is_none());
        let other = CommandLine::new("git", &["--option", "a", URL]);
        assert!(without_secrets(&other, "").is_none());
    }
}
