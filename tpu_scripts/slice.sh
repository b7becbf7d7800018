# shellcheck shell=bash disable=SC2153
# Sourced by the scripts that run on your machine: settings, errors, and the gcloud calls on a slice.
#
# Settings, from the environment or as flags (a flag wins):
#   PROJECT           --project P           Google Cloud project
#   ZONE              --zone Z              zone of the slice, such as us-west4-a
#   NAME              --name N              queued resource; its node is N, or N-0 N-1 … where there are several slices
#   SLICES            --slices K            number of slices (1)
#   ACCELERATOR_TYPE  --accelerator-type T  such as v5litepod-16, v6e-64, v5p-128, v4-32
#   RUNTIME_VERSION   --runtime-version V   image of the hosts; by default the one that Google names for the chip
#   SPOT=1            --spot                cheaper, and can be taken away at any moment
#   RESERVED=1        --reserved            from your reservation; neither flag: on demand
#   BUCKET            --bucket gs://B       mounted on every host; one with a hierarchical namespace
#   NO_BUCKET=1       --no-bucket           MOUNT is a folder that all hosts share already (Filestore, …)
#   MOUNT             --mount FOLDER        where the bucket is mounted (/mnt/bucket)
#   POLL              --poll SECONDS        between two looks at a state (30)
#   DRY_RUN=1                               print the commands, run none
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SELF=$(basename "$0")
# What a dry run prints goes to the script's own output, also from inside $(…).
exec 3>&1

say() { printf '%s: %s\n' "$SELF" "$1" >&2; }
die() {
  printf '%s: error: %s\n' "$SELF" "$1" >&2
  exit "${2:-2}"
}

# The comment at the head of a file, without its marks.
head_comment() { sed -n -e '/^# shellcheck/d' -e '1{/^#!/d;}' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$1"; }
help() {
  head_comment "$0"
  printf '\n'
  head_comment "$HERE/slice.sh" | sed 1,2d
}

flag_of() { printf '%s' "$1" | tr 'A-Z_' 'a-z-'; }
variable_of() { printf '%s' "$1" | tr 'a-z-' 'A-Z_'; }

# parse "project zone spot! …" "$@": sets and exports PROJECT, ZONE, SPOT=1 …; from the first word that is no flag on, words go to WORDS.
parse() {
  local options=" $1 " word name value
  shift
  WORDS=()
  while [ $# -gt 0 ]; do
    word=$1
    shift
    case $word in
      -h | --help) help && exit 0 ;;
      --*) ;;
      *) WORDS=("$word" "$@") && break ;;
    esac
    name=${word#--} && name=${name%%=*}
    case $options in
      *" $name! "*)
        [ "$word" = "--$name" ] || die "--$name takes no value, got ${word#*=}"
        value=1
        ;;
      *" $name "*)
        case $word in
          *=*) value=${word#*=} ;;
          *) value=${1:-} && shift $(($# > 0)) ;;
        esac
        case $value in '' | --*) die "--$name needs a value; --help says which" ;; esac
        ;;
      *) die "unknown flag $word; there are:$(printf '%s' "${options//!/}" | sed 's/ \([a-z]\)/ --\1/g; s/ $//')" ;;
    esac
    export "$(variable_of "$name")=$value"
  done
  check_settings
}

# Defaults, and what can be wrong with a setting whatever the script.
check_settings() {
  export SLICES=${SLICES:-1} MOUNT=${MOUNT:-/mnt/bucket} POLL=${POLL:-30}
  export SPOT=${SPOT:-0} RESERVED=${RESERVED:-0} NO_BUCKET=${NO_BUCKET:-0} DRY_RUN=${DRY_RUN:-0} BUCKET=${BUCKET:-}
  local name
  for name in SPOT RESERVED NO_BUCKET DRY_RUN; do
    case ${!name} in 0 | 1) ;; *) die "$name is '${!name}'; set it to 1 or 0" ;; esac
  done
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || die "SLICES is '$SLICES'; give a number of slices, 1 or more"
  [[ $POLL =~ ^[0-9]+$ ]] || die "POLL is '$POLL'; give seconds"
  [[ $MOUNT = /* ]] || die "MOUNT is '$MOUNT'; give an absolute folder, such as /mnt/bucket"
  [ -z "$BUCKET" ] || [[ $BUCKET =~ ^gs://[a-z0-9][a-z0-9._-]+$ ]] || die "BUCKET is '$BUCKET'; give a bucket without a folder, such as gs://my-bucket"
  [ "$SPOT$RESERVED" != 11 ] || die "SPOT and RESERVED exclude each other; keep one"
  [ "$NO_BUCKET" = 0 ] || [ -z "$BUCKET" ] || die "NO_BUCKET and BUCKET=$BUCKET exclude each other; keep one"
}

need() {
  local name
  for name in "$@"; do
    [ -n "${!name:-}" ] || die "$name is not set: export $name=… or give --$(flag_of "$name"); --help says what it is"
  done
}
need_slice() {
  need PROJECT ZONE NAME
  [ "$DRY_RUN" = 1 ] || command -v gcloud > /dev/null || die "gcloud is not on the PATH; install the Google Cloud CLI: cloud.google.com/sdk/docs/install"
}
need_bucket() {
  [ "$NO_BUCKET" = 1 ] || [ -n "$BUCKET" ] || die "BUCKET is not set: export BUCKET=gs://… or, where $MOUNT is shared by all hosts already, give --no-bucket"
}
no_words() { [ ${#WORDS[@]} -eq 0 ] || die "unexpected '${WORDS[0]}'; --help shows the usage"; }

# check_words CONFIG SETTING…: what is wrong with a run whatever its config.
check_words() {
  local word out=""
  [ $# -gt 0 ] || die "which config? usage: $SELF [FLAGS] CONFIG --train.out=$MOUNT/runs/NAME [--section.key=value …]"
  [[ $1 = /* ]] || [ -f "$HERE/../$1" ] || die "there is no config '$1' in $(dirname "$HERE"), which is what the hosts get"
  for word in "$@"; do
    case $word in
      --train.out=*) out=${word#*=} ;;
      --train.out) die "write --train.out=FOLDER as one word" ;;
    esac
    [[ $word != *gs://* ]] || die "'$word': the trainer reads and writes folders; write $MOUNT/… for gs://BUCKET/…"
  done
  [[ $out = "$MOUNT"/* ]] || die "train.out is '$out'; give --train.out=$MOUNT/…, a folder that all hosts see and that outlives them"
}

# A word as one can paste it into a shell.
quote() {
  case $1 in
    '' | *[!A-Za-z0-9_./:=@,+-]*) printf "'%s'" "${1//\'/\'\\\'\'}" ;;
    *) printf '%s' "$1" ;;
  esac
}
quoted() {
  local word space=""
  for word in "$@"; do
    printf '%s' "$space" && quote "$word"
    space=" "
  done
}
run() {
  if [ "$DRY_RUN" = 1 ]; then
    printf '%s\n' "$(quoted "$@")" >&3
  else
    "$@"
  fi
}
tpu() { run gcloud compute tpus "$@" --project "$PROJECT" --zone "$ZONE"; }

# describe queued-resources|tpu-vm NAME FIELD: its value, or NOT_FOUND. Fails, with gcloud's words, when it cannot be told.
describe() {
  local errors value status=0
  [ "$DRY_RUN" = 0 ] || { tpu "$1" describe "$2" --format="value($3)" && return; }
  errors=$(mktemp)
  value=$(tpu "$1" describe "$2" --format="value($3)" 2> "$errors") || status=$?
  if [ $status -eq 0 ]; then
    printf '%s\n' "$value"
  elif grep -q NOT_FOUND "$errors"; then
    echo NOT_FOUND
    status=0
  else
    cat "$errors" >&2
  fi
  rm -f "$errors"
  return $status
}
queue_state() { describe queued-resources "$NAME" state.state; }
node_state() { describe tpu-vm "$1" state; }

nodes() {
  local i
  [ "$SLICES" -gt 1 ] || { printf '%s\n' "$NAME" && return; }
  for ((i = 0; i < SLICES; i++)); do printf '%s-%d\n' "$NAME" "$i"; done
}

# each_slice COMMAND…: runs it once per slice, all at the same time, @NODE@ being its node. Names the slices where it failed and returns
# the exit status of one of them.
each_slice() {
  local node pids=() names=() i status=0 failed=0
  for node in $(nodes); do
    "${@//@NODE@/$node}" &
    pids+=($!) names+=("$node")
    # Lines of a dry run stay in order.
    [ "$DRY_RUN" = 0 ] || wait $!
  done
  for ((i = 0; i < ${#pids[@]}; i++)); do
    status=0 && wait "${pids[i]}" || status=$?
    [ $status -eq 0 ] || { say "slice ${names[i]}: exit status $status" && failed=$status; }
  done
  # gcloud passes on ssh's own 255.
  [ $failed -ne 255 ] || say "a host could not be reached; with several hosts the key must be in an agent: eval \"\$(ssh-agent)\" && ssh-add ~/.ssh/google_compute_engine"
  return $failed
}
# Runs a shell command on every host of every slice.
on_hosts() { each_slice tpu tpu-vm ssh @NODE@ --worker=all --command="$1"; }
