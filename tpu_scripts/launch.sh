#!/usr/bin/env bash
# launch.sh: starts `llm-jax train` on all hosts of all slices, each under a supervisor that starts it again after a crash.
#
#   tpu_scripts/launch.sh configs/lm_1b.py --data.path=/mnt/bucket/shards --train.out=/mnt/bucket/runs/lm_1b
#   tpu_scripts/launch.sh --supervise configs/lm_1b.py …
#
# The flags of this script come before the config, the settings of the run after it. train.out must be in MOUNT or gs://…: there all
# hosts see it, and it outlives them. The run goes on from its newest intact checkpoint there, also when this command is given again.
#
#   SUPERVISE=1      --supervise           stay and look: make a slice anew that was taken away (delete, create, set up, launch) with
#                                          the same flags as create.sh and setup.sh, and end with the run. Ctrl-C ends only the looking.
#   REMAKE_DELAY     --remake-delay S      before another try to make the slice (60), twice as many every time up to an hour
#   REMAKE_TRIES     --remake-tries N      tries in a row, none of which ran for ten minutes, before it gives up (10)
#
# Exit status with --supervise: 0 when the run is done, 2 after a bad setting, 143 after stop.sh, as `llm-jax train` itself.
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

parse "$SLICE_FLAGS $CREATE_FLAGS bucket no-bucket! mount poll supervise! remake-delay remake-tries" "$@"
need_slice
check_words ${WORDS[@]+"${WORDS[@]}"}
need_bucket "$OUT"
REMAKE_DELAY=${REMAKE_DELAY:-60} REMAKE_TRIES=${REMAKE_TRIES:-10}
on_or_off SUPERVISE
whole REMAKE_DELAY seconds
whole REMAKE_TRIES "a whole number"
# What create.sh would refuse is refused now, and not in the night.
if [ "$SUPERVISE$EXISTING" = 10 ]; then
  errors=$(DRY_RUN=1 "$HERE/create.sh" 2>&1 > /dev/null) || { printf '%s\n' "$errors" >&2 && exit 2; }
fi

start() {
  local command="cd llm_jax/source && "
  [ -z "$BUCKET" ] || command+="tpu_scripts/mount.sh $BUCKET $(quote "$MOUNT") && "
  on_hosts "${command}tpu_scripts/supervise.sh start -- $(process_environment)../venv/bin/llm-jax train $(quoted "${WORDS[@]}")"
}
stop_all() { on_hosts "llm_jax/source/tpu_scripts/supervise.sh stop" >&2; }

# ready | lost WHAT | deleted | unknown, of the queued resource and its nodes.
look_at_slice() {
  local state node
  state=$(request_state) || { echo unknown && return; }
  case $state in
    ACTIVE) ;;
    FAILED | SUSPENDING | SUSPENDED) echo "lost $NAME is $state" && return ;;
    NOT_FOUND | DELETING) echo deleted && return ;;
    *) echo unknown && return ;;
  esac
  for node in $(nodes); do
    state=$(node_state "$node") || { echo unknown && return; }
    case $state in
      READY) ;;
      PREEMPTED | TERMINATED | STOPPING | STOPPED | DELETING | NOT_FOUND) echo "lost node $node is $state" && return ;;
      *) echo unknown && return ;;
    esac
  done
  echo ready
}

# What the states of all hosts, one a line, mean together: failed N | gone | running | stopped N | done | unknown.
together() {
  awk '
    $2 == "failed" { failed = $3 }
    $2 == "gone" || $2 == "none" { gone = 1 }
    $2 == "running" || $2 == "waiting" { running = 1 }
    $2 == "stopped" { stopped = $3 }
    END {
      if (NR == 0) print "unknown"
      else if (failed != "") print "failed", failed
      else if (gone) print "gone"
      else if (running) print "running"
      else if (stopped != "") print "stopped", stopped
      else print "done"
    }'
}
look() {
  local slice said
  slice=$(look_at_slice)
  [ "$slice" = ready ] || { echo "$slice" && return; }
  said=$(on_hosts "llm_jax/source/tpu_scripts/supervise.sh state") || {
    # 127: a host without the script, since its disk is new.
    [ $? -eq 127 ] && echo gone || echo unknown
    return
  }
  printf '%s' "$said" | together
}

# again WHY WHAT: does it until it succeeds. A run that then lasts ten minutes clears the count of tries.
tries=0 delay=$REMAKE_DELAY began=0
again() {
  [ $((SECONDS - began)) -lt 600 ] || tries=0 delay=$REMAKE_DELAY
  while :; do
    tries=$((tries + 1))
    [ $tries -le "$REMAKE_TRIES" ] || die "$1, and $REMAKE_TRIES tries to go on have failed; the words of the last are above. What is left may cost money: tpu_scripts/status.sh" 1
    say "$1; try $tries of $REMAKE_TRIES to go on"
    if [ $tries -gt 1 ]; then
      sleep "$delay"
      delay=$((delay * 2 < 3600 ? delay * 2 : 3600))
    fi
    "$2" && break
  done
  began=$SECONDS
}
remake() {
  [ "$EXISTING" = 0 ] || die "$NAME was taken away; a VM that these scripts did not make is not made anew" 1
  # After a try that did not get past create.sh there is nothing to delete, but in Compute Engine a template may be left.
  [ "$API$(request_state)" = queued-resourcesNOT_FOUND ] || "$HERE/delete.sh" --yes || return
  "$HERE/create.sh" && "$HERE/setup.sh" && start
}
# A host that has started anew has lost its run, and the others wait for it in vain.
restart() {
  # What else may be wrong with the slice is seen, and mended, at the next look.
  [ "$(look_at_slice)" = ready ] || return 0
  stop_all || "$HERE/setup.sh" || return
  start
}

watch_run() {
  local now="" seen unknown=0
  while sleep "$POLL"; do
    seen=$now && now=$(look)
    [ "$now" = "$seen" ] || say "$NAME: $now"
    case $now in
      "done") return 0 ;;
      failed\ *) stop_all || true && die "the run ended with exit status ${now#failed } and is not started again; tpu_scripts/logs.sh says why" "${now#failed }" ;;
      stopped\ *) say "the run was stopped and has saved; the same command goes on" && exit "${now#stopped }" ;;
      deleted) die "$NAME was deleted; it is not made again" 1 ;;
      lost\ *) again "${now#lost }" remake ;;
      gone) again "a host of $NAME has lost its run" restart ;;
      unknown) unknown=$((unknown + 1)) ;;
    esac
    [ "$now" = unknown ] || unknown=0
    [ $unknown -lt 20 ] || die "$NAME or its hosts cannot be reached, twenty times in a row; gcloud's words are above, and the run may be going" 1
  done
}

start || die "the run was not started on every host; tpu_scripts/setup.sh prepares them, tpu_scripts/stop.sh stops those that go" 1
[ "$DRY_RUN" = 1 ] || say "started on all hosts of $NAME; tpu_scripts/logs.sh --follow shows it"
if [ "$SUPERVISE" = 1 ] && [ "$DRY_RUN" = 1 ]; then
  request_state
  for node in $(nodes); do node_state "$node"; done
  on_hosts "llm_jax/source/tpu_scripts/supervise.sh state"
elif [ "$SUPERVISE" = 1 ]; then
  watch_run
fi
