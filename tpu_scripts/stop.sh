#!/usr/bin/env bash
# stop.sh: asks the run on all hosts to save and end, and waits for it. The slice stays, and costs: delete.sh takes it away.
#
#   tpu_scripts/stop.sh
#
# It prints one line per host: 'stopped 143' has saved, 'done' was at its last step.
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

parse "$SLICE_FLAGS" "$@"
no_words
need_slice
on_hosts "llm_jax/source/tpu_scripts/supervise.sh stop" || die "the run was not stopped on every host; it may still be going: tpu_scripts/status.sh" 1
