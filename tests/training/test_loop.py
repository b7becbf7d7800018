"""The loop: where the time went, what is written, NaN, signals, errors of the data; and the
arithmetic of MFU.
"""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jobs import EXACT, make_shards, settings

from llm_jax.checkpoints.checkpoint import CheckpointError
from llm_jax.config import Config, ExecutionConfig, MeshConfig, ModelConfig
from llm_jax.config.overrides import override
from llm_jax.config.saved import load_config
from llm_jax.goodput import CATEGORIES, Goodput
from llm_jax.models import build
from llm_jax.multihost.global_batch import Feed
from llm_jax.multihost.signals import Stopped
from llm_jax.objectives.token_loss import token_loss
from llm_jax.sharding import make_mesh
from llm_jax.training import evaluate as evaluate_module
from llm_jax.training import loop as loop_module
from llm_jax.training.build import build as build_parts
from llm_jax.training.flops import Peak, idle_parameters, matmul_parameters, train_flops
from llm_jax.training.loop import Loop, NonFiniteError
from llm_jax.training.metrics import MetricsWriter, read_metrics
from llm_jax.training.profile import Profile
from llm_jax.training.run import train
from llm_jax.types import Batch, ConfigError, DataError, Tokens


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("loop"))


def config(shards, out, steps=4, **more) -> Config:
    values = {**settings(shards, out, steps), "optimizer.warmup_steps": 1, "train.accumulation": 1}
    values |= {"train.eval_every": 2, "train.checkpoint_every": 2, **more}
    return override(Config(), values, "test")


@pytest.fixture(scope="module")
def finished(shards, kept_programs, tmp_path_factory):
    """A run of 6 steps, stopped by a signal to itself in the evaluation of step 2 and gone on with,
    steps 4 and 5 profiled.
    """
    out = tmp_path_factory.mktemp("finished") / "run"
    original, seen = evaluate_module.make_evaluate, []

    def signalling(*parts):
        evaluate = original(*parts)

        def evaluate_and_signal(params):
            if not seen:
                seen.append(os.kill(os.getpid(), signal.SIGTERM))
            return evaluate(params)

        return evaluate_and_signal

    evaluate_module.make_evaluate = signalling
    try:
        with pytest.raises(Stopped) as stopped:
            train(config(shards, out, 6, **{"train.checkpoint_every": 5}))
        assert (stopped.value.step, stopped.value.signum) == (2, signal.SIGTERM)
        assert (
            str(stopped.value) == "stopped at step 2 by SIGTERM; the checkpoint of step 2 is saved"
        )
        assert saved_steps(out) == [2]
        assert (
            train(
                config(
                    shards, out, 6, **{"train.checkpoint_every": 5, "train.profile_steps": (4, 2)}
                )
            )
            == out
        )
    finally:
        evaluate_module.make_evaluate = original
    return out


def saved_steps(out) -> list[int]:
    return sorted(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())


def records(out, kind):
    return [r for r in read_metrics(out / "metrics.jsonl") if r["kind"] == kind]


# What is written ----------------------------------------------------------------------------------


@pytest.mark.mesh
def test_a_signal_during_evaluation_saves_before_it_says_so(finished):
    assert saved_steps(finished) == [5, 6]


def test_every_step_once_with_every_number(finished):
    lines = records(finished, "train")
    assert [r["step"] for r in lines] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records(finished, "eval")] == [2, 4, 6]
    for r in lines:
        assert set(r) >= {"kind", "step", "bad_row", *EXACT}
        assert (
            all(math.isfinite(r[k]) for k in EXACT if k != "fingerprint")
            and len(r["fingerprint"]) == 16
        )
    timed = [r for r in lines if "tokens_per_second" in r]
    assert timed
    for r in timed:
        assert r["tokens_per_second_per_device"] * jax.device_count() == pytest.approx(
            r["tokens_per_second"]
        )
        assert 0 < r["mfu_causal"] < r["mfu_full"]
        assert 0 <= r["data_wait"] <= 1
        flops = train_flops(load_config(finished / "config.json").model, 128)
        assert r["mfu_full"] == pytest.approx(r["tokens_per_second_per_device"] * flops.full / 1e12)
    assert lines[0]["learning_rate"] == pytest.approx(1e-2) and lines[-1]["learning_rate"] < 5e-3


def test_the_ledger_accounts_for_the_wall_time(finished):
    for r in records(finished, "ledger"):
        assert set(r["seconds"]) == set(CATEGORIES)
        assert sum(r["seconds"].values()) >= 0.98 * r["wall"] > 0
        assert (
            r["seconds"]["compile"] > 0
            and r["seconds"]["checkpoint"] > 0
            and r["seconds"]["evaluate"] > 0
        )
    assert len(records(finished, "ledger")) == 2


def test_the_ledger_by_hand(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    ledger = Goodput()
    ledger.enter("step")
    with ledger.spending("evaluate"):
        pass
    seconds = {**dict.fromkeys(CATEGORIES, 0.0), "setup": 1.0, "step": 2.0 + 4.0, "evaluate": 3.0}
    assert ledger.summary() == {"seconds": seconds, "wall": 10.0}
    with pytest.raises(KeyError, match="unknown goodput category 'lunch'"):
        monkeypatch.undo()
        Goodput().enter("lunch")


def events(folder):
    """(step, tag, value) of TensorBoard event files: TFRecord frames with masked CRCs, each
    checked.
    """
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data: bytes) -> int:
        crc = crc32c(data)
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at, first = path.read_bytes(), 0, True
        while at < len(data):
            (length,), (crc,) = (
                struct.unpack("<Q", data[at : at + 8]),
                struct.unpack("<I", data[at + 8 : at + 12]),
            )
            body = data[at + 12 : at + 12 + length]
            assert crc == masked(data[at : at + 8])
            assert struct.unpack("<I", data[at + 12 + length : at + 16 + length])[0] == masked(body)
            at += 16 + length
            event = Event.FromString(body)
            assert not first or event.file_version == "brain.Event:2"
            first = False
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def test_tensorboard_has_the_same_numbers(finished):
    found = {(step, tag): value for step, tag, value in events(finished / "tensorboard")}
    for r in records(finished, "train"):
        for name in ("loss", "grad_norm", "accuracy", "learning_rate"):
            assert found[r["step"], f"train/{name}"] == np.float32(r[name])
    for r in records(finished, "eval"):
        assert found[r["step"], "eval/loss"] == np.float32(r["loss"])


def profiled_steps(folder) -> list[int]:
    """The steps that the one trace in the run's profile says it holds."""
    (trace,) = folder.glob("profile/plugins/profile/*/*.xplane.pb")
    events = [
        e
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for e in line.events
    ]
    return sorted(dict(e.stats)["step_num"] for e in events if e.name == "train")


def test_a_profile_holds_the_chosen_steps(finished):
    assert profiled_steps(finished) == [4, 5]


def test_a_profile_that_an_error_cuts_short_is_written(tmp_path):
    loop = loop_of(tmp_path, losses=[1.0, 1.0, math.nan, 1.0, 1.0, 1.0])
    loop.profile = Profile(tmp_path / "profile", (2, 4))
    with pytest.raises(NonFiniteError):
        loop.run(start())
    assert profiled_steps(tmp_path) == [2, 3, 4]  # the numbers of step 3 are read while step 4 runs


def test_records_beyond_the_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write("train", step, {"loss": 1.0 / step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    writer = MetricsWriter(tmp_path, 2)
    writer.write("train", 3, {"loss": 0.5})
    writer.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 0.5),
    ]


def test_metrics_on_a_full_disk_say_how_to_go_on(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer._file.close()
    writer._file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with pytest.raises(
        ConfigError,
        match=r"step 7: cannot write .*metrics.jsonl: No space left on device; free space and run",
    ):
        writer.write("train", 7, {"loss": 1.0})
    writer.close()


# The loop alone -----------------------------------------------------------------------------------


class Saved(list):
    """Stands in for Checkpoints."""

    def save(self, step, state, config):
        self.append(step)

    def wait(self):
        pass

    def steps(self):
        return list(self)


def loop_of(tmp_path, losses=None, batches=None, bad_row=-1, **more) -> Loop:
    """A loop whose step counts and whose loss is given."""
    settings = {
        "train.steps": 6,
        "train.checkpoint_every": 2,
        "data.batch_size": 2,
        "data.seq_length": 4,
        "optimizer.warmup_steps": 0,
    }
    c = override(Config(), {**settings, **more}, "test")
    values = losses or [1.0] * 6

    def step(state, batch):
        n = int(state.step)
        numbers = {
            "loss": values[n],
            "grad_norm": 1.0,
            "tokens": 8.0,
            "bad_row": bad_row if not math.isfinite(values[n]) else -1,
        }
        return state._replace(step=jnp.int32(n + 1)), {
            k: jnp.asarray(v) for k, v in numbers.items()
        }

    def endless(first):
        zeros = np.zeros((2, 4), np.int32)
        return (
            (
                n,
                Batch(
                    inputs=Tokens(zeros, zeros, zeros), targets=zeros, loss_mask=zeros.astype(bool)
                ),
                np.array([0xABC, n], np.uint64),
            )
            for n in range(first, 100)
        )

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    writer = MetricsWriter(tmp_path, 0)
    flops = train_flops(ModelConfig(vocab_size=8), 4)
    return Loop(
        c,
        step,
        Feed(mesh, 2, 4),
        batches or endless,
        None,
        Saved(),
        writer,
        Goodput(),
        flops,
        Peak(1e12, "test"),
    )


def start():
    from llm_jax.training.state import TrainState

    return TrainState(jnp.int32(0), {}, {}, {})


def test_every_step_is_recorded_though_metrics_are_read_one_late(tmp_path):
    loop = loop_of(tmp_path, losses=[5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    assert int(loop.run(start()).step) == 6
    assert [(r["step"], r["loss"]) for r in records(tmp_path, "train")] == [
        (1, 5.0),
        (2, 4.0),
        (3, 3.0),
        (4, 2.0),
        (5, 1.0),
        (6, 0.5),
    ]
    assert loop.checkpoints == [2, 4, 6]


def test_no_checkpoint_is_ahead_of_the_records_that_a_mounted_bucket_has(tmp_path, monkeypatch):
    """A file is in the bucket as it was when it was last closed."""
    stored, opened = {}, Path.open

    def mounted(path, *words, **options):
        file = opened(path, *words, **options)
        close = file.close

        def upload():
            close()
            with opened(path, "rb") as written:
                stored[path.name] = written.read()

        file.close = upload
        return file

    loop, found = loop_of(tmp_path, **{"train.checkpoint_every": 3}), {}
    monkeypatch.setattr(Path, "open", mounted)
    loop.writer = MetricsWriter(tmp_path, 0)
    loop.checkpoints.save = lambda step, state, config: found.__setitem__(
        step, stored["metrics.jsonl"]
    )
    loop.run(start())
    steps = {
        step: [json.loads(line)["step"] for line in data.decode().splitlines()]
        for step, data in found.items()
    }
    assert steps == {3: [1, 2, 3], 6: [1, 2, 3, 4, 5, 6]}


def test_a_step_runs_until_its_loss_is_there():
    import types

    assert loop_module._running({"loss": types.SimpleNamespace(is_ready=lambda: False)})
    assert not loop_module._running({"loss": jax.block_until_ready(jnp.ones(()))})


@pytest.mark.parametrize("running", [True, False])
def test_waiting_for_a_batch_counts_only_while_no_step_runs(tmp_path, monkeypatch, running):
    batches = loop_of(tmp_path).batches

    def slow(first):
        for item in batches(first):
            time.sleep(0.05)
            yield item

    monkeypatch.setattr("llm_jax.training.loop._running", lambda metrics: running)
    loop = loop_of(tmp_path, batches=slow, **{"train.checkpoint_every": 100})
    loop.run(start())
    seconds, slept = loop.ledger.seconds, 6 * 0.05
    if running:
        assert (
            seconds["data"] >= 0.05 and seconds["step"] >= slept - 0.05
        )  # nothing runs before the first batch
    else:
        assert seconds["data"] >= slept
    waits = [r["data_wait"] for r in records(tmp_path, "train") if "data_wait" in r]
    assert len(waits) == 5 and all(
        w == 0 if running else w > 0 for w in waits[:-1]
    )  # no batch is fetched after the last step


def test_log_every_writes_those_and_the_last(tmp_path):
    loop_of(tmp_path, **{"train.log_every": 4}).run(start())
    assert [r["step"] for r in records(tmp_path, "train")] == [4, 6]


@pytest.mark.parametrize(
    ("bad", "step", "saved"), [(math.nan, 4, [2]), (math.inf, 3, [2]), (math.nan, 1, [])]
)
def test_a_loss_that_is_no_number_stops_and_saves_nothing(tmp_path, bad, step, saved):
    losses = [1.0] * 6
    losses[step - 1] = bad
    loop = loop_of(tmp_path, losses, bad_row=1)
    with pytest.raises(NonFiniteError) as error:
        loop.run(start())
    text = str(error.value)
    assert f"step {step}: loss {bad}" in text
    assert f"batch fingerprint {0xABC + step - 1:016x}, first bad row 1" in text
    assert (
        "Nothing was saved over the last good checkpoint" + (" (step 2)" if saved else ";") in text
    )
    assert loop.checkpoints == saved
    assert [r["step"] for r in records(tmp_path, "train")] == list(range(1, step))


@pytest.mark.mesh
def test_a_learning_rate_that_explodes_ends_a_real_run_and_keeps_the_good_checkpoint(
    shards, tmp_path
):
    out = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=r"step \d: loss .*batch fingerprint [0-9a-f]{16}"):
        train(
            config(
                shards,
                out,
                6,
                **{
                    "optimizer.learning_rate": 1e30,
                    "train.eval_every": 0,
                    "train.checkpoint_every": 1,
                },
            )
        )
    lines = records(out, "train")
    assert all(math.isfinite(r["loss"]) for r in lines)
    assert saved_steps(out)[-1] <= len(lines)
    assert records(out, "ledger")


def test_an_error_of_the_data_comes_out_and_the_run_can_go_on(tmp_path):
    def breaks(first):
        good = loop_of(tmp_path).batches(first)
        for item in good:
            if item[0] == 3:
                raise DataError("shard 7 is damaged")
            yield item

    loop = loop_of(tmp_path, batches=breaks)
    with pytest.raises(DataError, match="shard 7 is damaged"):
        loop.run(start())
    assert loop.checkpoints == [2]
    again = loop_of(tmp_path)
    assert int(again.run(start()._replace(step=jnp.int32(2))).step) == 6
    assert again.checkpoints == [4, 6]


def test_a_loader_at_the_wrong_step_is_refused(tmp_path):
    loop = loop_of(tmp_path, batches=lambda first: loop_of(tmp_path).batches(first + 1))
    with pytest.raises(RuntimeError, match="the loader gave the batch of step 1 for step 0"):
        loop.run(start())


def test_a_failed_save_ends_the_run(tmp_path):
    loop = loop_of(tmp_path)

    def fails(step, state, config):
        raise CheckpointError("could not save step 2")

    loop.checkpoints.save = fails
    with pytest.raises(CheckpointError, match="could not save step 2"):
        loop.run(start())


def test_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    loop_of(tmp_path).run(start())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.mesh
def test_evaluation_is_compiled_with_the_flags_of_the_step(monkeypatch):
    """On a CPU they keep its collectives in one order, without which simulated devices may wait for
    each other for ever.
    """
    c = override(
        Config(),
        {
            "model.vocab_size": 16,
            "model.num_layers": 1,
            "model.embed_dim": 8,
            "model.attention.num_heads": 1,
            "model.mlp.hidden_dim": 8,
            "model.max_length": 8,
            "data.seq_length": 8,
            "data.batch_size": 8,
        },
        "test",
    )
    parts = build_parts(c)
    monkeypatch.setattr(evaluate_module, "compiler_options", lambda mesh: {"xla_of_nobody": True})
    zeros = np.zeros((8, 8), np.int32)
    batch = Batch(Tokens(zeros, zeros, zeros), zeros, zeros.astype(bool))
    evaluate = evaluate_module.make_evaluate(parts, Feed(parts.mesh, 8, 8), lambda: [batch])
    params = jax.tree.map(
        lambda a: jax.device_put(jnp.zeros(a.shape, a.dtype), a.sharding), parts.abstract.params
    )
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"No such compile option: 'xla_of_nobody'"
    ):
        evaluate(params)


# MFU ----------------------------------------------------------------------------------------------

LLAMA_8B = override(
    ModelConfig(),
    {
        "vocab_size": 128_256,
        "num_layers": 32,
        "embed_dim": 4096,
        "attention.num_heads": 32,
        "attention.num_kv_heads": 8,
        "mlp.hidden_dim": 14336,
    },
)
LLAMA_70B = override(
    ModelConfig(),
    {
        "vocab_size": 128_256,
        "num_layers": 80,
        "embed_dim": 8192,
        "attention.num_heads": 64,
        "attention.num_kv_heads": 8,
        "mlp.hidden_dim": 28672,
    },
)


@pytest.mark.parametrize(
    ("model", "length", "tokens_per_second", "tflops", "convention"),
    [
        (LLAMA_8B, 8192, 7138.9, 413.43, "full"),
        (LLAMA_8B, 8192, 7207.3, 417.40, "full"),
        (LLAMA_70B, 8192, 960.25, 462.30, "full"),
        (LLAMA_70B, 8192, 2686.98, 1207.05, "causal"),
        (LLAMA_70B, 131_072, 963.03, 897.94, "causal"),
    ],
)
def test_published_rows_of_maxtext(model, length, tokens_per_second, tflops, convention):
    """MaxText's published tokens/s per chip times FLOPs per token give its published TFLOP/s."""
    assert tokens_per_second * getattr(
        train_flops(model, length), convention
    ) / 1e12 == pytest.approx(tflops, rel=5e-3)


@pytest.mark.parametrize("mlp", ["gated", "plain"])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_flops_are_those_that_xla_counts(mlp, kv_heads):
    m = override(
        ModelConfig(),
        {
            "vocab_size": 2048,
            "num_layers": 2,
            "embed_dim": 256,
            "attention.num_heads": 4,
            "attention.num_kv_heads": kv_heads,
            "mlp.hidden_dim": 1024,
            "max_length": 256,
            "mlp": mlp,
        },
    )
    model = build(
        m, ExecutionConfig(attention="xla", layers="unroll", remat="none", compute_dtype="float32")
    )
    # One chunk: XLA counts the body of a loop once.
    loss = token_loss(model, 2048, 0.0)
    like = jax.ShapeDtypeStruct((2, 256), jnp.int32)
    batch = Batch(
        inputs=Tokens(like, like, like),
        targets=like,
        loss_mask=jax.ShapeDtypeStruct((2, 256), jnp.bool_),
    )
    gradient = jax.jit(jax.grad(lambda p, b: loss(p, {}, b, None).total))
    cost = (
        gradient.lower(jax.eval_shape(model.init, jax.random.key(0)), batch)
        .compile()
        .cost_analysis()
    )
    counted = (cost[0] if isinstance(cost, list) else cost)["flops"]
    assert counted / (2 * 256) == pytest.approx(train_flops(m, 256).full, rel=0.03)


def test_flops_of_latent_attention_and_first_layers_by_hand():
    m = override(
        ModelConfig(),
        {
            "vocab_size": 10,
            "num_layers": 3,
            "embed_dim": 4,
            "attention.num_heads": 2,
            "attention.head_dim": 6,
            "attention.value_dim": 5,
            "attention": "latent",
            "attention.kv_latent": 7,
            "attention.q_latent": 8,
            "attention.rope_dim": 2,
            "mlp.hidden_dim": 3,
            "first_layers.count": 1,
            "first_layers.mlp_dim": 9,
            "experts.count": 4,
            "experts.per_token": 2,
            "experts.shared": 1,
            "mlp.bias": True,
        },
    )
    attention = 4 * 8 + 8 * 2 * 6 + 4 * (7 + 2) + 7 * 2 * (4 + 5) + 2 * 5 * 4
    assert matmul_parameters(m) == 3 * attention + 3 * 4 * 9 + 2 * (3 * 3 * 4 * 3 + 4 * 4) + 40
    assert train_flops(m, 8).full == 6 * matmul_parameters(m) + 3 * 6 * 2 * (6 + 5) * 8
    assert matmul_parameters(override(m, {"attention.q_latent": 0})) == matmul_parameters(m) - 3 * (
        4 * 8 + 8 * 12 - 4 * 12
    )
    # Two of four experts, in two layers: three kernels, two biases of 3 and one of 4.
    assert idle_parameters(m) == 2 * 2 * (3 * 4 * 3 + 2 * 3 + 4)
    wide = override(
        ModelConfig(),
        {
            "vocab_size": 10,
            "num_layers": 1,
            "embed_dim": 4,
            "attention.num_heads": 2,
            "attention.num_kv_heads": 1,
            "attention.head_dim": 3,
            "attention.value_dim": 5,
            "mlp.hidden_dim": 6,
        },
    )
    assert matmul_parameters(wide) == 4 * (2 * 3 + 3 + 5) + 2 * 5 * 4 + 3 * 4 * 6 + 40


def test_flops_by_hand():
    m = override(
        ModelConfig(),
        {
            "vocab_size": 10,
            "num_layers": 3,
            "embed_dim": 4,
            "attention.num_heads": 2,
            "attention.num_kv_heads": 1,
            "mlp.hidden_dim": 5,
            "attention.window_pattern": (0, 2),
        },
    )
    assert matmul_parameters(m) == 3 * (4 * 2 * 4 + 4 * 4 + 3 * 4 * 5) + 40
    full, causal = train_flops(m, 8).full, train_flops(m, 8).causal
    assert full == 6 * matmul_parameters(m) + 12 * 4 * (8 + 2 + 8)
    assert causal == 6 * matmul_parameters(m) + 12 * 4 * (4 + (2 - 4 / 16) + 4)
