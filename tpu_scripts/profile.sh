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

parse "$SLICE_FLAGS mount out to" "$@"
no_words
need_slice
need OUT
TO=${TO:-.}
[[ $OUT = "$MOUNT"/* || $OUT = gs://*/* ]] || die "OUT is '$OUT'; give the run's train.out, a folder in $MOUNT or gs://BUCKET/…"
# A shared folder: one host has it all, and gcloud copies from one host only.
copy_from_host() {
  on_first_host "test -d $(quote "$OUT/profile")" ||
    die "there is no $OUT/profile on the first host; was the run told to write a profile, and is this its train.out?" 1
  run mkdir -p "$TO"
  copy_from_first_host "$OUT/profile" "$TO" || die "$OUT/profile could not be copied" 1
}
copy_from_bucket() {
  run mkdir -p "$TO"
  run gcloud storage cp --recursive "$OUT/profile" "$TO" --project "$PROJECT" ||
    die "$OUT/profile could not be copied; was the run told to write a profile, and is this its train.out?" 1
}
if [[ $OUT = gs://* ]]; then copy_from_bucket; else copy_from_host; fi
