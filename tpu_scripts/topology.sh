# shellcheck shell=bash disable=SC2034
# Sourced by jobset.sh and compute_engine.sh: what TOPOLOGY and MACHINE_TYPE mean.
#
# read_topology sets chip, shape, chips, per_host, hosts, accelerator (GKE's name of the chip) and machine.

read_topology() {
  local dimensions=3 series
  need TOPOLOGY
  chip=${TOPOLOGY%%:*} shape=${TOPOLOGY#*:}
  case $chip in
    v4) accelerator=tpu-v4-podslice series=ct4p-hightpu ;;
    v5e) accelerator=tpu-v5-lite-podslice series=ct5lp-hightpu dimensions=2 ;;
    v5p) accelerator=tpu-v5p-slice series=ct5p-hightpu ;;
    v6e) accelerator=tpu-v6e-slice series=ct6e-standard dimensions=2 ;;
    tpu7x) accelerator=tpu7x series=tpu7x-standard ;;
    *) die "TOPOLOGY is '$TOPOLOGY'; known chips are v4 v5e v5p v6e tpu7x, as in v5e:4x4" ;;
  esac
  [[ $shape =~ ^[1-9][0-9]*(x[1-9][0-9]*){$((dimensions - 1))}$ ]] || die "TOPOLOGY is '$TOPOLOGY'; a shape of $chip has $dimensions numbers, as in $([ $dimensions = 2 ] && echo 4x4 || echo 2x2x4)"
  chips=$((${shape//x/*}))
  # A machine holds four chips of a slice, or the only one; those of eight are a slice of their own (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus).
  machine=${MACHINE_TYPE:-$series-$((chips < 4 ? chips : 4))t}
  [[ $machine =~ ^$series-([148])t(-tpu)?$ ]] || die "$(machine_error "$series")"
  per_host=${BASH_REMATCH[1]}
  hosts=$((chips / per_host))
  [ $((hosts * per_host)) -eq $chips ] || die "TOPOLOGY is '$TOPOLOGY': $chips chips do not fill hosts of $per_host"
  [ "$per_host" != 8 ] || [ $hosts = 1 ] && [[ $per_host != 8 || $chip = v5e || $chip = v6e ]] ||
    die "MACHINE_TYPE is '$machine'; machines of eight chips are v5e:2x4 or v6e:2x4 by themselves, not $TOPOLOGY"
  [ "$per_host" != 1 ] || [ $hosts = 1 ] || die "MACHINE_TYPE is '$machine'; machines of one chip are no slice of several, as $TOPOLOGY is"
  # cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice
  [ "$SLICES" = 1 ] || [ $hosts -gt 1 ] || die "SLICES is $SLICES and $TOPOLOGY is one host; several slices work together only where each has several hosts, as in $chip:$([ $dimensions = 2 ] && echo 4x4 || echo 2x2x4)"
}
machine_error() {
  if [ -n "${MACHINE_TYPE:-}" ]; then
    printf '%s' "MACHINE_TYPE is '$MACHINE_TYPE'; $TOPOLOGY is on $1-4t$([[ $chip != v5e && $chip != v6e ]] || printf ', on %s-8t where it is 2x4' "$1")"
  else
    printf '%s' "TOPOLOGY is '$TOPOLOGY': no machine has $chips chips; a slice has 1, or a multiple of 4"
  fi
}
