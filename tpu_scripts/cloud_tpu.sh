# shellcheck shell=bash disable=SC2153,SC2034
# Sourced by slice.sh: requests and hosts in the Cloud TPU API, as queued resources and TPU VMs. Google gives this API fixes only;
# what comes after v6e is not in it. compute_engine.sh has the same functions.
REQUEST_KIND="queued resource"

[[ ${ACCELERATOR_TYPE:-} != tpu7x* && ${ACCELERATOR_TYPE:-} != v7x* ]] ||
  die "ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; TPU7x and later are had through Compute Engine (--api compute-engine --topology tpu7x:2x2x1) or GKE (tpu_scripts/jobset.sh)"

tpu() { run gcloud compute tpus "$@" --project "$PROJECT" --zone "$ZONE"; }
alpha_tpu() { run gcloud alpha compute tpus "$@" --project "$PROJECT" --zone "$ZONE"; }

# States ------------------------------------------------------------------------------------------

request_state() {
  [ "$EXISTING$DRY_RUN" != 10 ] || { echo ACTIVE && return; }
  [ "$EXISTING" = 0 ] || return 0
  value state.state tpu queued-resources describe "$NAME"
}
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

# What this API has no place for.
refuse() { [ -z "${!1:-}" ] || die "$1 is '${!1}'; queued resources have no place for it: $2"; }

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
  check_boot_disk
}
# Whether a request can end by itself before it has come.
can_expire() { true; }
check_boot_disk() {
  local part
  for part in ${BOOT_DISK//,/ }; do
    case $part in
      confidential-compute=* | kms-key=*) ;;
      *) die "BOOT_DISK has '$part'; queued resources take confidential-compute=true and kms-key=KEY, and the boot disk's size is fixed: add a --data-disk, or use --api compute-engine" ;;
    esac
  done
}

# create_request: the words of gcloud for it.
create_request() {
  local words=(queued-resources create "$NAME" --accelerator-type "$ACCELERATOR_TYPE" --runtime-version "$RUNTIME_VERSION") disk call=tpu
  if [ "$SLICES" -gt 1 ]; then
    words+=(--node-count "$SLICES" --node-prefix "$NAME")
  else
    words+=(--node-id "$NAME")
  fi
  [ "$SPOT" = 0 ] || words+=(--spot)
  [ "$RESERVED" = 0 ] || words+=(--reserved)
  [ -z "$VALID_UNTIL" ] || words+=(--valid-until-duration "$VALID_UNTIL")
  [ -z "${NETWORK:-}" ] || words+=(--network "$NETWORK")
  [ -z "${SUBNETWORK:-}" ] || words+=(--subnetwork "$SUBNETWORK")
  [ "$INTERNAL_IPS" = 0 ] || words+=(--internal-ips)
  [ -z "${SERVICE_ACCOUNT:-}" ] || words+=(--service-account "$SERVICE_ACCOUNT")
  [ -z "${SCOPES:-}" ] || words+=(--scopes "$SCOPES")
  [ -z "${LABELS:-}" ] || words+=(--labels "$LABELS")
  [ -z "${TAGS:-}" ] || words+=(--tags "$TAGS")
  [ -z "${METADATA:-}" ] || words+=(--metadata "$METADATA")
  [ -z "${METADATA_FROM_FILE:-}" ] || words+=(--metadata-from-file "$METADATA_FROM_FILE")
  for disk in ${DATA_DISK:-}; do words+=(--data-disk "$disk"); done
  # These three are in the alpha commands only: cloud.google.com/sdk/gcloud/reference/alpha/compute/tpus/queued-resources/create
  [ -z "${RESERVATION:-}" ] || { call=alpha_tpu && words+=(--reservation "$RESERVATION"); }
  [ "$FLEX_START" = 0 ] || { call=alpha_tpu && words+=(--provisioning-model flex-start --max-run-duration "$MAX_RUN_DURATION"); }
  [ -z "${BOOT_DISK:-}" ] || { call=alpha_tpu && words+=(--boot-disk "$BOOT_DISK"); }
  "$call" "${words[@]}"
}
# delete_request [--quiet]: with its nodes, whatever their state.
delete_request() { tpu queued-resources delete "$NAME" --force "$@"; }

# Hosts -------------------------------------------------------------------------------------------

each_slice() { each_of slice "$(nodes)" "$@"; }

ROUTE=()
[ "$IAP" = 0 ] || ROUTE=(--tunnel-through-iap)
[ "$IAP$INTERNAL_IPS" != 01 ] || ROUTE=(--internal-ip)
# Where a host is said to be: on_hosts and the like go by node, but tpu-vm ssh has a tunnel and batches in its alpha form only, and
# queued-resources ssh has both: cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/ssh
reach=by_node
[ "$IAP" = 0 ] && [ -z "$BATCH_SIZE" ] || reach=by_request
[ "$EXISTING" = 0 ] || [ $reach = by_node ] || reach=by_alpha
[ $reach = by_node ] || [ -z "$BATCH_SIZE" ] || ROUTE+=(--batch-size "$BATCH_SIZE")

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
  case $reach in
    by_node) each_slice tpu tpu-vm ssh @NODE@ --worker=all --command="$1" ${ROUTE[@]+"${ROUTE[@]}"} ;;
    by_alpha) each_slice alpha_tpu tpu-vm ssh @NODE@ --worker=all --command="$1" "${ROUTE[@]}" ;;
    by_request) every_node tpu queued-resources ssh "$NAME" --node=all --worker=all --command="$1" "${ROUTE[@]}" ;;
  esac
}
copy_to_hosts() {
  case $reach in
    by_node) each_slice tpu tpu-vm scp "$1" @NODE@: --worker=all ${ROUTE[@]+"${ROUTE[@]}"} ;;
    by_alpha) each_slice alpha_tpu tpu-vm scp "$1" @NODE@: --worker=all "${ROUTE[@]}" ;;
    by_request) every_node tpu queued-resources scp "$1" "$NAME:" --node=all --worker=all "${ROUTE[@]}" ;;
  esac
}

# The first host of the first slice.
first_node() { nodes | head -n 1; }
on_first_host() {
  case $reach in
    by_node) tpu tpu-vm ssh "$(first_node)" --worker=0 --command="$1" ${ROUTE[@]+"${ROUTE[@]}"} ;;
    by_alpha) alpha_tpu tpu-vm ssh "$(first_node)" --worker=0 --command="$1" "${ROUTE[@]}" ;;
    by_request) tpu queued-resources ssh "$NAME" --node=0 --worker=0 --command="$1" "${ROUTE[@]}" ;;
  esac
}
# copy_from_first_host FOLDER TO
copy_from_first_host() {
  case $reach in
    by_node) tpu tpu-vm scp "$(first_node):$1" "$2" --recurse --worker=0 ${ROUTE[@]+"${ROUTE[@]}"} ;;
    by_alpha) alpha_tpu tpu-vm scp "$(first_node):$1" "$2" --recurse --worker=0 "${ROUTE[@]}" ;;
    by_request) tpu queued-resources scp "$NAME:$1" "$2" --recurse --node=0 --worker=0 "${ROUTE[@]}" ;;
  esac
}

# TPU VMs say themselves which process they are.
process_environment() { :; }
