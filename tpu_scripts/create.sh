#!/usr/bin/env bash
# create.sh: asks for one TPU slice or several, as a queued resource or in Compute Engine, and waits until every host is ready.
#
#   export PROJECT=my-project ZONE=us-west4-a NAME=lm1b ACCELERATOR_TYPE=v5litepod-16
#   tpu_scripts/create.sh --spot
#   tpu_scripts/create.sh --api compute-engine --topology tpu7x:2x2x4 --flex-start --max-run-duration 4h --timeout 7200
#
# Queued resources and TPU VMs are the Cloud TPU API, which is in maintenance; TPU7x and later are in Compute Engine and GKE.
#
#   TIMEOUT  --timeout SECONDS  longest wait (0: until it comes); then the request is deleted, so that nothing comes and costs later
#   KEEP=1   --keep             leave the request in the queue after TIMEOUT; VALID_UNTIL says how long
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

parse "$SLICE_FLAGS $CREATE_FLAGS timeout keep! poll" "$@"
no_words
need_slice
[ "$EXISTING" = 0 ] || die "$NAME is a VM that exists; there is nothing to create: go on with tpu_scripts/setup.sh"
TIMEOUT=${TIMEOUT:-0} VALID_UNTIL=${VALID_UNTIL:-} BOOT_DISK=${BOOT_DISK:-}
on_or_off KEEP
whole TIMEOUT seconds

# each_like NAME PATTERN WHAT: its parts, between commas, are like the pattern.
each_like() {
  local part parts
  IFS=, read -r -a parts <<< "${!1:-}"
  for part in ${parts[@]+"${parts[@]}"}; do
    [[ $part =~ ^$2$ ]] || die "$1 has '$part'; give $3"
  done
}
# refuse NAME FIX: a setting that this API does not have.
refuse() { [ -z "${!1:-}" ] || die "$1 is '${!1}', and --api $API has no such setting; $2"; }

duration="([0-9]+[smhd])+"
each_like VALID_UNTIL "$duration" "a duration, such as 90m or 2h"
each_like MAX_RUN_DURATION "$duration" "a duration, such as 90m or 4h"
each_like LABELS "[a-z][a-z0-9_-]*=[a-z0-9_-]*" "KEY=VALUE,KEY=VALUE of small letters"
each_like TAGS "[a-z]([a-z0-9-]*[a-z0-9])?" "TAG,TAG of small letters"
each_like METADATA "[A-Za-z0-9_-]+=.*" "KEY=VALUE,KEY=VALUE"
each_like METADATA_FROM_FILE "[A-Za-z0-9_-]+=.+" "KEY=FILE,KEY=FILE"
for disk in ${DATA_DISK:-}; do
  [[ $disk =~ ^(mode=read-(only|write),)?source=[^,]+(,mode=read-(only|write))?$ ]] || die "DATA_DISK has '$disk'; give source=DISK or source=DISK,mode=read-only"
done
[ "$FLEX_START" = 0 ] || [ -n "${MAX_RUN_DURATION:-}" ] || die "FLEX_START needs an end: give --max-run-duration, such as 4h"
check_request
if [ "$TIMEOUT" -gt 0 ] && [ "$KEEP" = 0 ] && [ -z "$VALID_UNTIL" ] && can_expire; then VALID_UNTIL=${TIMEOUT}s; fi

request() {
  local errors status=0 text half_made=0
  errors=$(mktemp)
  create_request 2> "$errors" || status=$?
  cat "$errors" >&2
  text=$(cat "$errors") && rm -f "$errors"
  [ $status -ne 0 ] || return 0
  # What is there of a request that failed halfway may cost. Where a name was taken, it may be somebody's.
  case $half_made:$text in
    0:* | *"already exists"*) ;;
    *) delete_request --quiet || say "what is half made could not be deleted, and may cost money: tpu_scripts/delete.sh" ;;
  esac
  die "$(explain "$text")" 1
}

explain() {
  local what=${ACCELERATOR_TYPE:-${TOPOLOGY:-}}
  case $1 in
    *[Qq]uota*) printf '%s' "the quota of $PROJECT in $ZONE does not allow $SLICES x $what$([ "$SPOT" = 0 ] || printf ' (spot)'); ask for more at console.cloud.google.com/iam-admin/quotas, or take another zone or size" ;;
    *ALREADY_EXISTS* | *"already exists"*) printf '%s' "$NAME exists already; look with tpu_scripts/status.sh, take it away with tpu_scripts/delete.sh, or choose another NAME" ;;
    *) printf '%s' "gcloud could not request $NAME; its words are above" ;;
  esac
}

give_up() {
  show_request || true
  die "$1; take it away with tpu_scripts/delete.sh and create it again" 1
}
# What has not come in time is not to come, and cost, when nobody looks.
too_late() {
  local what="$NAME is not ready after $TIMEOUT s ($1)"
  [ "$KEEP" = 0 ] || die "$what; it stays in the queue and costs when it comes${VALID_UNTIL:+, until $VALID_UNTIL after its request}: tpu_scripts/status.sh shows it, tpu_scripts/delete.sh takes it away" 1
  delete_request --quiet || die "$what, and it could not be deleted; gcloud's words are above. It may come and cost money: tpu_scripts/delete.sh" 1
  die "$what and was deleted; nothing is left that costs" 1
}

# ready | waiting STATE | broken WHAT, of the request and then of each node.
look() {
  local state node
  state=$(request_state) || { echo "waiting UNKNOWN" && return; }
  case $state in
    ACTIVE) ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING | NOT_FOUND) echo "broken $NAME is $state" && return ;;
    *) echo "waiting $state" && return ;;
  esac
  for node in $(nodes); do
    state=$(node_state "$node") || { echo "waiting UNKNOWN" && return; }
    case $state in
      READY) ;;
      CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING | UNKNOWN) echo "waiting ($node is $state)" && return ;;
      *) echo "broken $NAME is half made: node $node is $state" && return ;;
    esac
  done
  echo ready
}

wait_until_ready() {
  local seen now="" unknown=0
  while :; do
    seen=$now && now=$(look)
    case $now in
      ready) break ;;
      broken\ *) give_up "${now#broken }" ;;
      "waiting UNKNOWN") unknown=$((unknown + 1)) ;;
      *) unknown=0 ;;
    esac
    [ "$now" = "$seen" ] || say "$NAME: $now"
    [ $unknown -lt 10 ] || die "the state of $NAME cannot be read, ten times in a row; gcloud's words are above" 1
    [ "$TIMEOUT" -eq 0 ] || [ $SECONDS -lt "$TIMEOUT" ] || too_late "${now#waiting }"
    sleep "$POLL"
  done
}

[ "$API" != queued-resources ] || say "queued resources are in maintenance; --api compute-engine makes v5p, v6e, TPU7x and later, tpu_scripts/jobset.sh runs on GKE"
request
if [ "$DRY_RUN" = 1 ]; then
  request_state
  for node in $(nodes); do node_state "$node"; done
else
  trap 'say "no longer waiting; the request stays and costs when it comes: tpu_scripts/status.sh shows it, tpu_scripts/delete.sh takes it away" && exit 130' INT TERM
  wait_until_ready
  say "$NAME is ready: $(nodes | tr '\n' ' ')"
fi
