//! The settings that a flake asks for (`nixConfig`): used where the host trusts flakes with them, as Nix does, and otherwise said.

use std::io;

use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::{FlakeMetadata, caches, class, command, flake_settings};
use crate::supervise::{OnStop, Supervisor};

/// The settings of a flake, which count after `options`, as they do for `nix build`. It takes a process only where a flake has
/// any: `nix flake metadata` does not tell them, and `builtins.getFlake` does not use them.
///
/// # Errors
/// A signal asked us to end, or `nix` is missing (69).
pub fn accepted(
    metadata: &FlakeMetadata,
    options: &command::Options,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Vec<(String, String)>, Failure> {
    let Some(file) = metadata.file_with_settings() else {
        return Ok(Vec::new());
    };
    let mut ask = |line| {
        let asked = supervisor.run(&line, OnStop::TermThenKill, &mut io::sink());
        match asked.map_err(class::not_started) {
            Ok(asked) => Ok(Some(asked.text()).filter(|_| asked.ending.success())),
            Err(failure) if failure.class == Class::Infrastructure => Ok(None),
            Err(failure) => Err(failure),
        }
    };
    let printed = ask(command::flake_settings(&file, options))?;
    let Some(settings) = printed.and_then(|printed| flake_settings(&printed)) else {
        log.warn(format_args!(
            "the flake's nixConfig cannot be read, and is not used: {}",
            file.display()
        ));
        return Ok(Vec::new());
    };
    if settings.is_empty() {
        return Ok(settings);
    }
    let names: Vec<&str> = settings.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(", ");
    let config = ask(command::show_config(options))?.unwrap_or_default();
    if caches::setting(&config, "accept-flake-config") == Some("true") {
        log.say(format_args!("using the flake's nixConfig: {names}"));
        return Ok(settings);
    }
    log.warn(format_args!(
        "the flake's nixConfig is not used: {names}; set `accept-flake-config = true` in this host's nix.conf to trust it, or name its caches in `options`"
    ));
    Ok(Vec::new())
}
