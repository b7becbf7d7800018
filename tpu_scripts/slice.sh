# shellcheck shell=bash disable=SC2034,SC2153 source-path=SCRIPTDIR
# Sourced by the scripts that run on your machine: settings, errors, and how commands are shown and run.
#
# Settings, from the environment or as flags (a flag wins):
#   PROJECT           --project P           Google Cloud project
#   ZONE              --zone Z              zone of the slice, such as us-west4-a
#   NAME              --name N              of the request; its node is N, or N-0 N-1 … where there are several slices
#   SLICES            --slices K            number of slices (1)
#   API               --api A               queued-resources (the Cloud TPU API, in maintenance: v4 v5e v5p v6e)
#                                           or compute-engine (v5p v6e tpu7x and later); on GKE use jobset.sh
#   ACCELERATOR_TYPE  --accelerator-type T  of queued-resources, such as v5litepod-16, v6e-64, v5p-128, v4-32
#   TOPOLOGY          --topology T          of compute-engine and GKE, as in `llm-jax plan`: v5e:4x4 v6e:4x4 v5p:2x2x4 tpu7x:2x2x4
#   MACHINE_TYPE      --machine-type M      of compute-engine and GKE, such as ct6e-standard-8t; by default the one of four chips
#   RUNTIME_VERSION   --runtime-version V   image of queued-resources; by default the one that Google names for the chip
#   EXISTING=1        --existing            NAME is a VM that exists already; it is never created or deleted
#   SPOT=1            --spot                cheaper, and can be taken away at any moment
#   RESERVED=1        --reserved            from your reservation; none of these flags: on demand
#   RESERVATION       --reservation R       from this reservation
#   FLEX_START=1      --flex-start          when there is capacity, for MAX_RUN_DURATION at most
#   MAX_RUN_DURATION  --max-run-duration D  such as 4h; then the hosts are deleted
#   VALID_UNTIL       --valid-until D       such as 2h; a request that is not served by then expires (TIMEOUT seconds)
#   NETWORK           --network N           of the hosts (default)
#   SUBNETWORK        --subnetwork N        of the hosts, in the region of ZONE
#   INTERNAL_IPS=1    --internal-ips        no external addresses; ssh goes to the internal ones, from the same network
#   IAP=1             --iap                 ssh through Identity-Aware Proxy, from anywhere
#   BATCH_SIZE        --batch-size N        ssh connections at a time; all nodes are then one gcloud command
#   SERVICE_ACCOUNT   --service-account S   of the hosts, allowed to read and write the bucket
#   SCOPES            --scopes S,S          of the service account
#   LABELS            --labels K=V,K=V      of the hosts
#   TAGS              --tags T,T            of the hosts, for firewall rules
#   METADATA          --metadata K=V,K=V    of the hosts; METADATA_FROM_FILE --metadata-from-file K=FILE,K=FILE the same from files
#   BOOT_DISK         --boot-disk K=V,K=V   compute-engine: size=200GB,type=T,kms-key=K; queued-resources: confidential-compute=true,kms-key=K
#   DATA_DISK         --data-disk "D D"     disks that exist already, each source=DISK[,mode=read-only]
#   IMAGE_FAMILY      --image-family F      of compute-engine; by default the one that Google names for the chip
#   IMAGE_PROJECT     --image-project P     of compute-engine (ubuntu-os-accelerator-images)
#   BUCKET            --bucket gs://B       mounted on every host; one with a hierarchical namespace
#   NO_BUCKET=1       --no-bucket           nothing is mounted: paths are gs://…, or MOUNT is a folder that all hosts share already
#   MOUNT             --mount FOLDER        where the bucket is mounted (/mnt/bucket)
#   POLL              --poll SECONDS        between two looks at a state (30)
#   DRY_RUN=1                               print the commands, run none
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SELF=$(basename "$0")
# The flags of every script that reaches a slice, and those that say how one is made.
SLICE_FLAGS="project zone name slices api topology machine-type existing! internal-ips! iap! batch-size"
CREATE_FLAGS="accelerator-type runtime-version spot! reserved! reservation flex-start! max-run-duration valid-until network subnetwork \
service-account scopes labels tags metadata metadata-from-file boot-disk data-disk image-family image-project"
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

# on_or_off NAME…: each is 1 or 0, by default 0.
on_or_off() {
  local name
  for name in "$@"; do
    export "$name=${!name:-0}"
    case ${!name} in 0 | 1) ;; *) die "$name is '${!name}'; set it to 1 or 0" ;; esac
  done
}
# whole NAME WHAT: a whole number.
whole() { [[ ${!1} =~ ^[0-9]+$ ]] || die "$1 is '${!1}'; give $2"; }

# Defaults, and what can be wrong with a setting whatever the script.
check_settings() {
  export SLICES=${SLICES:-1} MOUNT=${MOUNT:-/mnt/bucket} POLL=${POLL:-30} API=${API:-queued-resources}
  export BUCKET=${BUCKET:-} BATCH_SIZE=${BATCH_SIZE:-}
  on_or_off SPOT RESERVED NO_BUCKET DRY_RUN EXISTING FLEX_START INTERNAL_IPS IAP
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || die "SLICES is '$SLICES'; give a number of slices, 1 or more"
  whole POLL seconds
  [[ $BATCH_SIZE =~ ^([1-9][0-9]*)?$ ]] || die "BATCH_SIZE is '$BATCH_SIZE'; give a number of connections, 1 or more"
  [[ $MOUNT = /* ]] || die "MOUNT is '$MOUNT'; give an absolute folder, such as /mnt/bucket"
  [ -z "$BUCKET" ] || [[ $BUCKET =~ ^gs://[a-z0-9][a-z0-9._-]+$ ]] || die "BUCKET is '$BUCKET'; give a bucket without a folder, such as gs://my-bucket"
  [ "$NO_BUCKET" = 0 ] || [ -z "$BUCKET" ] || die "NO_BUCKET and BUCKET=$BUCKET exclude each other; keep one"
  check_capacity
}

# Where the chips come from: one way at a time.
check_capacity() {
  [ "$SPOT$RESERVED" != 11 ] || die "SPOT and RESERVED exclude each other; keep one"
  [ "$SPOT" = 0 ] || [ -z "${RESERVATION:-}" ] || die "SPOT and RESERVATION=$RESERVATION exclude each other; keep one"
  [ "$SPOT$FLEX_START" != 11 ] || die "SPOT and FLEX_START exclude each other; keep one"
  [ "$FLEX_START" = 0 ] || [ "$RESERVED${RESERVATION:-}" = 0 ] || die "FLEX_START and a reservation exclude each other; keep one"
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
  [ "$EXISTING" = 0 ] || [ "$SLICES" = 1 ] || die "EXISTING is one VM, and SLICES is $SLICES; leave one out"
  ROUTE=()
  [ "$INTERNAL_IPS" = 0 ] || ROUTE=(--internal-ip)
  [ "$IAP" = 0 ] || ROUTE=(--tunnel-through-iap)
  # Each is checked by itself.
  # shellcheck source=/dev/null
  case $API in
    queued-resources) source "$HERE/cloud_tpu.sh" ;;
    compute-engine) source "$HERE/compute_engine.sh" ;;
    gke | jobset) die "API is '$API'; on GKE use tpu_scripts/jobset.sh" ;;
    *) die "API is '$API'; there are queued-resources and compute-engine, and tpu_scripts/jobset.sh for GKE" ;;
  esac
}
# need_bucket OUT: something must be mounted, but for a run that writes to the bucket itself.
need_bucket() {
  [ "$NO_BUCKET" = 1 ] || [ -n "$BUCKET" ] || [[ ${1:-} = gs://* ]] ||
    die "BUCKET is not set: export BUCKET=gs://… or, where paths are gs://… or $MOUNT is shared by all hosts already, give --no-bucket"
}
# with FLAG VARIABLE…: adds --flag VALUE to words for each variable that has a value; switch FLAG VARIABLE: adds --flag where it is 1.
with() {
  while [ $# -gt 0 ]; do
    [ -z "${!2:-}" ] || words+=("$1" "${!2}")
    shift 2
  done
}
switch() { [ "${!2}" = 0 ] || words+=("$1"); }
no_words() { [ ${#WORDS[@]} -eq 0 ] || die "unexpected '${WORDS[0]}'; --help shows the usage"; }

# check_words CONFIG SETTING…: what is wrong with a run whatever its config. Sets OUT to its train.out.
check_words() {
  local word
  OUT=""
  [ $# -gt 0 ] || die "which config? usage: $SELF [FLAGS] CONFIG --train.out=$MOUNT/runs/NAME [--section.key=value …]"
  [[ $1 = /* ]] || [ -f "$HERE/../$1" ] || die "there is no config '$1' in $(dirname "$HERE"), which is what the hosts get"
  for word in "$@"; do
    case $word in
      --train.out=*) OUT=${word#*=} ;;
      --train.out) die "write --train.out=FOLDER as one word" ;;
    esac
  done
  [[ $OUT = "$MOUNT"/* || $OUT =~ ^gs://[a-z0-9][a-z0-9._-]+/. ]] ||
    die "train.out is '$OUT'; give --train.out=$MOUNT/… or --train.out=gs://BUCKET/…, a folder that all hosts see and that outlives them"
  for word in "$@"; do
    [[ $word != *="$MOUNT"/* ]] || need_bucket
  done
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

# The state of the request; a VM that existed before has none.
request_state() {
  if [ "$EXISTING" = 0 ]; then
    state_of_request
  elif [ "$DRY_RUN" = 0 ]; then
    echo ACTIVE
  fi
}

# value FIELD COMMAND…: what a describe command says of a field, or NOT_FOUND. Fails, with gcloud's words, when it cannot be told.
value() {
  local field=$1 errors said status=0
  shift
  [ "$DRY_RUN" = 0 ] || { "$@" --format="value($field)" && return; }
  errors=$(mktemp)
  said=$("$@" --format="value($field)" 2> "$errors") || status=$?
  if [ $status -eq 0 ]; then
    printf '%s\n' "$said"
  elif grep -q 'NOT_FOUND\|was not found' "$errors"; then
    echo NOT_FOUND
    status=0
  else
    cat "$errors" >&2
  fi
  rm -f "$errors"
  return $status
}

# The nodes, one per slice.
nodes() {
  local i
  [ "$SLICES" -gt 1 ] || { printf '%s\n' "$NAME" && return; }
  for ((i = 0; i < SLICES; i++)); do printf '%s-%d\n' "$NAME" "$i"; done
}

# each_of WHAT NAMES COMMAND…: runs it once per name (a line of NAMES), BATCH_SIZE at the same time, @NODE@ being the name and @INDEX@
# its number. Says where it failed and returns the exit status of one of them.
each_of() {
  local what=$1 lines=$2 node words pids=() names=() i status=0 failed=0 first=0
  shift 2
  while read -r node; do
    words=("${@//@NODE@/$node}")
    "${words[@]//@INDEX@/${#pids[@]}}" < /dev/null &
    pids+=($!) names+=("$node")
    # Lines of a dry run stay in order.
    [ "$DRY_RUN" = 0 ] || wait $!
    if [ -n "$BATCH_SIZE" ] && [ $((${#pids[@]} - first)) -ge "$BATCH_SIZE" ]; then
      wait "${pids[first]}" || true
      first=$((first + 1))
    fi
  done <<< "$lines"
  for ((i = 0; i < ${#pids[@]}; i++)); do
    status=0 && wait "${pids[i]}" || status=$?
    [ $status -eq 0 ] || { say "$what ${names[i]}: exit status $status" && failed=$status; }
  done
  hint_at_keys $failed
  return $failed
}
# gcloud passes on ssh's own 255.
hint_at_keys() {
  [ "$1" -ne 255 ] || say "a host could not be reached; with several hosts the key must be in an agent: eval \"\$(ssh-agent)\" && ssh-add ~/.ssh/google_compute_engine"
}
