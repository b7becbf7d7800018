"""What a run does at a spike (``train.spike``): it goes on without the update, or goes back to a
checkpoint and leaves out batches.
"""

from __future__ import annotations

from llm_jax.checkpoints.checkpoint import Checkpoints
from llm_jax.progress import note
from llm_jax.training.metrics import MetricsWriter, SilentWriter
from llm_jax.training.spikes import Rewind, Spike, SpikeError, offset_of
from llm_jax.training.state import TrainState

# A run ends after this many updates skipped in a row, and after this many returns to the same
# checkpoint.
MAX_SKIPS = 10
MAX_RETURNS = 3


class SpikePolicy:
    """Records spikes, and ends a run whose spikes do not end.

    Args:
        rewinds: whether the run goes back to a checkpoint; otherwise it skips the update.
        checkpoints: of the run.
        writer: of its metrics.
    """

    def __init__(
        self, rewinds: bool, checkpoints: Checkpoints, writer: MetricsWriter | SilentWriter
    ) -> None:
        self._rewinds = rewinds
        self._checkpoints = checkpoints
        self._writer = writer
        # The step that the run last went back to, and how often in a row.
        self._returned_to = -1
        self._returns = 0

    def check(self, spike: Spike) -> None:
        """Records a spike whose update was skipped.

        Raises:
            Rewind: the run goes back instead.
            SpikeError: too many updates in a row were skipped.
        """
        if self._rewinds:
            raise Rewind(spike)
        self._writer.write("spike", spike.step, spike.record(spike.batch, "skipped"))
        note(f"{spike}; its update is skipped")
        if spike.in_a_row >= MAX_SKIPS:
            raise SpikeError(
                f"{spike}. {MAX_SKIPS} updates in a row were skipped; lower"
                " optimizer.learning_rate, raise train.spike.deviations, or look at the data; the"
                f" same command goes on from step {(self._checkpoints.steps() or [0])[-1]}"
            )

    def leave_out(self, state: TrainState, spike: Spike) -> TrainState:
        """``state``, set to leave out the batches from its own to the spike's.

        Args:
            state: of the checkpoint that the run goes back to.
            spike: the spike.

        Raises:
            SpikeError: the run went back to the same checkpoint too often.
        """
        step = int(state.step)
        self._count_return(step, spike)
        first = step + offset_of(state.opt_state)
        self._writer.go_back(step)
        # Recorded for the next step, so that a run that resumes from this checkpoint, and drops
        # later records, goes back once more.
        self._writer.write("spike", step + 1, spike.record(first, "rewound"))
        note(f"{spike}; going back to step {step}, batches {first} to {spike.batch} are left out")
        offset = state.opt_state.offset + (spike.batch + 1 - first)
        return state._replace(opt_state=state.opt_state._replace(offset=offset))

    def _count_return(self, step: int, spike: Spike) -> None:
        if step != self._returned_to:
            self._returns = 0
        self._returned_to = step
        self._returns += 1
        if self._returns > MAX_RETURNS:
            raise SpikeError(
                f"{spike}. Going back to step {step} has not helped {MAX_RETURNS} times; lower"
                " optimizer.learning_rate, raise train.spike.deviations, or delete the newest"
                f" checkpoints in {self._checkpoints.folder} to go back further"
            )
