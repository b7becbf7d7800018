#!/usr/bin/env bash
# create.sh: asks for one TPU slice or several as a queued resource, and waits until every node is ready.
#
#   export PROJECT=my-project ZONE=us-west4-a NAME=lm1b ACCELERATOR_TYPE=v5litepod-16
#   tpu_scripts/create.sh --spot
#
#   TIMEOUT  --timeout SECONDS  longest wait (0: until it comes); the request stays in the queue after it
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

parse "project zone name slices accelerator-type runtime-version spot! reserved! timeout poll" "$@"
no_words
need_slice
need ACCELERATOR_TYPE
TIMEOUT=${TIMEOUT:-0}
[[ $TIMEOUT =~ ^[0-9]+$ ]] || die "TIMEOUT is '$TIMEOUT'; give seconds"

# The image that cloud.google.com/tpu/docs/runtimes names for a chip.
runtime_of() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    tpu7x* | v7x*) die "ACCELERATOR_TYPE is '$1'; TPU7x is had through GKE only: tpu_scripts/jobset.sh" ;;
    *) die "ACCELERATOR_TYPE is '$1'; known are v4-N v5litepod-N v5p-N v6e-N, as v5litepod-16" ;;
  esac
}

[[ $ACCELERATOR_TYPE =~ -[1-9][0-9]*$ ]] || die "ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; its size is missing, as in v5litepod-16"
usual=$(runtime_of "$ACCELERATOR_TYPE")
RUNTIME_VERSION=${RUNTIME_VERSION:-$usual}
case $RUNTIME_VERSION in
  "$usual") ;;
  v2-alpha-tpuv*) die "RUNTIME_VERSION is '$RUNTIME_VERSION', made for another chip than $ACCELERATOR_TYPE; leave it out ($usual is taken)" ;;
esac

request() {
  local words=(queued-resources create "$NAME" --accelerator-type "$ACCELERATOR_TYPE" --runtime-version "$RUNTIME_VERSION") errors status=0
  if [ "$SLICES" -gt 1 ]; then
    words+=(--node-count "$SLICES" --node-prefix "$NAME")
  else
    words+=(--node-id "$NAME")
  fi
  [ "$SPOT" = 0 ] || words+=(--spot)
  [ "$RESERVED" = 0 ] || words+=(--reserved)
  errors=$(mktemp)
  tpu "${words[@]}" 2> "$errors" || status=$?
  cat "$errors" >&2
  local text
  text=$(cat "$errors") && rm -f "$errors"
  [ $status -eq 0 ] || die "$(explain "$text")" 1
}

explain() {
  case $1 in
    *[Qq]uota*) printf '%s' "the quota of $PROJECT in $ZONE does not allow $SLICES x $ACCELERATOR_TYPE$([ "$SPOT" = 0 ] || printf ' (spot)'); ask for more at console.cloud.google.com/iam-admin/quotas, or take another zone or size" ;;
    *ALREADY_EXISTS*) printf '%s' "$NAME exists already; look with tpu_scripts/status.sh, take it away with tpu_scripts/delete.sh, or choose another NAME" ;;
    *) printf '%s' "gcloud could not request $NAME; its words are above" ;;
  esac
}

give_up() {
  tpu queued-resources describe "$NAME" >&2 || true
  die "$1; take it away with tpu_scripts/delete.sh and create it again" 1
}

# ready | waiting STATE | broken WHAT, of the request and then of each node.
look() {
  local state node
  state=$(queue_state) || { echo "waiting UNKNOWN" && return; }
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
    [ "$TIMEOUT" -eq 0 ] || [ $SECONDS -lt "$TIMEOUT" ] || die "$NAME is not ready after $TIMEOUT s (${now#waiting }); it stays in the queue: tpu_scripts/status.sh shows it" 1
    sleep "$POLL"
  done
}

request
if [ "$DRY_RUN" = 1 ]; then
  queue_state
  each_slice node_state @NODE@
else
  wait_until_ready
  say "$NAME is ready: $(nodes | tr '\n' ' ')"
fi
