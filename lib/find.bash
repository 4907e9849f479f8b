# shellcheck shell=bash
# Finds the program `eval-once` for the hooks, which source this file.
#
# Every step runs this code, so as long as no program has to be built it starts no process: tests and builtins only. It is sourced
# into the agent's own shell, so it has no `set -e`, and exports nothing.

# The hooks read the variables that this file sets.
# shellcheck disable=SC2034

# Sets `eval_once_bin`; or fails, and sets `eval_once_error`, `eval_once_hint` and `eval_once_status`.
eval_once_find() {
  local plugin=${BASH_SOURCE[0]%/*}/.. candidate
  eval_once_status=69
  eval_once_hint='install the program and set EVAL_ONCE_BIN to its path (in the agent'\''s environment hook), or put it on the agent'\''s PATH, or install Rust (cargo) to have it built once'

  # Searching on after a wrong EVAL_ONCE_BIN would run another program than the user asked for.
  if [[ -n ${EVAL_ONCE_BIN:-} ]]; then
    eval_once_is_absolute EVAL_ONCE_BIN || return
    if [[ -f $EVAL_ONCE_BIN && -x $EVAL_ONCE_BIN ]]; then
      eval_once_bin=$EVAL_ONCE_BIN
      return 0
    fi
    eval_once_error="EVAL_ONCE_BIN is $EVAL_ONCE_BIN, which is not an executable file"
    eval_once_hint="correct EVAL_ONCE_BIN, or unset it to let the hook search for the program"
    return 1
  fi

  for candidate in "$plugin/bin/eval-once" "$plugin/target/release/eval-once"; do
    if [[ -f $candidate && -x $candidate ]]; then
      eval_once_bin=$candidate
      return 0
    fi
  done

  # `exec` searches PATH itself; reading the path from `type` would cost a subshell.
  if type -P eval-once >/dev/null; then
    eval_once_bin=eval-once
    return 0
  fi

  eval_once_find_built "$plugin"
}

# Fails if the variable of this name has a relative path, which names another file in each folder.
eval_once_is_absolute() {
  [[ ${!1} == /* ]] && return
  eval_once_error="$1 is ${!1}, a relative path"
  eval_once_hint="give $1 an absolute path"
  eval_once_status=64
  return 1
}

# Sets the error for a program that was found, but that the system cannot run.
eval_once_cannot_run() {
  eval_once_error="the program $eval_once_bin cannot be run on this machine ($MACHTYPE)"
  eval_once_hint='install a program that was built for this machine (its processor and its libc), and put it on PATH or set EVAL_ONCE_BIN to its path'
  eval_once_status=69
}

# Prints the error and its hint.
eval_once_print_error() {
  printf 'eval-once: error: %s\neval-once: hint: %s\n' "$eval_once_error" "$eval_once_hint" >&2
}

# Finds a program that an earlier job has built from exactly this plugin's sources, or builds it now.
eval_once_find_built() {
  local plugin=$1 state eval_once_key place

  # The same folder as the program itself uses. A relative one would be in the checkout, which the next job cleans; a relative
  # XDG_STATE_HOME is ignored, as its specification requires.
  if [[ -n ${EVAL_ONCE_STATE_DIR:-} ]]; then
    eval_once_is_absolute EVAL_ONCE_STATE_DIR || return
    state=$EVAL_ONCE_STATE_DIR
  elif [[ ${XDG_STATE_HOME:-} == /* ]]; then
    state=$XDG_STATE_HOME/eval-once
  elif [[ -n ${HOME:-} ]]; then
    eval_once_is_absolute HOME || return
    state=$HOME/.local/state/eval-once
  else
    eval_once_error='the program eval-once was not found, and cannot be built: neither EVAL_ONCE_STATE_DIR nor HOME is set'
    return 1
  fi
  # The agent may clone the plugin again for every job, so the program is kept in the state folder. Machines of several kinds may
  # share that folder.
  eval_once_commit "$plugin" || eval_once_checksum "$plugin"
  place=$state/bin/$MACHTYPE/$eval_once_key
  # What another user has put there is not run.
  if [[ -x $place/eval-once && -O $place/eval-once ]]; then
    eval_once_bin=$place/eval-once
    return 0
  fi

  if ! type -P cargo >/dev/null; then
    eval_once_error='the program eval-once was not found, and cannot be built: cargo is not on PATH'
    return 1
  fi
  printf 'eval-once: the program is not installed; building it once, into %s\n' "$place" >&2
  if ! eval_once_build "$plugin" "$place" >&2; then
    eval_once_error="the program eval-once was not found, and building it into $place failed (see the messages above)"
    return 1
  fi
  eval_once_bin=$place/eval-once
}

# Sets the key to the commit of the plugin's clone, read from git's files because git would be another process.
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

# Sets the key to a checksum of the sources, for a plugin that is no clone of its own (`./plugin`, a folder of another repository).
eval_once_checksum() {
  local sum
  sum=$(cd "$1" && find Cargo.toml Cargo.lock src -type f -exec cksum {} + 2>/dev/null | LC_ALL=C sort | cksum)
  eval_once_key=sources-${sum// /-}
}

# Builds the program. In a subshell, so that the lock and the change of folder end with it.
eval_once_build() (
  plugin=$1 place=$2
  # The program is run by later jobs: whatever the umask, it and the state folder are this user's alone.
  umask 077
  mkdir -p "$place" && cd "$plugin" || exit

  # Several jobs may start on one host at the same time. The kernel frees the lock when its holder ends, in whatever way.
  locked=
  if type -P flock >/dev/null; then
    exec 9>"$place/lock" && flock 9 || exit
    locked=9
    [[ ! -x $place/eval-once || ! -O $place/eval-once ]] || exit 0
  fi

  # With CARGO_BUILD_TARGET, which a job that cross-compiles may set, cargo would put the program into another folder. Descriptor 9
  # is closed for cargo, because a compiler cache that it starts as a server would hold the lock. A progress bar is noise in a log.
  unset CARGO_BUILD_TARGET
  CARGO_TERM_PROGRESS_WHEN=never cargo build --release --locked --target-dir "$place/target" </dev/null 9>&- || exit

  # A rename within one file system is atomic, so no job finds half a program under the final name.
  mv -f "$place/target/release/eval-once" "$place/eval-once" || exit
  # Without flock another job may be building in this folder, waiting for cargo's own lock.
  [[ -z $locked ]] || rm -rf "$place/target"
)
