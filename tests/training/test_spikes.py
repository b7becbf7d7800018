"""Spikes: what is one, an update that is left out to the last bit, a run that goes back, and both
through an interruption.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jobs import Job, make_shards, result, settings
from programs import on_one_device
from test_loop import loop_of, start

from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.data.loading.loader import Loader
from llm_jax.training.run import train
from llm_jax.training.spikes import SpikeError, SpikeState, limit, needed, skip_spikes
from llm_jax.types import DataError

# The rule -----------------------------------------------------------------------------------------


def test_the_limit_is_the_mean_and_so_many_deviations():
    assert float(limit(jnp.array([1.0, 2.0, 3.0, 4.0]), 6.0)) == pytest.approx(
        2.5 + 6 * math.sqrt(5 / 3)
    )


def test_too_short_a_history_has_no_limit():
    assert [needed(n) for n in (4, 20, 30, 128)] == [4, 20, 20, 64]
    assert float(limit(jnp.array([math.nan, 2.0, 3.0, 4.0]), 6.0)) == np.finfo(np.float32).max
    assert float(limit(jnp.full(128, 1.0).at[:65].set(math.nan), 6.0)) == np.finfo(np.float32).max
    assert float(limit(jnp.full(128, 1.0).at[:64].set(math.nan), 6.0)) == 1.0


GOOD = [1.0, 2.0, 1.5, 1.0]


@pytest.mark.parametrize(
    ("loss", "norm", "spike"),
    [
        (1.0, 1.0, False),
        (-50.0, 0.0, False),
        (50.0, 1.0, True),
        (1.0, 50.0, True),
        (math.nan, 1.0, True),
        (1.0, math.inf, True),
    ],
)
def test_a_spike_changes_no_bit_of_parameters_and_moments(loss, norm, spike):
    rule = skip_spikes(optax.adamw(optax.linear_schedule(1.0, 0.0, 10), weight_decay=0.1), 4, 6.0)
    params = {"w": jnp.array([-0.0, 1.0, -2.0])}
    state, direction = rule.init(params), jnp.array([0.0, 0.6, 0.8])
    for value in GOOD:
        updates, state = rule.update(
            {"w": value * direction},
            state,
            params,
            loss=jnp.float32(value),
            grad_norm=jnp.float32(value),
        )
        assert np.any(np.asarray(updates["w"])) and int(state.skipped) == 0
    updates, after = rule.update(
        {"w": norm * direction}, state, params, loss=jnp.float32(loss), grad_norm=jnp.float32(norm)
    )
    moved = (
        np.asarray(optax.apply_updates(params, updates)["w"]).tobytes()
        != np.asarray(params["w"]).tobytes()
    )
    adam, before = after.rule[0], state.rule[0]
    held = np.array_equal(adam.mu["w"], before.mu["w"]) and np.array_equal(
        adam.nu["w"], before.nu["w"]
    )
    assert (moved, held, int(after.skipped)) == ((False, True, 1) if spike else (True, False, 0))
    assert (
        int(adam.count) == 5 and int(after.rule[2].count) == 5
    )  # the schedule stays that of the data
    assert np.all(np.isfinite(after.losses)) and np.all(np.isfinite(after.norms))
    assert after.losses[-1] == (loss if math.isfinite(loss) else GOOD[-1])


# Runs ---------------------------------------------------------------------------------------------

STEPS, BAD = 12, 7
"""Batch BAD, of step BAD + 1, is noise; checkpoints are of steps 3, 6, 9 and 12."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("spikes"))


@pytest.fixture
def run(shards, kept_programs, tmp_path, monkeypatch):
    """run(name, spike, broken) -> Job, started once more for each batch of ``broken``, which cannot
    be read the first time.
    """
    original, iterate = Loader.batch, Loader.iterate

    def go(name: str, spike: str, broken: tuple[int, ...] = (), batch_of=lambda step: step) -> Job:
        left = list(broken)

        def items(self, first):
            for item in iterate(self, first):
                if left and item[0] == left[0]:
                    raise DataError(f"batch {left.pop(0)} is broken")
                yield item

        def batch(self, step):
            found = original(self, batch_of(step))
            if batch_of(step) != BAD:
                return found
            noise = (
                np.random.default_rng(0).integers(4, 300, found.inputs.ids.shape).astype(np.int32)
            )
            return found._replace(
                inputs=found.inputs._replace(ids=noise), targets=np.roll(noise, -1, axis=1)
            )

        monkeypatch.setattr(Loader, "batch", batch)
        monkeypatch.setattr(Loader, "iterate", items)
        more = {
            "model.num_layers": 1,
            "optimizer.warmup_steps": 1,
            "train.accumulation": 1,
            "train.eval_every": 0,
            "train.keep": 9,
            "train.spike": spike,
            "train.spike.window": 4,
            "train.spike.deviations": 3.0,
        }
        config = override(Config(), settings(shards, tmp_path / name, STEPS) | more, "test")
        for number in broken:
            with pytest.raises(DataError, match=f"batch {number} is broken"):
                train(config)
        return Job(tmp_path, train(config), tmp_path)

    return go


@pytest.mark.mesh
@pytest.mark.slow
def test_a_skipped_spike_is_named_and_the_data_goes_on(run, capsys):
    whole = run("whole", "skip")
    said = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    lines = whole.records()
    assert [r["step"] for r in lines] == list(range(1, STEPS + 1)) and len(
        {r["fingerprint"] for r in lines}
    ) == STEPS
    (record,) = whole.records("spike")
    assert (record["step"], record["spike_step"], record["action"], record["batches"]) == (
        BAD + 1,
        BAD + 1,
        "skipped",
        [BAD, BAD],
    )
    assert (
        record["fingerprint"] == lines[BAD]["fingerprint"]
        and record["loss"] == lines[BAD]["loss"] > record["loss_limit"]
    )
    before = [r["loss"] for r in lines[BAD - 4 : BAD]]
    assert record["loss_limit"] == pytest.approx(
        np.mean(before) + 3 * np.std(before, ddof=1), rel=1e-5
    )
    assert len(said) == 1 and said[0].startswith(
        f"step {BAD + 1} is a spike: loss {record['loss']:.4g} (at most "
    )
    assert f"batch {BAD}, fingerprint {record['fingerprint']}; its update is skipped" in said[0]
    norms = [r["param_norm"] for r in lines]
    assert norms[BAD] == norms[BAD - 1] != norms[BAD + 1]
    again = run("again", "skip", broken=(10,))
    assert again.records("spike") == whole.records("spike") and result(again) == result(whole)


def test_going_back_leaves_the_batches_out_as_if_they_had_never_been(run, monkeypatch, capsys):
    on_one_device(monkeypatch)
    whole = run("whole", "rewind")
    said = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    assert len(said) == 1 and said[0].endswith(
        "; going back to step 6, batches 6 to 7 are left out"
    )
    (record,) = whole.records("spike")
    assert (record["step"], record["spike_step"], record["action"], record["batches"]) == (
        7,
        8,
        "rewound",
        [6, 7],
    )
    # Interrupted before it has seen the spike, after going back, and after the next checkpoint.
    again = run("again", "rewind", broken=(8, 9, 11))
    assert again.records("spike") == whole.records("spike") and result(again) == result(whole)
    without = run("without", "rewind", batch_of=lambda step: step if step < 6 else step + 2)
    exact = ("step", "loss", "grad_norm", "param_norm", "learning_rate", "tokens")
    numbers = [[[r[k] for k in exact] for r in job.records()] for job in (whole, without)]
    assert len(numbers[0]) == STEPS and numbers[0] == numbers[1] and not without.records("spike")


# The loop alone -----------------------------------------------------------------------------------


def spiking(tmp_path, spike: str, bad: set[int]):
    """A loop whose steps on the batches ``bad`` are spikes; its state, and where it is told to go
    back to.
    """
    loop, zero, empty = (
        loop_of(tmp_path, **{"train.spike": spike, "train.steps": 30}),
        jnp.int32(0),
        jnp.zeros(4),
    )
    first = start()._replace(opt_state=SpikeState(empty, empty, zero, zero, ()))

    def step(state, batch):
        hit = int(state.step) + int(state.opt_state.offset) in bad
        after = state.opt_state._replace(skipped=state.opt_state.skipped + 1 if hit else zero)
        numbers = {"loss": math.nan if hit else 1.0, "grad_norm": 1.0, "tokens": 8.0, "bad_row": -1}
        said = {"skipped": after.skipped, "loss_limit": 2.0, "grad_norm_limit": 2.0}
        return state._replace(step=state.step + 1, opt_state=after), {
            k: jnp.asarray(v) for k, v in {**numbers, **said}.items()
        }

    loop.step, loop.newest = (
        step,
        lambda: first._replace(step=jnp.int32((loop.checkpoints or [0])[-1])),
    )
    loop.checkpoints.folder = tmp_path
    return loop, first


def test_a_loss_that_is_no_number_is_a_spike_under_a_policy(tmp_path):
    loop, first = spiking(tmp_path, "skip", {4})
    assert int(loop.run(first).step) == 30
    assert 5 not in [r["step"] for r in Job(tmp_path, tmp_path, tmp_path).records()]
    (record,) = Job(tmp_path, tmp_path, tmp_path).records("spike")
    assert (record["step"], record["loss"], record["batches"]) == (5, "nan", [4, 4])


def test_spikes_that_do_not_end_end_the_run(tmp_path):
    loop, first = spiking(tmp_path, "skip", set(range(5, 100)))
    with pytest.raises(
        SpikeError,
        match=(
            r"step 15 is a spike: .* 10 updates in a row were skipped; lower .* goes on from"
            r" step 14"
        ),
    ):
        loop.run(first)
    (tmp_path / "back").mkdir()
    loop, first = spiking(tmp_path / "back", "rewind", set(range(5, 100)))
    with pytest.raises(
        SpikeError,
        match=r"step 5 is a spike: .* batch 8, .* Going back to step 4 has not helped 3 times",
    ):
        loop.run(first)
    assert loop.checkpoints == [2, 4]
