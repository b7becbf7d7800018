#!/usr/bin/env bash
# delete.sh: deletes the queued resource and its nodes; what is on their disks is lost, the bucket is not touched.
#
#   tpu_scripts/delete.sh          gcloud asks first
#   YES=1  --yes                   it does not
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

parse "project zone name slices yes!" "$@"
no_words
need_slice
# --force: with its nodes, whatever their state.
words=(queued-resources delete "$NAME" --force)
[ "${YES:-0}" != 1 ] || words+=(--quiet)
tpu "${words[@]}" || die "$NAME could not be deleted; gcloud's words are above. It may still cost money: tpu_scripts/status.sh shows it" 1
