#!/usr/bin/env bash
# logs.sh: the end of the log of every host, each line with its host.
#
#   tpu_scripts/logs.sh --tail 20
#   tpu_scripts/logs.sh --follow   and what comes, until Ctrl-C
#
#   TAIL  --tail N                 lines per host (100)
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

parse "$SLICE_FLAGS tail follow!" "$@"
no_words
need_slice
TAIL=${TAIL:-100}
whole TAIL "a number of lines"
on_or_off FOLLOW
on_hosts "llm_jax/source/tpu_scripts/supervise.sh log $TAIL$([ "$FOLLOW" = 0 ] || printf ' -F')" ||
  die "the log of some host could not be read; where no run was launched there is none" 1
