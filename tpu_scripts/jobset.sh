#!/usr/bin/env bash
# jobset.sh: the same run on GKE, as a JobSet with one job per slice and one pod per host; DRY_RUN=1 prints the manifest.
#
#   DRY_RUN=1 tpu_scripts/jobset.sh --name lm1b --topology v5e:4x4 --slices 2 --image IMAGE --bucket gs://my-bucket \
#     configs/lm_1b.py --data.path=/mnt/bucket/shards --train.out=/mnt/bucket/runs/lm_1b > jobset.yaml
#
# A pod that fails starts the whole set again, which goes on from the bucket, up to MAX_RESTARTS times; exit status 2 (a bad setting)
# ends it. The cluster needs JobSet (0.6 or newer) and the Cloud Storage FUSE driver, its node pools the slices.
#
#   TOPOLOGY         --topology T          chip and shape as in `llm-jax plan`: v4:2x2x2 v5e:4x4 v5p:2x2x4 v6e:4x4 tpu7x:2x2x4
#   IMAGE            --image I             has llm-jax on its PATH and configs/ in its working folder, as after
#                                          FROM python:3.12 / COPY . /llm_jax / RUN pip install '/llm_jax[tpu]' / WORKDIR /llm_jax
#   SERVICE_ACCOUNT  --service-account S   of Kubernetes, allowed to read and write the bucket (default)
#   MAX_RESTARTS     --max-restarts N      (50)
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

parse "name slices topology image bucket mount spot! service-account max-restarts" "$@"
need NAME TOPOLOGY IMAGE BUCKET
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default} MAX_RESTARTS=${MAX_RESTARTS:-50}
[[ $MAX_RESTARTS =~ ^[0-9]+$ ]] || die "MAX_RESTARTS is '$MAX_RESTARTS'; give a whole number"
check_words ${WORDS[@]+"${WORDS[@]}"}

chip=${TOPOLOGY%%:*} shape=${TOPOLOGY#*:} dimensions=3
case $chip in
  v4) accelerator=tpu-v4-podslice ;;
  v5e) accelerator=tpu-v5-lite-podslice dimensions=2 ;;
  v5p) accelerator=tpu-v5p-slice ;;
  v6e) accelerator=tpu-v6e-slice dimensions=2 ;;
  tpu7x) accelerator=tpu7x ;;
  *) die "TOPOLOGY is '$TOPOLOGY'; known chips are v4 v5e v5p v6e tpu7x, as in v5e:4x4" ;;
esac
[[ $shape =~ ^[1-9][0-9]*(x[1-9][0-9]*){$((dimensions - 1))}$ ]] || die "TOPOLOGY is '$TOPOLOGY'; a shape of $chip has $dimensions numbers, as in $([ $dimensions = 2 ] && echo 4x4 || echo 2x2x4)"
chips=$((${shape//x/*}))
# Machines of GKE hold four chips of a slice (ct5lp-hightpu-4t and its kind), fewer where the slice has fewer.
per_host=$((chips < 4 ? chips : 4))
hosts=$((chips / per_host))
[ $((hosts * per_host)) -eq $chips ] || die "TOPOLOGY is '$TOPOLOGY': $chips chips do not fill hosts of $per_host"

# A word as a YAML string.
yaml() {
  local word=${1//\\/\\\\}
  printf '"%s"' "${word//\"/\\\"}"
}
arguments() {
  local word
  for word in train "${WORDS[@]}"; do printf '                - %s\n' "$(yaml "$word")"; done
}

manifest() {
  cat << YAML
# $SLICES x $TOPOLOGY: $((SLICES * chips)) chips, $((SLICES * hosts)) hosts
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(yaml "$NAME")
  annotations:
    # One slice, a node pool, per job.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    rules:
      - name: bad-setting
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2]
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
            spec:
              restartPolicy: Never
              serviceAccountName: $(yaml "$SERVICE_ACCOUNT")
              # Time to save after SIGTERM.
              terminationGracePeriodSeconds: 600
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $shape
$([ "$SPOT" = 0 ] || printf '                cloud.google.com/gke-spot: "true"\n')
              containers:
                - name: train
                  image: $(yaml "$IMAGE")
                  command: [llm-jax]
                  args:
$(arguments | sed 's/^/    /')
                  resources:
                    requests: {google.com/tpu: $per_host}
                    limits: {google.com/tpu: $per_host}
                  volumeMounts:
                    - {name: bucket, mountPath: $(yaml "$MOUNT")}
              volumes:
                - name: bucket
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes: {bucketName: $(yaml "${BUCKET#gs://}"), mountOptions: implicit-dirs}
YAML
}

if [ "$DRY_RUN" = 1 ]; then
  manifest
else
  command -v kubectl > /dev/null || die "kubectl is not on the PATH; install it, or write the manifest to a file with DRY_RUN=1"
  manifest | kubectl apply -f - || die "kubectl did not take the manifest; its words are above, DRY_RUN=1 prints it" 1
fi
