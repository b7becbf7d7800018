#!/usr/bin/env bash
# jobset.sh: the same run on GKE, as a JobSet with one job per slice and one pod per host; DRY_RUN=1 prints the manifest.
#
#   tpu_scripts/jobset.sh run --name lm1b --topology v5e:4x4 --slices 2 --image IMAGE \
#     configs/lm_1b.py --data.path=gs://my-bucket/shards --train.out=gs://my-bucket/runs/lm_1b
#   tpu_scripts/jobset.sh status --name lm1b      its state, its restarts and its pods
#   tpu_scripts/jobset.sh logs --name lm1b        of all pods, each line with its pod; --follow --tail N
#   tpu_scripts/jobset.sh stop --name lm1b        all pods save and end, and the JobSet is deleted
#
# A pod that fails starts the whole set again, which goes on from its newest checkpoint, up to MAX_RESTARTS times. Restarts after the end
# of a node and after the exit statuses in UNCOUNTED are not counted; exit status 2 (a bad setting) ends the JobSet. A JobSet cannot be
# changed, so that a NAME that exists is refused: --replace stops the old one first, --unique takes a new name. The cluster needs JobSet
# 0.10 or newer, node pools with the slices, and with --bucket the Cloud Storage FUSE driver.
#
#   IMAGE              --image I              has llm-jax on its PATH and configs/ in its working folder, as after
#                                             FROM python:3.12 / COPY . /llm_jax / RUN pip install '/llm_jax[tpu,gcs]' / WORKDIR /llm_jax
#   SERVICE_ACCOUNT    --service-account S    of Kubernetes, allowed to read and write the bucket (default)
#   MAX_RESTARTS       --max-restarts N       (50)
#   UNCOUNTED          --uncounted "N N"      exit statuses whose restarts are not counted (143: saved after a SIGTERM)
#   GRACE              --grace SECONDS        to save after SIGTERM (600; with --spot 15, and up to 120 where the node pool says so)
#   UNIQUE=1           --unique               adds the time to NAME
#   REPLACE=1          --replace              stops the JobSet of this name first
#   NAMESPACE          --namespace N          of Kubernetes; CONTEXT --context C one of kubectl config get-contexts
#   QUEUE              --queue Q              of Kueue; QUEUE_PRIORITY --queue-priority P a WorkloadPriorityClass of it
#   PRIORITY           --priority P           a PriorityClass of Kubernetes
#   POD_ENV            --pod-env "K=V K=V"    variables of the trainer
#   SECRETS            --secrets "S S"        each K=SECRET:KEY, or SECRET for all of its keys, as variables of the trainer
#   IMAGE_PULL_SECRET  --image-pull-secret S  for IMAGE
#   HOST_NETWORK=1     --host-network         the pods use the network of their hosts, which is faster between slices; gs:// paths are then
#                                             read with the service account of the node pool
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"
# shellcheck source-path=SCRIPTDIR source=topology.sh
source "$HERE/topology.sh"
# shellcheck source-path=SCRIPTDIR source=jobset_manifest.sh
source "$HERE/jobset_manifest.sh"

verb=run
case ${1:-} in run | stop | logs | status) verb=$1 && shift ;; esac
cluster_flags="name namespace context"
case $verb in
  run)
    parse "$cluster_flags slices topology machine-type image bucket no-bucket! mount spot! flex-start! reservation service-account max-restarts uncounted \
grace unique! replace! queue queue-priority priority pod-env secrets image-pull-secret host-network!" "$@"
    ;;
  stop) parse "$cluster_flags grace" "$@" ;;
  logs) parse "$cluster_flags tail follow!" "$@" ;;
  status) parse "$cluster_flags" "$@" ;;
esac
need NAME

pods_label=jobset.sigs.k8s.io/jobset-name
kube() {
  local words=(kubectl)
  [ -z "${CONTEXT:-}" ] || words+=(--context "$CONTEXT")
  [ -z "${NAMESPACE:-}" ] || words+=(--namespace "$NAMESPACE")
  run "${words[@]}" "$@"
}
need_kubectl() {
  [ "$DRY_RUN" = 1 ] || command -v kubectl > /dev/null || die "kubectl is not on the PATH; install it, or write the manifest to a file with DRY_RUN=1"
}

# Settings of run ---------------------------------------------------------------------------------

check_words_of() {
  local word
  for word in $2; do
    [[ $word =~ ^$3$ ]] || die "$1 has '$word'; give $4"
  done
}
# check_grace SECONDS: GRACE, by default these.
check_grace() {
  GRACE=${GRACE:-$1}
  whole GRACE seconds
  [ "$GRACE" -gt 0 ] || die "GRACE is 0, and pods could not save; give seconds, 1 or more"
}
check_spot() {
  # cloud.google.com/kubernetes-engine/docs/concepts/spot-vms: 15 s for pods; more from GKE 1.35.0-gke.1171000 on, in the node pool.
  [ "$SPOT" = 0 ] || [ "$GRACE" -le 120 ] ||
    die "GRACE is '$GRACE'; a spot node gives its pods 15 s, or up to 120 where the node pool's system configuration says so (GKE 1.35 and newer)"
}
check_name() {
  [ "$UNIQUE" = 0 ] || NAME=$NAME-$(date -u +%m%d-%H%M%S)
  [[ $NAME =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || die "NAME is '$NAME'; Kubernetes takes small letters, digits and -, from a letter on"
  # The longest name of a pod, which has five letters of its own.
  local pod="$NAME-slice-$((SLICES - 1))-$((hosts - 1))-abcde"
  [ ${#pod} -le 63 ] || die "NAME is '$NAME'; names of its pods would have ${#pod} letters and may have 63: take one that is $((${#pod} - 63)) shorter"
}
check_run() {
  need TOPOLOGY IMAGE
  SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default} MAX_RESTARTS=${MAX_RESTARTS:-50} UNCOUNTED=${UNCOUNTED:-143}
  local default=600
  on_or_off UNIQUE REPLACE HOST_NETWORK
  [ "$UNIQUE$REPLACE" != 11 ] || die "UNIQUE and REPLACE exclude each other; keep one"
  whole MAX_RESTARTS "a whole number"
  [[ " $UNCOUNTED " != *" 2 "* ]] || die "UNCOUNTED has 2, which is a bad setting and ends the run; leave it out"
  check_words_of UNCOUNTED "$UNCOUNTED" "([1-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])" "exit statuses from 1 to 255, between spaces"
  # Kubernetes wants them in order, once each.
  UNCOUNTED=$(tr ' ' '\n' <<< "$UNCOUNTED" | sort -nu | tr '\n' ' ') && UNCOUNTED=${UNCOUNTED% }
  check_words_of POD_ENV "${POD_ENV:-}" "[A-Za-z_][A-Za-z0-9_]*=.*" "NAME=VALUE words, between spaces"
  check_words_of SECRETS "${SECRETS:-}" "([A-Za-z_][A-Za-z0-9_]*=[a-z0-9.-]+:[A-Za-z0-9._-]+|[a-z0-9.-]+)" "NAME=SECRET:KEY or SECRET words, between spaces"
  [ -z "${QUEUE_PRIORITY:-}" ] || [ -n "${QUEUE:-}" ] || die "QUEUE_PRIORITY is '$QUEUE_PRIORITY' without a QUEUE; give --queue too"
  [ "$SPOT" = 0 ] || default=15
  check_grace $default
  check_spot
  read_topology
  check_name
  check_words ${WORDS[@]+"${WORDS[@]}"}
  need_bucket "$OUT"
}

# Verbs -------------------------------------------------------------------------------------------

exists() {
  local errors status=0
  errors=$(kube get jobset "$NAME" --output name 2>&1 > /dev/null) || status=$?
  case $errors in
    *NotFound* | *"not found"*) return 1 ;;
  esac
  [ $status -eq 0 ] || { printf '%s\n' "$errors" >&2 && die "kubectl could not look for $NAME; its words are above" 1; }
}
need_jobset() { [ "$DRY_RUN" = 1 ] || exists || die "there is no JobSet $NAME${NAMESPACE:+ in $NAMESPACE}; kubectl get jobsets --all-namespaces lists them" 1; }

submit() {
  local errors status=0
  [ "$REPLACE" = 0 ] || ! exists || stop
  errors=$(manifest | kube create --filename - 2>&1 > /dev/null) || status=$?
  case $status:$errors in
    0:*) ;;
    *AlreadyExists* | *"already exists"*)
      die "there is a JobSet $NAME already, and it cannot be changed; give --replace to stop it first, --unique for a new name, or stop it: tpu_scripts/jobset.sh stop --name $NAME" 1
      ;;
    *) printf '%s\n' "$errors" >&2 && die "kubectl did not take the manifest; its words are above, DRY_RUN=1 prints it" 1 ;;
  esac
  say "$NAME is submitted; tpu_scripts/jobset.sh logs --name $NAME --follow shows it"
}
# The pods get GRACE first, since a JobSet's deletion gives them only what their manifest says.
stop() {
  local done=0
  kube delete pods --selector "$pods_label=$NAME" --grace-period "$GRACE" --wait=false && kube delete jobset "$NAME" --cascade foreground --wait && done=1
  [ $done = 1 ] || die "$NAME was not stopped; kubectl's words are above" 1
}
logs() {
  TAIL=${TAIL:-100}
  whole TAIL "a number of lines"
  on_or_off FOLLOW
  local words=(logs --selector "$pods_label=$NAME" --container train --prefix --tail "$TAIL" --max-log-requests 1024)
  switch --follow FOLLOW
  kube "${words[@]}" || die "the logs of $NAME could not be read; kubectl's words are above" 1
}
show_status() {
  local done=0
  kube get jobset "$NAME" && kube get pods --selector "$pods_label=$NAME" --output wide && done=1
  [ $done = 1 ] || die "the state of $NAME could not be read; kubectl's words are above" 1
}

case $verb in
  run)
    check_run
    need_kubectl
    if [ "$DRY_RUN" = 1 ]; then manifest; else submit; fi
    ;;
  *)
    no_words
    check_grace 600
    need_kubectl
    need_jobset
    case $verb in stop) stop ;; logs) logs ;; status) show_status ;; esac
    ;;
esac
