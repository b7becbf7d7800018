#!/usr/bin/env bash
# status.sh: the state of the request, of its nodes, and of the run on every host.
#
#   tpu_scripts/status.sh
#
# A host says: running, waiting (to start again after an error), done, failed N and stopped N (its exit status), gone (it has
# started anew since), none (no run was launched). Exit status 0 where every node is ready and every host answers.
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

parse "$SLICE_FLAGS" "$@"
no_words
need_slice

# show WORDS… STATE: a line, where the state is known.
show() { [ "$DRY_RUN" = 1 ] || printf '%s\n' "$*"; }
ready=1
state=$(request_state) || die "the state of $NAME cannot be read; gcloud's words are above" 1
show "$REQUEST_KIND" "$NAME" "$state"
for node in $(nodes); do
  state=$(node_state "$node") || die "the state of node $node cannot be read; gcloud's words are above" 1
  show node "$node" "$state"
  [ "$state" = READY ] || ready=$DRY_RUN
done
[ "$ready" = 1 ] || die "not every node is ready; tpu_scripts/delete.sh and create.sh make them anew" 1
on_hosts "llm_jax/source/tpu_scripts/supervise.sh state" || die "not every host answers; tpu_scripts/setup.sh prepares them" 1
