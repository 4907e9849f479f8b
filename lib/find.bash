# shellcheck shell=bash
# Finds the program `eval-once` for the hooks, which source this file.
#
# Every step runs this code, so it starts no process where a program is installed: tests and builtins only. One that was built here is
# looked at before it is run, which takes two processes of `find`. The code is sourced into the agent's own shell, so it has no
# `set -e`, and exports nothing.

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

# Fails if the variable of this name has a relative path, which names another file in each folder; or one with control characters,
# which other programs would print into the log as they are.
eval_once_is_absolute() {
  if [[ ${!1} != /* ]]; then
    eval_once_error="$1 is ${!1}, a relative path"
  elif [[ ${!1} == *[[:cntrl:]]* ]]; then
    eval_once_error="$1 is ${!1}, which has a control character"
  else
    return 0
  fi
  eval_once_hint="give $1 an absolute path without control characters"
  eval_once_status=64
  return 1
}

# Sets the error for a program that was found, but that the system cannot run.
eval_once_cannot_run() {
  eval_once_error="the program $eval_once_bin cannot be run on this machine ($MACHTYPE)"
  eval_once_hint='install a program that was built for this machine (its processor and its libc), and put it on PATH or set EVAL_ONCE_BIN to its path'
  eval_once_status=69
}

# Prints a line. Where it has more than ASCII characters (it repeats the values of variables), it is quoted as a whole: no line break opens a
# group in the log, and no escape sequence makes a link.
eval_once_print() (
  LC_ALL=C
  text=$1
  [[ $text != *[!\ -~]* ]] || printf -v text %q "$text"
  printf 'eval-once: %s\n' "$text"
)

# Prints the error and its hint.
eval_once_print_error() {
  eval_once_print "error: $eval_once_error" >&2
  eval_once_print "hint: $eval_once_hint" >&2
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
    eval_once_is_absolute XDG_STATE_HOME || return
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
  if [[ ! -x $place/eval-once ]] && ! type -P cargo >/dev/null; then
    eval_once_error='the program eval-once was not found, and cannot be built: cargo is not on PATH'
    return 1
  fi
  if ! type -P find >/dev/null; then
    eval_once_error='the program eval-once was not found, and one in the state folder is neither built nor run: find, which looks at who can write there, is not on PATH'
    return 1
  fi
  eval_once_is_private "$state" "$place" || return
  if [[ -x $place/eval-once ]]; then
    eval_once_bin=$place/eval-once
    return 0
  fi

  eval_once_print "the program is not installed; building it once, into $place" >&2
  # Another user may have made a part of it first, or have put something there before it was closed. So it is looked at again, before
  # anything in it is used, and before what was built is run.
  if ! (umask 077 && mkdir -p "$place") >&2; then
    eval_once_error="the program eval-once was not found, and $place, to build it into, cannot be made (see the messages above)"
    return 1
  fi
  eval_once_is_private "$state" "$place" || return
  if ! eval_once_build "$plugin" "$place" >&2; then
    eval_once_error="the program eval-once was not found, and building it into $place failed (see the messages above)"
    return 1
  fi
  eval_once_is_private "$state" "$place" || return
  eval_once_bin=$place/eval-once
}

# Fails if another user of this host can have put something into the folder `place` in the state folder, or can yet: the rules are those
# of the program (`src/state/place.rs`), which is not there to be asked.
eval_once_is_private() {
  local state=$1 place=$2 part found parts=()
  # Below, one line is one path: no name has a line break, since control characters are refused.
  eval_once_is_way_safe "$state" || return
  [[ -e $state ]] || return 0
  # It may be reached by a link, but none of its parts is one.
  if ! [[ -d $state && -O $state ]]; then
    eval_once_hint='set EVAL_ONCE_STATE_DIR to a folder of this user'\''s own'
    eval_once_refuse "$state is not a folder of this user's"
    return 1
  fi
  for part in "$state/bin" "${place%/*}" "$place" "$place/eval-once" "$place/lock"; do
    [[ -e $part || -L $part ]] || continue
    parts+=("$part")
    if [[ $part == */eval-once || $part == */lock ]]; then
      [[ -f $part && ! -L $part && -O $part ]] && continue
    else
      [[ -d $part && ! -L $part && -O $part ]] && continue
    fi
    eval_once_hint="remove $state/bin: the program is built again"
    eval_once_refuse "$part is not this user's, or is a link"
    return 1
  done
  # The slash makes it the folder, also behind a link.
  if ! found=$(find "$state/" ${parts[@]+"${parts[@]}"} -prune \( -perm -0002 -o -perm -0020 \) -print); then
    eval_once_hint='put find on PATH'
    eval_once_refuse 'find cannot look at it'
    return 1
  fi
  found=${found%%$'\n'*}
  [[ -z $found ]] && return
  if [[ $found == "$state/bin"* ]]; then
    eval_once_hint="remove $state/bin: the program is built again"
    eval_once_refuse "other users can write to $found"
  else
    eval_once_hint='set EVAL_ONCE_STATE_DIR to a folder that only this user can write to'
    eval_once_refuse "other users can write to $state"
  fi
  return 1
}

# Fails if another user can put something else in the place of a folder: on the way to it is a folder that all may write to, and either
# not sticky, or what follows in it is not this user's or root's. Links are followed as the kernel follows them.
eval_once_is_way_safe() {
  local rest=$1 here='' name next links=0 target found folder i folders=() entries=()
  while [[ -n $rest ]]; do
    rest=${rest#"${rest%%[!/]*}"}
    name=${rest%%/*}
    rest=${rest#"$name"}
    case $name in
      '' | .) continue ;;
      ..)
        here=${here%/*}
        continue
        ;;
    esac
    next=$here/$name
    folders+=("${here:-/}")
    entries+=("$next")
    if [[ -L $next ]]; then
      if ((++links > 40)) || ! target=$(readlink "$next"); then
        eval_once_hint='set EVAL_ONCE_STATE_DIR to another folder'
        eval_once_refuse "the link $next leads nowhere"
        return 1
      fi
      [[ $target != /* ]] || here=
      rest=$target/$rest
    elif [[ -e $next ]]; then
      here=$next
    else
      break
    fi
  done
  [[ ${#folders[@]} != 0 ]] || return 0
  if ! found=$(find "${folders[@]}" -prune -perm -0002 -print); then
    eval_once_hint='put find on PATH'
    eval_once_refuse "find cannot look at the folders on the way to $1"
    return 1
  fi
  [[ -n $found ]] || return 0
  while IFS= read -r folder; do
    if ! [[ -k $folder ]]; then
      eval_once_hint="run \`chmod +t $(printf %q "$folder")\`"
      eval_once_refuse "every user of this host can replace it: $folder is writable by all, and not sticky"
      return 1
    fi
    for i in "${!folders[@]}"; do
      [[ ${folders[i]} == "$folder" ]] || continue
      next=${entries[i]}
      [[ -e $next || -L $next ]] || continue
      if [[ -z $(find "$next" -prune \( -user "$EUID" -o -user 0 \) -print) ]]; then
        eval_once_hint='set EVAL_ONCE_STATE_DIR to a folder of this user'\''s own'
        eval_once_refuse "$next belongs to another user"
        return 1
      fi
    done
  done <<<"$found"
}

# Sets the error for a state folder in which no program is built or run, whose hint is set.
eval_once_refuse() {
  eval_once_error="the state folder cannot be used for the program eval-once, which is not installed: $1"
  eval_once_status=75
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
  cd "$plugin" || exit

  # Several jobs may start on one host at the same time. The kernel frees the lock when its holder ends, in whatever way.
  locked=
  if type -P flock >/dev/null; then
    exec 9>>"$place/lock" && eval_once_lock "$place/lock" 5 1800 || exit
    locked=9
    [[ ! -x $place/eval-once ]] || exit 0
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

# Takes the lock that is open as descriptor 9. Says after so many seconds that it waits, and gives up after so many.
eval_once_lock() {
  local lock=$1 say_after=$2 give_up_after=$3 waited=0
  # Not every flock has `-w`, and a shell that waits for a process ends by a signal only afterwards: in a second at most.
  until flock -n 9; do
    if ((waited >= give_up_after)); then
      eval_once_print "the lock $lock was not free for $waited s (\`lsof $lock\` shows which process has it)"
      return 1
    fi
    if ((waited == say_after)); then
      eval_once_print "still waiting for another job, which builds the program (\`lsof $lock\` shows its process)"
    fi
    sleep 1 || return
    ((waited += 1))
  done
}
