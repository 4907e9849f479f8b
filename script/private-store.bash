# shellcheck shell=bash
# A Nix store of its own in a folder, for script/demo and script/bench, which source this file: no root, no /nix, and
# nothing of the machine's own Nix is touched or taken over.

# private_store DIR: makes it there, and points Nix's programs at it.
private_store() {
  local dir
  mkdir -p "$1"
  dir=$(cd "$1" && pwd -P) # Nix refuses a store below a symbolic link
  mkdir -p "$dir/store" "$dir/state" "$dir/log" "$dir/conf"
  # keep-derivations: as on hosts that save space. There the collector may take the .drv of an output that is in use.
  cat >"$dir/conf/nix.conf" <<'CONF'
sandbox = false
build-users-group =
substituters =
keep-derivations = false
CONF
  export NIX_STORE_DIR=$dir/store NIX_STATE_DIR=$dir/state NIX_LOG_DIR=$dir/log NIX_CONF_DIR=$dir/conf
  # What the user or the machine has set is for their store.
  export NIX_USER_CONF_FILES=
  unset NIX_CONFIG NIX_PATH NIX_REMOTE NIX_DAEMON_SOCKET_PATH
}

# private_store_removed DIR: what Nix makes read-only, it wants writable before it can go.
private_store_removed() {
  chmod -R u+w "$1" && rm -rf "$1"
}
