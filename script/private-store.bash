# shellcheck shell=bash
# Makes a private Nix store in a folder. script/demo, script/bench and script/samples source this file. It needs neither root nor /nix,
# and neither reads nor changes the machine's own Nix.

# private_store DIR: makes the store in DIR, and sets the environment in which Nix's programs use it.
private_store() {
  local dir
  mkdir -p "$1"
  dir=$(cd "$1" && pwd -P) # Nix refuses a store below a symbolic link
  mkdir -p "$dir/store" "$dir/state" "$dir/log" "$dir/conf"
  # keep-derivations = false, as on hosts that save space: there the collector may delete the .drv of an output that is in use.
  cat >"$dir/conf/nix.conf" <<'CONF'
sandbox = false
build-users-group =
substituters =
keep-derivations = false
CONF
  export NIX_STORE_DIR=$dir/store NIX_STATE_DIR=$dir/state NIX_LOG_DIR=$dir/log NIX_CONF_DIR=$dir/conf
  # Settings of the user and of the machine are meant for their own store.
  export NIX_USER_CONF_FILES=
  unset NIX_CONFIG NIX_PATH NIX_REMOTE NIX_DAEMON_SOCKET_PATH
}

# private_store_removed DIR: removes it. Nix makes the files of a store read-only, so they are made writable first.
private_store_removed() {
  chmod -R u+w "$1" && rm -rf "$1"
}
