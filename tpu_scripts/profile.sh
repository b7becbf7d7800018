#!/usr/bin/env bash
# profile.sh: fetches the folder 'profile' of a run, which all hosts write to the same bucket, to this machine.
#
#   tpu_scripts/profile.sh --out /mnt/bucket/runs/lm_1b --to profile/
#   tensorboard --logdir profile/
#
#   OUT  --out FOLDER  the run's train.out
#   TO   --to FOLDER   where to put it here (.)
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

parse "project zone name slices mount out to" "$@"
no_words
need_slice
need OUT
[[ $OUT = "$MOUNT"/* ]] || die "OUT is '$OUT'; give the run's train.out, a folder in $MOUNT"
TO=${TO:-.}
# The folder is shared, so that one host has it all; gcloud copies from one host only.
node=$(nodes | head -n 1)
tpu tpu-vm ssh "$node" --worker=0 --command="test -d $(quote "$OUT/profile")" ||
  die "there is no $OUT/profile on $node; was the run told to write a profile, and is this its train.out?" 1
run mkdir -p "$TO"
tpu tpu-vm scp "$node:$OUT/profile" "$TO" --recurse --worker=0 || die "$OUT/profile could not be copied" 1
