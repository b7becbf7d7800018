# shellcheck shell=bash disable=SC2153,SC2154
# Sourced by jobset.sh: the manifest of the JobSet, printed by `manifest`. Fields: kubernetes-sigs/jobset, api/jobset/v1alpha2.

# A word as a YAML string.
yaml() {
  local word=${1//\\/\\\\}
  printf '"%s"' "${word//\"/\\\"}"
}
# The same in a command, its arguments or a variable, where Kubernetes reads $(…) and $$.
literal() { yaml "${1//\$/\$\$}"; }
# indented N: its input, N spaces further in.
indented() { sed "s/^/$(printf '%*s' "$1" '')/"; }

labels() {
  [ -z "${QUEUE:-}" ] || printf 'kueue.x-k8s.io/queue-name: %s\n' "$(yaml "$QUEUE")"
  [ -z "${QUEUE_PRIORITY:-}" ] || printf 'kueue.x-k8s.io/priority-class: %s\n' "$(yaml "$QUEUE_PRIORITY")"
}
metadata() {
  printf 'name: %s\n' "$(yaml "$NAME")"
  [ -z "${NAMESPACE:-}" ] || printf 'namespace: %s\n' "$(yaml "$NAMESPACE")"
  [ -z "${QUEUE:-}" ] || printf 'labels:\n%s\n' "$(labels | indented 2)"
  # One slice, a node pool, per job.
  printf 'annotations:\n  alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool\n'
}

# The first rule that fits a failed job is the one: kubernetes-sigs/jobset, keps/262-ConfigurableFailurePolicy.
failure_policy() {
  cat << YAML
maxRestarts: $MAX_RESTARTS
rules:
  - name: bad_setting
    action: FailJobSet
    onJobFailureReasons: [PodFailurePolicy]
    onJobFailureMessagePatterns: ["exit code 2 "]
  - name: taken_away
    action: RestartJobSetAndIgnoreMaxRestarts
    onJobFailureReasons: [PodFailurePolicy]
    onJobFailureMessagePatterns: ["DisruptionTarget", "exit code (${UNCOUNTED// /|}) "]
YAML
}
pod_failure_policy() {
  cat << YAML
rules:
  - action: FailJob
    onExitCodes: {containerName: train, operator: In, values: [2]}
  - action: FailJob
    onPodConditions:
      - {type: DisruptionTarget, status: "True"}
  - action: FailJob
    onExitCodes: {containerName: train, operator: In, values: [${UNCOUNTED// /, }]}
YAML
}

node_selector() {
  printf 'cloud.google.com/gke-tpu-accelerator: %s\n' "$accelerator"
  printf 'cloud.google.com/gke-tpu-topology: %s\n' "$shape"
  # Pools of 2x4 are one machine of eight chips or two of four.
  [ -z "${MACHINE_TYPE:-}" ] && [ "$shape" != 2x4 ] || printf 'node.kubernetes.io/instance-type: %s\n' "$machine"
  [ "$SPOT" = 0 ] || printf 'cloud.google.com/gke-spot: "true"\n'
  [ "$FLEX_START" = 0 ] || printf 'cloud.google.com/gke-flex-start: "true"\n'
  [ -z "${RESERVATION:-}" ] || printf 'cloud.google.com/reservation-name: %s\n' "$(yaml "$RESERVATION")"
}

environment() {
  local pair
  for pair in ${POD_ENV:-}; do printf -- '- {name: %s, value: %s}\n' "${pair%%=*}" "$(literal "${pair#*=}")"; done
  for pair in ${SECRETS:-}; do
    [[ $pair != *=* ]] || printf -- '- {name: %s, valueFrom: {secretKeyRef: {name: %s, key: %s}}}\n' "${pair%%=*}" "$(secret "$pair")" "$(yaml "${pair##*:}")"
  done
}
secret() {
  local name=${1#*=}
  yaml "${name%:*}"
}
whole_secrets() {
  local name
  for name in ${SECRETS:-}; do [[ $name = *=* ]] || printf -- '- {secretRef: {name: %s}}\n' "$(yaml "$name")"; done
}

# What the pod runs: the folder of the run is tried first, as mount.sh does on a TPU VM. exec, so that SIGTERM reaches the trainer.
probe_and_train() {
  cat << 'SH'
probe=$1/.probe-$HOSTNAME
shift
if mkdir -p "$probe.a" && echo probe > "$probe.a/file" && mv "$probe.a" "$probe.b" && [ -f "$probe.b/file" ] && rm -r "$probe.b"; then
  exec llm-jax "$@"
fi
echo "folders of the bucket cannot be written and renamed in one step, and checkpoints need that: make one with --enable-hierarchical-namespace, or write to gs://BUCKET/ itself" >&2
exit 2
SH
}
command_and_arguments() {
  local word words=(train "${WORDS[@]}")
  if [ -n "$BUCKET" ]; then
    printf 'command:\n  - sh\n  - -c\n  - |\n%s\n  - probe\n' "$(probe_and_train | indented 4)"
    words=("$MOUNT" "${words[@]}")
  else
    printf 'command: [llm-jax]\n'
  fi
  printf 'args:\n'
  for word in "${words[@]}"; do printf '  - %s\n' "$(literal "$word")"; done
}

container() {
  printf 'name: train\nimage: %s\n' "$(yaml "$IMAGE")"
  command_and_arguments
  [ -z "$(environment)" ] || printf 'env:\n%s\n' "$(environment | indented 2)"
  [ -z "$(whole_secrets)" ] || printf 'envFrom:\n%s\n' "$(whole_secrets | indented 2)"
  printf 'resources:\n  requests: {google.com/tpu: %d}\n  limits: {google.com/tpu: %d}\n' "$per_host" "$per_host"
  [ -z "$BUCKET" ] || printf 'volumeMounts:\n  - {name: bucket, mountPath: %s}\n' "$(yaml "$MOUNT")"
}

# The options that mount.sh gives, under their names in the driver; the sidecar's limits are lifted, since large checkpoints pass it:
# cloud.google.com/kubernetes-engine/docs/how-to/cloud-storage-fuse-csi-driver-sidecar
pod_annotations() {
  [ -n "$BUCKET" ] || return 0
  printf 'metadata:\n  annotations:\n    gke-gcsfuse/volumes: "true"\n'
  printf '    gke-gcsfuse/%s-limit: "0"\n' cpu memory ephemeral-storage
}
volumes() {
  cat << YAML
- name: bucket
  csi:
    driver: gcsfuse.csi.storage.gke.io
    volumeAttributes:
      bucketName: $(yaml "${BUCKET#gs://}")
      mountOptions: "implicit-dirs,file-system:rename-dir-limit:0,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"
YAML
  # On the host's network the sidecar has no identity of the pod's by itself.
  [ "$HOST_NETWORK" = 0 ] || printf '      hostNetworkPodKSA: "true"\n'
}

pod() {
  printf 'restartPolicy: Never\nserviceAccountName: %s\n' "$(yaml "$SERVICE_ACCOUNT")"
  printf '# Time to save after SIGTERM.\nterminationGracePeriodSeconds: %d\n' "$GRACE"
  # cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice; names of pods are found with this policy only.
  [ "$HOST_NETWORK" = 0 ] || printf 'hostNetwork: true\ndnsPolicy: ClusterFirstWithHostNet\n'
  [ -z "${PRIORITY:-}" ] || printf 'priorityClassName: %s\n' "$(yaml "$PRIORITY")"
  [ -z "${IMAGE_PULL_SECRET:-}" ] || printf 'imagePullSecrets:\n  - {name: %s}\n' "$(yaml "$IMAGE_PULL_SECRET")"
  printf 'nodeSelector:\n%s\n' "$(node_selector | indented 2)"
  printf 'containers:\n  -\n%s\n' "$(container | indented 4)"
  [ -z "$BUCKET" ] || printf 'volumes:\n%s\n' "$(volumes | indented 2)"
}

manifest() {
  cat << YAML
# $SLICES x $TOPOLOGY: $((SLICES * chips)) chips, $((SLICES * hosts)) hosts
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
$(metadata | indented 2)
spec:
  failurePolicy:
$(failure_policy | indented 4)
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          podFailurePolicy:
$(pod_failure_policy | indented 12)
          template:
$(pod_annotations | indented 12)
            spec:
$(pod | indented 14)
YAML
}
