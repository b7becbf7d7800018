#!/usr/bin/env bash
# xpk.sh: the same run on a GKE cluster made by xpk (github.com/AI-Hypercomputer/xpk), as one of its workloads.
#
#   tpu_scripts/xpk.sh run --cluster my-cluster --name lm1b --accelerator-type v5litepod-16 --slices 2 --image IMAGE \
#     configs/lm_1b.py --data.path=gs://my-bucket/shards --train.out=gs://my-bucket/runs/lm_1b
#   tpu_scripts/xpk.sh status --cluster my-cluster     the workloads of the cluster
#   tpu_scripts/xpk.sh stop --cluster my-cluster --name lm1b
#
# xpk starts a workload again after the exit statuses 42 and 127 to 255 and those in RESTART_ON, and counts every restart; 2 (a bad
# setting) ends it.
#
#   CLUSTER           --cluster C           that `xpk cluster create` made
#   ACCELERATOR_TYPE  --accelerator-type T  xpk's --tpu-type, such as v5litepod-16, v6e-64, tpu7x-2x2x4
#   IMAGE             --image I             as for jobset.sh
#   STORAGE           --storage S           of `xpk storage`, mounted at MOUNT; without it, paths are gs://…
#   MAX_RESTARTS      --max-restarts N      (50)
#   RESTART_ON        --restart-on "N N"    exit statuses (1 75)
#   GRACE             --grace SECONDS       to save after SIGTERM (600; with --spot 15)
#   PRIORITY          --priority P          very-low low medium high very-high (medium)
#   POD_ENV           --pod-env "K=V K=V"   variables of the trainer
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

verb=run
case ${1:-} in run | stop | status) verb=$1 && shift ;; esac
place="project zone name cluster"
case $verb in
  run) parse "$place slices accelerator-type image storage mount spot! flex-start! reservation max-restarts restart-on grace priority pod-env" "$@" ;;
  *) parse "$place" "$@" && no_words ;;
esac
need PROJECT ZONE CLUSTER
[ "$verb" = status ] || need NAME
[ "$DRY_RUN" = 1 ] || command -v xpk > /dev/null || die "xpk is not on the PATH; install it: pip install xpk"

xpk_workload() { run xpk workload "$@" --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE"; }

submit() {
  local grace=600 pair words=(create)
  need ACCELERATOR_TYPE IMAGE
  # Storage of xpk stands for the bucket of the other scripts.
  NO_BUCKET=1
  check_words ${WORDS[@]+"${WORDS[@]}"}
  [ -n "${STORAGE:-}" ] || [[ " ${WORDS[*]}" != *="$MOUNT"/* ]] || die "a path is in $MOUNT and nothing is mounted there; give --storage, or paths such as gs://my-bucket/shards"
  [ "$SPOT" = 0 ] || grace=15
  RESTART_ON=${RESTART_ON:-1 75} MAX_RESTARTS=${MAX_RESTARTS:-50} GRACE=${GRACE:-$grace} PRIORITY=${PRIORITY:-medium}
  whole MAX_RESTARTS "a whole number"
  whole GRACE seconds
  [[ " $RESTART_ON " != *" 2 "* ]] || die "RESTART_ON has 2, which is a bad setting and ends the run; leave it out"
  [[ $RESTART_ON =~ ^[0-9]+(\ [0-9]+)*$ ]] || die "RESTART_ON is '$RESTART_ON'; give exit statuses between spaces"
  with --workload NAME --tpu-type ACCELERATOR_TYPE --num-slices SLICES --docker-image IMAGE --storage STORAGE --reservation RESERVATION
  with --max-restarts MAX_RESTARTS --termination-grace-period-seconds GRACE --priority PRIORITY
  words+=(--restart-on-exit-codes "${RESTART_ON// /,}")
  switch --spot SPOT
  switch --flex FLEX_START
  for pair in ${POD_ENV:-}; do
    [[ $pair =~ ^[A-Za-z_][A-Za-z0-9_]*=.*$ ]] || die "POD_ENV has '$pair'; give NAME=VALUE words, between spaces"
    words+=(--env "$pair")
  done
  # exec, so that the signal of xpk's own shell reaches the trainer.
  xpk_workload "${words[@]}" --command "exec llm-jax train $(quoted "${WORDS[@]}")" || die "xpk did not take $NAME; its words are above" 1
}

case $verb in
  run) submit ;;
  stop) xpk_workload delete --workload "$NAME" || die "xpk did not stop $NAME; its words are above" 1 ;;
  status) xpk_workload list || die "xpk could not list the workloads; its words are above" 1 ;;
esac
