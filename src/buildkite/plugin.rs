//! The configuration of a plugin, as the agent hands it to the plugin's hooks.

use serde_json::Value;

use crate::exit::Failure;
use crate::keys::{self, Keys, find_value, refuse};

/// Reads `BUILDKITE_PLUGIN_CONFIGURATION`.
///
/// The agent does not set it where the configuration holds a null anywhere (its `flattenConfigToEnvMap` gives up, and the
/// hook runs with no configuration at all). That must not look like a plugin without configuration, so the null is looked
/// for in `plugins` (`BUILDKITE_PLUGINS`) and named.
///
/// # Errors
/// There is no configuration that can be read (64).
pub fn configuration(configuration: Option<&str>, plugins: Option<&str>) -> Result<Keys, Failure> {
    let Some(configuration) = configuration else {
        return Err(match plugins.and_then(null_in_plugins) {
            Some((plugin, key)) => refuse(format_args!("`{key}` is null in the configuration of the plugin {plugin}"))
                .hint("the agent drops a configuration with a null in it: leave the key out, or give it a value"),
            None => refuse("the agent has set no BUILDKITE_PLUGIN_CONFIGURATION")
                .hint("this is a plugin's hook; a command hook of the agent's own that is a script sets BUILDKITE_HOOK_SCOPE=agent (or global)"),
        });
    };
    keys::parse(configuration, "BUILDKITE_PLUGIN_CONFIGURATION")
}

/// An entry of `BUILDKITE_PLUGINS`.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginEntry {
    /// Its reference, with the version.
    pub reference: String,
    /// Its configuration; empty where it has none.
    pub configuration: Keys,
}

/// The entries of `plugins` (`BUILDKITE_PLUGINS`), in their order.
#[must_use]
pub fn entries(plugins: &str) -> Option<Vec<PluginEntry>> {
    let plugins: Vec<Value> = serde_json::from_str(plugins).ok()?;
    let mut entries = Vec::with_capacity(plugins.len());
    for plugin in plugins {
        let entry = |reference, configuration| PluginEntry {
            reference,
            configuration,
        };
        match plugin {
            Value::String(reference) => entries.push(entry(reference, Keys::new())),
            Value::Object(plugins) => {
                entries.extend(plugins.into_iter().map(|(reference, configuration)| {
                    let keys = match configuration {
                        Value::Object(keys) => keys,
                        _ => Keys::new(),
                    };
                    entry(reference, keys)
                }));
            }
            _ => return None,
        }
    }
    Some(entries)
}

/// The index of our entry: the first with our configuration and our `name` (`BUILDKITE_PLUGIN_NAME`), else the first with our
/// configuration. The same plugin may have two entries, and another plugin may have the same name.
#[must_use]
pub fn our_entry(
    entries: &[PluginEntry],
    configuration: &str,
    name: Option<&str>,
) -> Option<usize> {
    let configuration: Keys = serde_json::from_str(configuration).ok()?;
    let alike: Vec<usize> = (0..entries.len())
        .filter(|at| entries[*at].configuration == configuration)
        .collect();
    let named = |at: &&usize| {
        let in_variables = entries[**at].name().to_uppercase().replace('-', "_");
        name.is_some_and(|name| name == in_variables)
    };
    alike.iter().find(named).or(alike.first()).copied()
}

/// The reference to our own plugin in `plugins` (`BUILDKITE_PLUGINS`), with its version.
#[must_use]
pub fn our_reference(
    plugins: Option<&str>,
    configuration: Option<&str>,
    name: Option<&str>,
) -> Option<String> {
    let mut entries = entries(plugins?)?;
    let at = our_entry(&entries, configuration?, name)?;
    Some(entries.swap_remove(at).reference)
}

impl PluginEntry {
    /// Where the plugin is: the reference without scheme, credentials and version (`CreatePlugin` of the agent's
    /// `agent/plugin/plugin.go`).
    #[must_use]
    pub fn location(&self) -> &str {
        let location = self.reference.split(['#', '?']).next().unwrap_or_default();
        match location.split_once("://") {
            Some((_, rest)) => {
                let authority = rest.split('/').next().unwrap_or_default();
                let host = authority.rfind('@').map_or(0, |at| at + 1);
                &rest[host..]
            }
            None => location,
        }
    }

    /// Whether the plugin is part of the checkout (`./…`).
    #[must_use]
    pub fn is_of_checkout(&self) -> bool {
        self.location().starts_with('.')
    }

    /// The plugin's name, as the agent makes it of the reference (`Name`).
    #[must_use]
    pub fn name(&self) -> String {
        let location = self.location().replace('\\', "/");
        let last = location.trim_end_matches('/').rsplit('/').next();
        let last = last.unwrap_or_default().trim_start_matches('.');
        let words: Vec<&str> = last.split_whitespace().collect();
        let name = words
            .join(" ")
            .to_lowercase()
            .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        name.replace("-buildkite-plugin-git", "")
            .replace("-buildkite-plugin", "")
    }

    /// The folder of its repository that the plugin is, empty where it is all of it (`RepositorySubdirectory`).
    #[must_use]
    pub fn folder_of_repository(&self) -> String {
        let parts: Vec<&str> = self.location().split('/').collect();
        let of_repository = match parts[0] {
            "github.com" | "bitbucket.org" => 3,
            "gitlab.com" => parts.len(),
            _ => {
                let repository = parts
                    .iter()
                    .position(|part| part.strip_suffix(".git").is_some());
                repository.map_or(parts.len(), |at| at + 1)
            }
        };
        let folder = parts.get(of_repository..).unwrap_or_default().join("/");
        folder.trim_end_matches(".git").to_owned()
    }

    /// The name of the folder that the agent clones the plugin to (`Identifier`).
    #[must_use]
    pub fn identifier(&self) -> String {
        let version = self
            .reference
            .split_once('#')
            .map_or("", |(_, version)| version);
        let label = [self.location(), version].join("#");
        let words = label.split(|c: char| !c.is_ascii_alphanumeric());
        words
            .filter(|word| !word.is_empty())
            .collect::<Vec<_>>()
            .join("-")
    }
}

/// The first null in the configuration of a plugin, with the plugin's name; preferably in ours.
fn null_in_plugins(plugins: &str) -> Option<(String, String)> {
    let entries: Vec<Keys> = serde_json::from_str::<Vec<Value>>(plugins)
        .ok()?
        .into_iter()
        .filter_map(|entry| match entry {
            Value::Object(entry) => Some(entry),
            _ => None,
        })
        .collect();
    let nulls = entries
        .iter()
        .flatten()
        .filter_map(|(plugin, configuration)| {
            let key = find_value(configuration.as_object()?, &Value::is_null)?;
            Some((plugin.clone(), key))
        });
    let nulls: Vec<_> = nulls.collect();
    nulls
        .iter()
        .find(|(plugin, _)| plugin.contains("eval-once"))
        .or(nulls.first())
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Class;

    #[test]
    fn a_null_is_named_where_the_agent_drops_the_configuration() {
        let plugins = r#"["docker#v5",{"a#v1":{"x":[1,null]}},{"github.com/o/eval-once-buildkite-plugin#v1":{"drv":"y","arg":{"n":null}}}]"#;
        let failure = configuration(None, Some(plugins)).unwrap_err();
        assert_eq!(failure.class, Class::Config);
        assert!(failure.to_string().contains("`arg.n` is null"), "{failure}");
        let other = configuration(None, Some(r#"[{"/p/fork.git":{"x":[1,null]}},{"y":null}]"#))
            .unwrap_err();
        assert!(other.to_string().contains("`x[1]` is null"), "{other}");
    }

    #[test]
    fn our_own_reference_is_that_of_the_entry_with_our_configuration() {
        let plugins = r#"["docker#v5",{"o/eval-once#v1":{"drv":"x"}},{"https://h/p.git#0a1b":{"pipeline":{"chunk":5,"file":"y"}}}]"#;
        let ours = |configuration| our_reference(Some(plugins), configuration, None);
        assert_eq!(
            ours(Some(r#"{"pipeline":{"file":"y","chunk":5}}"#)).as_deref(),
            Some("https://h/p.git#0a1b")
        );
        assert_eq!(ours(Some(r#"{"pipeline":{}}"#)), None);
        assert_eq!(ours(None), None);
        let plugins = r#"["docker#v5",{"o/eval-once-buildkite-plugin#v1":null},"x#v1"]"#;
        let ours = |name| our_reference(Some(plugins), Some("{}"), Some(name)).unwrap();
        assert_eq!(ours("EVAL_ONCE"), "o/eval-once-buildkite-plugin#v1");
        assert_eq!(ours("FORK"), "docker#v5");
    }

    #[test]
    fn a_reference_is_read_as_the_agent_reads_it() {
        for (reference, location, name, identifier) in [
            (
                "github.com/buildkite-plugins/docker-buildkite-plugin#v5.1.0",
                "github.com/buildkite-plugins/docker-buildkite-plugin",
                "docker",
                "github-com-buildkite-plugins-docker-buildkite-plugin-v5-1-0",
            ),
            (
                "https://user:secret@h.org/o/Eval-Once-buildkite-plugin.git#0a1b",
                "h.org/o/Eval-Once-buildkite-plugin.git",
                "eval-once",
                "h-org-o-Eval-Once-buildkite-plugin-git-0a1b",
            ),
            ("file:///p/x.git", "/p/x.git", "x-git", "p-x-git"),
            ("./plugin/", "./plugin/", "plugin", "plugin"),
            ("./.buildkite", "./.buildkite", "buildkite", "buildkite"),
        ] {
            let entry = PluginEntry {
                reference: reference.into(),
                configuration: Keys::new(),
            };
            assert_eq!(entry.location(), location);
            assert_eq!(entry.name(), name);
            assert_eq!(entry.identifier(), identifier);
        }
    }

    #[test]
    fn no_configuration_at_all_never_passes_through() {
        assert_eq!(configuration(None, None).unwrap_err().class, Class::Config);
        assert_eq!(
            configuration(Some("[]"), None).unwrap_err().class,
            Class::Config
        );
        assert_eq!(
            configuration(Some("{"), None).unwrap_err().class,
            Class::Config
        );
        assert!(configuration(Some("{}"), None).unwrap().is_empty());
    }
}
