"""A run on several processes is the run on one, whatever the mesh; it goes on with another number
of processes and devices.
"""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from jobs import checkpointed, make_shards, result
from multihost import ended, make_group, until, wait

from llm_jax.data.loading.loader import Loader
from llm_jax.data.shards.rows import Rows

pytestmark = pytest.mark.process

STEPS, BATCH = 8, 48
MORE = {"train.eval_every": 4, "data.batch_size": BATCH}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")
    return folder, make_shards(folder / "data"), folder / "cache"


@pytest.fixture(scope="module")
def alone(place):
    """The uninterrupted run of one process with two devices."""
    folder, shards, cache = place
    # Nothing divides by the hosts: an epoch ends within a batch, and so does the validation split.
    loader = Loader(shards, seq_length=128, batch_size=BATCH, seed=3, weights=(0.7, 0.3))
    assert loader.order.rows[0] % BATCH and loader.order.rows[0] < 0.7 * BATCH * STEPS
    assert all(len(Rows(path, "validation", 128)) % BATCH % 4 for path in shards)
    group = make_group(folder / "alone", shards, cache, 1, STEPS, devices=2, **MORE)
    group.finish()
    return result(group.job)


def same_run(found: dict, alone: dict) -> None:
    """The same batches exactly; losses to 1e-6, the order of sums apart."""
    assert [r["fingerprint"] for r in found["train"]] == [r["fingerprint"] for r in alone["train"]]
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose(
            [r[key] for r in found["train"]], [r[key] for r in alone["train"]], rtol=1e-6, atol=1e-6
        )
    assert [r["tokens"] for r in found["train"]] == [r["tokens"] for r in alone["train"]]
    assert [r["step"] for r in found["eval"]] == [4, 8]
    np.testing.assert_allclose(
        [r["loss"] for r in found["eval"]], [r["loss"] for r in alone["eval"]], rtol=1e-6
    )


# In the second every process feeds all rows; in the third pairs of processes feed the same half.
@pytest.mark.parametrize(
    ("processes", "mesh"),
    [
        pytest.param(2, {}, marks=pytest.mark.slow),
        (2, {"mesh.data": 1, "mesh.tensor": 2}),
        (4, {"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2}),
    ],
)
def test_processes_together_are_one(place, alone, processes, mesh):
    folder, shards, cache = place
    name = f"p{processes}" + "".join(k[5:] for k in mesh)
    group = make_group(folder / name, shards, cache, processes, STEPS, **MORE, **mesh)
    group.finish()
    same_run(result(group.job), alone)
    assert "run in" in group.said(0) and "training: done" in group.said(0)
    for index in range(1, processes):
        assert "training" not in group.said(index) and "run in" not in group.said(index)
    assert len(list((group.job.out / "tensorboard").iterdir())) == 1
    assert json.loads((group.job.out / "config.json").read_text())["name"] == "job"


def test_another_number_of_hosts_and_devices_goes_on_where_the_last_stopped(place, alone):
    folder, shards, cache = place
    plan = [(2, 1), (1, 2), (2, 2)]
    groups = [
        make_group(folder / "elastic", shards, cache, p, STEPS, devices=d, **MORE) for p, d in plan
    ]
    for group, victim in zip(groups[:2], (1, 0)):
        begun = checkpointed(group.job)
        with ended(group.start({victim: "slow 0.4"})) as started:
            until(lambda job=group.job, begun=begun: job.steps() > begun, started, group)
            started[victim].send_signal(signal.SIGTERM)
            assert wait(started) == [143] * group.processes, group.everything()
        assert begun < checkpointed(group.job) < STEPS
    groups[2].finish()
    same_run(result(groups[2].job), alone)
