# shellcheck shell=bash disable=SC2153,SC2034,SC2154
# Sourced by slice.sh: slices as Compute Engine makes them, for v5p, v6e, and TPU7x and later. A slice of one host is an instance; one
# of several is a managed instance group, made all at once, with an instance template and a workload policy that names its topology:
# docs.cloud.google.com/compute/docs/tpus/create-tpu-mig-multi-host-slice. cloud_tpu.sh has the same functions.
# shellcheck source-path=SCRIPTDIR source=topology.sh
source "$HERE/topology.sh"

hosts=1
[ "$EXISTING" = 1 ] || read_topology
REQUEST_KIND=instance
[ $hosts = 1 ] || REQUEST_KIND="instance group"
region=${ZONE%-*}

zonal() { run gcloud compute "$@" --project "$PROJECT" --zone "$ZONE"; }
regional() { run gcloud compute "$@" --project "$PROJECT" --region "$region"; }

# States ------------------------------------------------------------------------------------------

# READY | CREATING | what else an instance is.
as_node() {
  case $1 in
    RUNNING) echo READY ;;
    "" | PENDING | PROVISIONING | STAGING | REPAIRING) echo CREATING ;;
    *) echo "$1" ;;
  esac
}
instances() { zonal instance-groups managed list-instances "$1" --format="value($2)"; }
node_state() {
  local said state count=0
  if [ $hosts = 1 ]; then
    said=$(value status zonal instances describe "$1") || return
    [ "$DRY_RUN" = 1 ] || as_node "$said"
    return
  fi
  said=$(instances "$1" instanceStatus) || return
  [ "$DRY_RUN" = 0 ] || return 0
  for state in $said; do
    state=$(as_node "$state")
    case $state in
      READY) count=$((count + 1)) ;;
      CREATING) ;;
      *) echo "$state" && return ;;
    esac
  done
  [ $count -lt $hosts ] && echo CREATING || echo READY
}
# ACTIVE where every instance or group is there: they have no queue of their own.
state_of_request() {
  local node state kind=(instances)
  [ $hosts = 1 ] || kind=(instance-groups managed)
  for node in $(nodes); do
    state=$(value name zonal "${kind[@]}" describe "$node") || return
    [ "$state" != NOT_FOUND ] || { echo NOT_FOUND && return; }
  done
  [ "$DRY_RUN" = 1 ] || echo ACTIVE
}
show_request() {
  local node
  for node in $(nodes); do
    if [ $hosts = 1 ]; then zonal instances describe "$node" >&2; else zonal instance-groups managed list-errors "$node" >&2; fi
  done
}

# Requests ----------------------------------------------------------------------------------------

check_request() {
  case $chip in
    v5p | v6e) IMAGE_FAMILY=${IMAGE_FAMILY:-ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e} ;;
    tpu7x) IMAGE_FAMILY=${IMAGE_FAMILY:-ubuntu-accel-2404-amd64-tpu-tpu7x} ;;
    *) die "TOPOLOGY is '$TOPOLOGY'; Compute Engine makes slices of v5p v6e tpu7x: take --api queued-resources for $chip" ;;
  esac
  IMAGE_PROJECT=${IMAGE_PROJECT:-ubuntu-os-accelerator-images}
  refuse ACCELERATOR_TYPE "give --topology"
  refuse RUNTIME_VERSION "give --image-family"
  [ "$RESERVED" = 0 ] || [ -n "${RESERVATION:-}" ] || die "RESERVED is set; Compute Engine takes a reservation by its name: give --reservation R"
  [ -z "$VALID_UNTIL" ] || can_expire || die "VALID_UNTIL is '$VALID_UNTIL'; on Compute Engine only a --flex-start instance has it: give --timeout, after which all is deleted"
  each_like BOOT_DISK "(size|type|kms-key)=.+" "size=200GB, type=TYPE or kms-key=KEY"
}
# Whether a request can end by itself before it has come.
can_expire() { [ $hosts = 1 ] && [ "$FLEX_START" = 1 ]; }

# Adds to words what instances and templates have in common.
host_words() {
  local part disk mode subnet=${SUBNETWORK:-}
  words+=(--machine-type "$machine" --image-family "$IMAGE_FAMILY" --image-project "$IMAGE_PROJECT")
  # TPU hosts cannot move while they run.
  words+=(--maintenance-policy TERMINATE --scopes "${SCOPES:-cloud-platform}")
  if [ "$SPOT" = 1 ]; then words+=(--provisioning-model SPOT --instance-termination-action STOP); fi
  if [ "$FLEX_START" = 1 ]; then words+=(--provisioning-model FLEX_START); fi
  [ -z "${RESERVATION:-}" ] || words+=(--provisioning-model RESERVATION_BOUND --reservation-affinity specific)
  with --reservation RESERVATION --max-run-duration MAX_RUN_DURATION
  [ -z "${MAX_RUN_DURATION:-}" ] || [ "$SPOT" = 1 ] || words+=(--instance-termination-action DELETE)
  # A template finds its subnetwork by the whole name only.
  [ -z "$subnet" ] || [[ $subnet = */* ]] || subnet=projects/$PROJECT/regions/$region/subnetworks/$subnet
  with --network NETWORK --subnet subnet
  switch --no-address INTERNAL_IPS
  with --service-account SERVICE_ACCOUNT --labels LABELS --tags TAGS --metadata METADATA --metadata-from-file METADATA_FROM_FILE
  for part in ${BOOT_DISK//,/ }; do words+=("--boot-disk-${part%%=*}" "${part#*=}"); done
  for disk in ${DATA_DISK:-}; do
    mode=ro
    [[ $disk = *mode=read-only* ]] || mode=rw
    disk=${disk#*source=} && disk=${disk%%,*}
    words+=(--disk "name=${disk##*/},mode=$mode")
  done
}

create_request() {
  local words=() node
  host_words
  if [ $hosts = 1 ]; then
    with --request-valid-for-duration VALID_UNTIL
    zonal instances create "$NAME" "${words[@]}"
    return
  fi
  regional resource-policies create workload-policy "$NAME" --type HIGH_THROUGHPUT --accelerator-topology "$shape" || return
  half_made=1
  run gcloud compute instance-templates create "$NAME" --project "$PROJECT" --instance-template-region "$region" "${words[@]}" || return
  for node in $(nodes); do
    # Whole names: a workload policy is not found by a short one.
    zonal instance-groups managed create "$node" --size $hosts --target-size-policy-mode bulk --default-action-on-vm-failure do-nothing \
      --template "projects/$PROJECT/regions/$region/instanceTemplates/$NAME" \
      --workload-policy "projects/$PROJECT/regions/$region/resourcePolicies/$NAME" || return
  done
}

# What is gone already is no error.
gone() {
  local errors status=0
  [ "$DRY_RUN" = 0 ] || { "$@" && return; }
  errors=$(mktemp)
  "$@" 2> "$errors" || status=$?
  cat "$errors" >&2
  ! grep -q 'NOT_FOUND\|was not found' "$errors" || status=0
  rm -f "$errors"
  return $status
}
# delete_request [--quiet]: groups with their instances, then what they were made of.
delete_request() {
  local node failed=0
  if [ $hosts = 1 ]; then
    gone zonal instances delete "$NAME" "$@"
    return
  fi
  for node in $(nodes); do gone zonal instance-groups managed delete "$node" "$@" || failed=1; done
  [ $failed = 0 ] && gone regional instance-templates delete "$NAME" "$@" && gone regional resource-policies delete "$NAME" "$@"
}

# Hosts -------------------------------------------------------------------------------------------

# The instances of all slices, in one order.
every_host() {
  local node
  [ $hosts -gt 1 ] || { nodes && return; }
  for node in $(nodes); do
    instances "$node" 'instance.basename()' | sort
    [ "$DRY_RUN" = 0 ] || printf '%s-HOST\n' "$node"
  done
}
all_hosts() {
  local all count
  all=$(every_host) || return
  count=$(wc -l <<< "$all")
  [ "$DRY_RUN" = 1 ] || [ "$count" -eq $((SLICES * hosts)) ] || die "$NAME has $count hosts and not $((SLICES * hosts)); tpu_scripts/status.sh shows them" 1
  printf '%s\n' "$all"
}
on_hosts() {
  local all
  all=$(all_hosts) || return
  each_of host "$all" on_host @NODE@ @INDEX@ "${1//@COORDINATOR@/${all%%$'\n'*}}"
}
# on_host HOST INDEX COMMAND
on_host() {
  local command=${3//@PROCESS@/$2}
  zonal ssh "$1" --command="${command//@SLICE@/$(($2 / hosts))}" ${ROUTE[@]+"${ROUTE[@]}"}
}
copy_to_hosts() {
  local all
  all=$(all_hosts) || return
  each_of host "$all" zonal scp "$1" @NODE@: ${ROUTE[@]+"${ROUTE[@]}"}
}
first_host() { every_host | head -n 1; }
on_first_host() { zonal ssh "$(first_host)" --command="$1" ${ROUTE[@]+"${ROUTE[@]}"}; }
copy_from_first_host() { zonal scp "$(first_host):$1" "$2" --recurse ${ROUTE[@]+"${ROUTE[@]}"}; }

# The place of a host among all, for a command of on_hosts.
process_environment() {
  [ $hosts -gt 1 ] || return 0
  printf 'env JAX_COORDINATOR_ADDRESS=@COORDINATOR@:8476 JAX_NUM_PROCESSES=%d JAX_PROCESS_ID=@PROCESS@ ' $((SLICES * hosts))
  [ "$SLICES" = 1 ] || printf 'MEGASCALE_COORDINATOR_ADDRESS=@COORDINATOR@:8080 MEGASCALE_NUM_SLICES=%d MEGASCALE_SLICE_ID=@SLICE@ ' "$SLICES"
}
