# shellcheck shell=bash
# Finds the program `eval-once` for the hooks, which source this file.
#
# It is on the path of every step, so the usual answers cost no process: tests and builtins only, up to the point where a
# program has to be built. It is sourced into the agent's own shell: no `set -e` here, and nothing is exported.

# What this file sets is read by the hooks.
# shellcheck disable=SC2034

# Sets `eval_once_bin`; or fails, and sets `eval_once_error`, `eval_once_hint` and `eval_once_status`.
eval_once_find() {
  local plugin=${BASH_SOURCE[0]%/*}/.. candidate
  eval_once_status=69
  eval_once_hint='install the program and name it in EVAL_ONCE_BIN (in the agent'\''s environment hook), put it on the agent'\''s PATH, or install Rust (cargo), and it is built here once'

  # A name that somebody gave is meant: going on to another program would hide the mistake.
  if [[ -n ${EVAL_ONCE_BIN:-} ]]; then
    eval_once_is_absolute EVAL_ONCE_BIN || return
    if [[ -f $EVAL_ONCE_BIN && -x $EVAL_ONCE_BIN ]]; then
      eval_once_bin=$EVAL_ONCE_BIN
      return 0
    fi
    eval_once_error="EVAL_ONCE_BIN is $EVAL_ONCE_BIN, which is not an executable file"
    eval_once_hint="correct EVAL_ONCE_BIN, or unset it: then the program is looked for"
    return 1
  fi

  for candidate in "$plugin/bin/eval-once" "$plugin/target/release/eval-once"; do
    if [[ -f $candidate && -x $candidate ]]; then
      eval_once_bin=$candidate
      return 0
    fi
  done

  # `exec` looks along PATH by itself; asking `type` for the path would cost a subshell.
  if type -P eval-once >/dev/null; then
    eval_once_bin=eval-once
    return 0
  fi

  eval_once_find_built "$plugin"
}

# Fails where the variable of this name holds a relative path: it would mean another file in each folder.
eval_once_is_absolute() {
  [[ ${!1} == /* ]] && return
  eval_once_error="$1 is ${!1}, a relative path"
  eval_once_hint="give $1 an absolute path"
  eval_once_status=64
  return 1
}

# Sets what is to be said of a program that was found and that the system cannot run.
eval_once_cannot_run() {
  eval_once_error="the program $eval_once_bin cannot be run on this machine ($MACHTYPE)"
  eval_once_hint='install one that was built for this machine (another processor, or another libc, needs another one), and name it in EVAL_ONCE_BIN or put it on PATH'
  eval_once_status=69
}

# Says what is wrong.
eval_once_say() {
  printf 'eval-once: error: %s\neval-once: hint: %s\n' "$eval_once_error" "$eval_once_hint" >&2
}

# A program built from exactly this plugin's sources, by an earlier job or now.
eval_once_find_built() {
  local plugin=$1 state eval_once_key place

  # As the program itself chooses it. Relative, it would lie in the checkout, which the next job cleans; of XDG_STATE_HOME
  # its specification says that a relative path is ignored.
  if [[ -n ${EVAL_ONCE_STATE_DIR:-} ]]; then
    eval_once_is_absolute EVAL_ONCE_STATE_DIR || return
    state=$EVAL_ONCE_STATE_DIR
  elif [[ ${XDG_STATE_HOME:-} == /* ]]; then
    state=$XDG_STATE_HOME/eval-once
  elif [[ -n ${HOME:-} ]]; then
    eval_once_is_absolute HOME || return
    state=$HOME/.local/state/eval-once
  else
    eval_once_error='the program eval-once was not found, and with neither EVAL_ONCE_STATE_DIR nor HOME set there is no place to build it in'
    return 1
  fi
  # The agent may lay the plugin's clone anew for every job; the state folder stays. Machines of several kinds may share it.
  eval_once_commit "$plugin" || eval_once_checksum "$plugin"
  place=$state/bin/$MACHTYPE/$eval_once_key
  if [[ -x $place/eval-once ]]; then
    eval_once_bin=$place/eval-once
    return 0
  fi

  if ! type -P cargo >/dev/null; then
    eval_once_error='the program eval-once was not found, and there is no cargo on PATH to build it with'
    return 1
  fi
  printf 'eval-once: the program is not installed here: building it once, into %s\n' "$place" >&2
  if ! eval_once_build "$plugin" "$place" >&2; then
    eval_once_error="the program eval-once was not found, and building it into $place failed (its messages stand above)"
    return 1
  fi
  eval_once_bin=$place/eval-once
}

# The commit of the plugin's clone, read from git's files rather than through git: that would be a process.
eval_once_commit() {
  local git=$1/.git head ref line
  read -r head 2>/dev/null <"$git/HEAD" || return 1
  if [[ $head == 'ref: '* ]]; then
    ref=${head#ref: } head=
    if ! read -r head 2>/dev/null <"$git/$ref"; then
      while read -r line; do
        [[ $line == *" $ref" ]] && head=${line%% *}
      done 2>/dev/null <"$git/packed-refs"
    fi
  fi
  [[ $head =~ ^[0-9a-f]{40,64}$ ]] && eval_once_key=$head
}

# What stands for the commit in a plugin that is no clone of its own (`./plugin`, a folder of another repository).
eval_once_checksum() {
  local sum
  sum=$(cd "$1" && find Cargo.toml Cargo.lock src -type f -exec cksum {} + 2>/dev/null | LC_ALL=C sort | cksum)
  eval_once_key=sources-${sum// /-}
}

# In a subshell: neither the lock nor the folder outlives it.
eval_once_build() (
  plugin=$1 place=$2
  mkdir -p "$place" && cd "$plugin" || exit

  # Several jobs may start on one host at once. The lock is free again when its holder is gone, however it went.
  locked=
  if type -P flock >/dev/null; then
    exec 9>"$place/lock" && flock 9 || exit
    locked=9
    [[ ! -x $place/eval-once ]] || exit 0
  fi

  # A job that builds for another platform says so in a variable that would move the program elsewhere. The lock is closed
  # for cargo: a compiler cache that it starts as a server would keep it. A progress bar is noise in a log.
  unset CARGO_BUILD_TARGET
  CARGO_TERM_PROGRESS_WHEN=never cargo build --release --locked --target-dir "$place/target" </dev/null 9>&- || exit

  # A rename within one folder tree: nobody ever sees half a program under the final name.
  mv -f "$place/target/release/eval-once" "$place/eval-once" || exit
  # Without flock another job may be building in there, held back by cargo's own lock.
  [[ -z $locked ]] || rm -rf "$place/target"
)
