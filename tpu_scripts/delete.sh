#!/usr/bin/env bash
# delete.sh: deletes the request and its hosts; what is on their disks is lost, the bucket is not touched.
#
#   tpu_scripts/delete.sh          gcloud asks first
#   YES=1  --yes                   it does not
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

parse "$SLICE_FLAGS yes!" "$@"
no_words
on_or_off YES
need_slice
[ "$EXISTING" = 0 ] || die "$NAME is a VM that these scripts did not make, and they do not delete it; leave --existing out to delete a request of this name"
words=()
switch --quiet YES
delete_request ${words[@]+"${words[@]}"} || die "$NAME could not be deleted; gcloud's words are above. It may still cost money: tpu_scripts/status.sh shows it" 1
