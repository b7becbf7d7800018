#!/usr/bin/env bash
# supervise.sh: runs on a host; keeps one command going. launch.sh, stop.sh, status.sh and logs.sh call it.
#
#   supervise.sh start -- COMMAND…  in the background; an error where one is going already
#   supervise.sh run -- COMMAND…    in the foreground; its exit status is the command's last one
#   supervise.sh state              one line: HOST running | waiting | done | failed N | stopped N | gone | none
#   supervise.sh idle               fails where a command is going
#   supervise.sh stop               SIGTERM to the command, which saves; returns when it has ended
#   supervise.sh log LINES [-F]     the end of its log, and with -F what comes
#
# Exit status of the command: 0 is done. 2 (bad configuration or data), 126 and 127 (no such command) end it for good. Any other, so
# also 143 after a SIGTERM that did not come from here, starts it again after DELAY seconds, twice as many every time up to
# MAX_DELAY; after MAX_RESTARTS of them in a row that did not last STEADY seconds it gives up.
#
#   DELAY=10 MAX_DELAY=300 MAX_RESTARTS=10 STEADY=600 STOP_SECONDS=900 LLM_JAX_RUN=~/llm_jax/run
set -euo pipefail
folder=${LLM_JAX_RUN:-$HOME/llm_jax/run}
DELAY=${DELAY:-10} MAX_DELAY=${MAX_DELAY:-300} MAX_RESTARTS=${MAX_RESTARTS:-10} STEADY=${STEADY:-600} STOP_SECONDS=${STOP_SECONDS:-900}
for name in DELAY MAX_DELAY MAX_RESTARTS STEADY STOP_SECONDS; do
  [[ ${!name} =~ ^[0-9]+$ ]] || { printf "supervise.sh: error: %s is '%s'; give a whole number\n" "$name" "${!name}" >&2 && exit 2; }
done

die() { printf 'supervise.sh on %s: error: %s\n' "$(hostname)" "$1" >&2 && exit "${2:-2}"; }
note() { printf '%s supervise.sh: %s\n' "$(date -u +%FT%TZ)" "$1" >> "$folder/log"; }
# Replaced at once, so that a reader never sees half a line.
set_state() { printf '%s\n' "$1" > "$folder/state.new" && mv "$folder/state.new" "$folder/state"; }
# The lock is held by the supervisor and, through it, by the command: also when one of them has been killed.
held() { [ -e "$folder/lock" ] && ! flock -n "$folder/lock" true; }
pid_of() { cat "$folder/$1" 2> /dev/null || true; }

# Sets status to the command's exit status.
run_once() {
  "$@" >> "$folder/log" 2>&1 &
  child=$! status=0
  echo "$child" > "$folder/child"
  [ -z "$stopping" ] || kill -TERM "$child" 2> /dev/null || true
  wait "$child" || status=$?
  # A signal to this script ends the wait early; the command is still saving.
  while kill -0 "$child" 2> /dev/null; do
    status=0
    wait "$child" || status=$?
  done
  child=""
}

finish() {
  note "$1"
  set_state "$1"
  exit "$2"
}

supervise() {
  local restarts=0 delay=$DELAY began
  child="" stopping="" status=0
  trap 'stopping=1; [ -z "$child" ] || kill -TERM "$child" 2> /dev/null || true' TERM INT
  echo $$ > "$folder/pid"
  while :; do
    note "start: $*"
    set_state running
    began=$SECONDS
    run_once "$@"
    case $status in
      0) finish "done" 0 ;;
      2 | 126 | 127) finish "failed $status" "$status" ;;
    esac
    [ -z "$stopping" ] || finish "stopped $status" "$status"
    [ $((SECONDS - began)) -lt "$STEADY" ] || restarts=0 delay=$DELAY
    restarts=$((restarts + 1))
    [ $restarts -le "$MAX_RESTARTS" ] || finish "failed $status" "$status"
    note "exit status $status; start $restarts of $MAX_RESTARTS again in $delay s"
    set_state waiting
    # In the background, so that a signal is heard at once; without the lock, so that nothing holds it once this script is gone.
    sleep "$delay" 9>&- &
    wait $! || true
    [ -z "$stopping" ] || finish "stopped $status" "$status"
    delay=$((delay * 2 < MAX_DELAY ? delay * 2 : MAX_DELAY))
  done
}

take_lock() {
  mkdir -p "$folder"
  exec 9> "$folder/lock"
  flock -n 9 || die "a run is going (process $(pid_of pid)); stop it first: tpu_scripts/stop.sh" 1
  # Those of the run before may be other processes by now.
  rm -f "$folder/pid" "$folder/child"
}

state() {
  local said
  said=$(cat "$folder/state" 2> /dev/null || echo none)
  case $said in
    running | waiting) held || said=gone ;;
    *) ;;
  esac
  printf '%s %s\n' "$(hostname)" "$said"
}

stop() {
  local waited=0 told=""
  while held; do
    # The supervisor tells its command; where it was killed, we do.
    if [ -z "$told" ] && kill -TERM "$(pid_of pid)" 2> /dev/null; then
      told="supervisor"
    elif [ "$told" != "command" ] && ! kill -0 "$(pid_of pid)" 2> /dev/null && kill -TERM "$(pid_of child)" 2> /dev/null; then
      told="command"
    fi
    [ $waited -lt "$STOP_SECONDS" ] || die "process $(pid_of child) is still saving after $STOP_SECONDS s; look at its log, then stop again or kill -9 it" 1
    sleep 1
    waited=$((waited + 1))
  done
  state
}

idle() { ! held || die "a run is going (process $(pid_of pid)); stop it first: tpu_scripts/stop.sh" 1; }

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
  start | run) [ "${1:-}" = -- ] && [ $# -gt 1 ] || die "usage: supervise.sh $verb -- COMMAND…" ;;
esac
case $verb:${DRY_RUN:-0} in
  start:1 | run:1 | stop:1) printf '%s %s\n' "$verb" "${*:-$(pid_of pid)}" && exit 0 ;;
esac
case $verb in
  start)
    shift
    take_lock
    set_state running
    # A session of its own, so that it outlives the connection; it inherits the lock.
    setsid nohup "$0" inherit -- "$@" > /dev/null 2>> "$folder/log" < /dev/null &
    ;;
  inherit) shift && supervise "$@" ;;
  run) shift && take_lock && supervise "$@" ;;
  state) state ;;
  idle) idle ;;
  stop) stop ;;
  log) tail -n "${1:-100}" ${2:+"$2"} "$folder/log" | sed -u "s/^/[$(hostname)] /" ;;
  -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "$0" ;;
  *) die "unknown verb '$verb'; there are start run state idle stop log" ;;
esac
