# shellcheck shell=bash disable=SC2153,SC2034
# Sourced by slice.sh: requests and hosts in the Cloud TPU API, as queued resources and TPU VMs. The API is in maintenance: it gets
# fixes, and no chips after v6e. compute_engine.sh has the same functions.
REQUEST_KIND="queued resource"

[[ ${ACCELERATOR_TYPE:-} != tpu7x* && ${ACCELERATOR_TYPE:-} != v7x* ]] ||
  die "ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; TPU7x and later are available through Compute Engine (--api compute-engine --topology tpu7x:2x2x1) or GKE (tpu_scripts/jobset.sh)"

tpu() { run gcloud compute tpus "$@" --project "$PROJECT" --zone "$ZONE"; }
alpha_tpu() { run gcloud alpha compute tpus "$@" --project "$PROJECT" --zone "$ZONE"; }

# States ------------------------------------------------------------------------------------------

state_of_request() { value state.state tpu queued-resources describe "$NAME"; }
node_state() { value state tpu tpu-vm describe "$1"; }
show_request() { tpu queued-resources describe "$NAME" >&2; }

# Requests ----------------------------------------------------------------------------------------

# The image that cloud.google.com/tpu/docs/runtimes names for a chip.
runtime_of() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) die "ACCELERATOR_TYPE is '$1'; known are v4-N v5litepod-N v5p-N v6e-N, as v5litepod-16" ;;
  esac
}

check_request() {
  local usual
  need ACCELERATOR_TYPE
  [[ $ACCELERATOR_TYPE =~ -[1-9][0-9]*$ ]] || die "ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; its size is missing, as in v5litepod-16"
  usual=$(runtime_of "$ACCELERATOR_TYPE")
  RUNTIME_VERSION=${RUNTIME_VERSION:-$usual}
  case $RUNTIME_VERSION in
    "$usual") ;;
    v2-alpha-tpuv*) die "RUNTIME_VERSION is '$RUNTIME_VERSION', made for another chip than $ACCELERATOR_TYPE; leave it out ($usual is taken)" ;;
  esac
  refuse TOPOLOGY "give --accelerator-type"
  refuse MACHINE_TYPE "the accelerator type says it"
  refuse IMAGE_FAMILY "give --runtime-version"
  refuse IMAGE_PROJECT "give --runtime-version"
  [ "$FLEX_START" = 1 ] || refuse MAX_RUN_DURATION "it goes with --flex-start"
  each_like BOOT_DISK "(confidential-compute|kms-key)=.+" "confidential-compute=true or kms-key=KEY; for more room add a --data-disk"
}
# Whether a request can end by itself before it has come.
can_expire() { true; }

create_request() {
  local words=(queued-resources create "$NAME") disk call=tpu model=""
  with --accelerator-type ACCELERATOR_TYPE --runtime-version RUNTIME_VERSION
  if [ "$SLICES" -gt 1 ]; then
    words+=(--node-count "$SLICES" --node-prefix "$NAME")
  else
    words+=(--node-id "$NAME")
  fi
  switch --spot SPOT
  switch --reserved RESERVED
  switch --internal-ips INTERNAL_IPS
  with --valid-until-duration VALID_UNTIL --network NETWORK --subnetwork SUBNETWORK --service-account SERVICE_ACCOUNT --scopes SCOPES
  with --labels LABELS --tags TAGS --metadata METADATA --metadata-from-file METADATA_FROM_FILE
  for disk in ${DATA_DISK:-}; do words+=(--data-disk "$disk"); done
  # The plain command has not all of these: cloud.google.com/sdk/gcloud/reference/alpha/compute/tpus/queued-resources/create
  [ "$FLEX_START" = 0 ] || model=flex-start
  with --reservation RESERVATION --provisioning-model model --max-run-duration MAX_RUN_DURATION --boot-disk BOOT_DISK
  [ -z "${RESERVATION:-}$model${BOOT_DISK:-}" ] || call=alpha_tpu
  "$call" "${words[@]}"
}
# delete_request [--quiet]: with its nodes, whatever their state.
delete_request() { tpu queued-resources delete "$NAME" --force "$@"; }

# Hosts -------------------------------------------------------------------------------------------

each_slice() { each_of slice "$(nodes)" "$@"; }

# Nodes are reached one by one, so that the one that fails is named. A tunnel and batches are not in tpu-vm ssh but in its alpha form, and
# in queued-resources ssh, which knows all nodes: cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/ssh
by=node vm=tpu
if [ "$IAP" = 1 ] || [ -n "$BATCH_SIZE" ]; then
  [ -z "$BATCH_SIZE" ] || ROUTE+=(--batch-size "$BATCH_SIZE")
  [ "$EXISTING" = 1 ] && vm=alpha_tpu || by=request
fi

# gcloud goes on without a node that it cannot prepare for ssh, and says so in words only.
every_node() {
  local errors status=0
  [ "$DRY_RUN" = 0 ] || { "$@" && return; }
  errors=$(mktemp)
  { "$@" 2>&1 >&4 4>&- | tee "$errors" >&2; } 4>&1 || status=$?
  if [ $status -eq 0 ] && grep -q 'Could not prepare all' "$errors"; then
    say "gcloud left out a node that it could not reach; its words are above"
    status=255
  fi
  rm -f "$errors"
  hint_at_keys $status
  return $status
}

# Runs a shell command on every host of every slice.
on_hosts() {
  local words=(--worker=all --command="$1" ${ROUTE[@]+"${ROUTE[@]}"})
  if [ $by = node ]; then
    each_slice $vm tpu-vm ssh @NODE@ "${words[@]}"
  else
    every_node tpu queued-resources ssh "$NAME" --node=all "${words[@]}"
  fi
}
copy_to_hosts() {
  local words=(--worker=all ${ROUTE[@]+"${ROUTE[@]}"})
  if [ $by = node ]; then
    each_slice $vm tpu-vm scp "$1" @NODE@: "${words[@]}"
  else
    every_node tpu queued-resources scp "$1" "$NAME:" --node=all "${words[@]}"
  fi
}

# The first host of the first slice.
first_node() { nodes | head -n 1; }
on_first_host() {
  local words=(--worker=0 --command="$1" ${ROUTE[@]+"${ROUTE[@]}"})
  if [ $by = node ]; then
    $vm tpu-vm ssh "$(first_node)" "${words[@]}"
  else
    tpu queued-resources ssh "$NAME" --node=0 "${words[@]}"
  fi
}
# copy_from_first_host FOLDER TO
copy_from_first_host() {
  local words=(--worker=0 ${ROUTE[@]+"${ROUTE[@]}"})
  if [ $by = node ]; then
    $vm tpu-vm scp "$(first_node):$1" "$2" --recurse "${words[@]}"
  else
    tpu queued-resources scp "$NAME:$1" "$2" --recurse --node=0 "${words[@]}"
  fi
}

# TPU VMs say themselves which process they are.
process_environment() { :; }
