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

/// The reference to our own plugin in `plugins` (`BUILDKITE_PLUGINS`), version and all: that of the entry whose configuration
/// is ours. The same plugin may be there twice, and another that is called alike.
#[must_use]
pub fn our_reference(plugins: Option<&str>, configuration: Option<&str>) -> Option<String> {
    let configuration: Value = serde_json::from_str(configuration?).ok()?;
    let plugins: Vec<Value> = serde_json::from_str(plugins?).ok()?;
    let entries = plugins.iter().filter_map(Value::as_object).flatten();
    let ours = entries.filter(|(_, value)| **value == configuration);
    ours.map(|(reference, _)| reference.clone()).next()
}

/// The first null in the configuration of a plugin, with the plugin's name; ours where it can be told.
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
    fn a_null_is_named_where_the_agent_has_dropped_the_configuration() {
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
        let ours = |configuration| our_reference(Some(plugins), configuration);
        assert_eq!(
            ours(Some(r#"{"pipeline":{"file":"y","chunk":5}}"#)).as_deref(),
            Some("https://h/p.git#0a1b")
        );
        assert_eq!(ours(Some(r#"{"pipeline":{}}"#)), None);
        assert_eq!(ours(None), None);
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
