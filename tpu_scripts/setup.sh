#!/usr/bin/env bash
# setup.sh: copies this checkout, as it is now, to all hosts of all slices, installs it there with [tpu,gcs] and mounts the bucket.
#
#   tpu_scripts/setup.sh --bucket gs://my-bucket
#
# Copied is what git would commit with `git add --all`: your edits and new files, nothing that is ignored.
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

parse "$SLICE_FLAGS bucket no-bucket! mount" "$@"
no_words
need_slice
need_bucket
root=$(dirname "$HERE")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pack() {
  # An index of its own: what is staged in yours stays as it is.
  export GIT_INDEX_FILE=$work/index
  run git -C "$root" add --all
  tree=$(run git -C "$root" write-tree)
  run git -C "$root" archive --format=tar.gz -o "$work/llm_jax.tar.gz" "${tree:-TREE}"
}

git -C "$root" rev-parse --git-dir > /dev/null 2>&1 || die "$root is no git checkout; clone the repository and start setup.sh there"
pack
script=llm_jax/source/tpu_scripts/supervise.sh
on_hosts "test ! -x $script || $script idle" ||
  die "not every host is reached and idle; nothing was changed" 1
copy_to_hosts "$work/llm_jax.tar.gz" || die "the checkout could not be copied to all hosts" 1
on_hosts "rm -rf llm_jax/source && mkdir -p llm_jax/source && tar xzf llm_jax.tar.gz -C llm_jax/source && llm_jax/source/tpu_scripts/install.sh" ||
  die "the package could not be installed on all hosts; run setup.sh again once that is mended" 1
if [ -n "$BUCKET" ]; then
  on_hosts "llm_jax/source/tpu_scripts/mount.sh $BUCKET $(quote "$MOUNT")" || die "$BUCKET could not be mounted on all hosts" 1
fi
[ "$DRY_RUN" = 1 ] || say "$NAME is set up with tree $tree"
