"""``llm-jax plan``: topologies and their errors, and the real train step compiled for TPU slices
that are not there.
"""

from __future__ import annotations

import json

import pytest

from llm_jax.commands.plan import plan
from llm_jax.plan import topology
from llm_jax.plan.compiled import Traffic, is_lower_bound, traffic_of
from llm_jax.plan.hlo import Collective
from llm_jax.plan.report import figures, table, traffic_lines
from llm_jax.plan.roofline import Seconds
from llm_jax.plan.step import Plan
from llm_jax.plan.topology import parse_topology
from llm_jax.sharding import MESH_AXES
from llm_jax.types import ConfigError

SMALL = (
    "model.vocab_size=1024",
    "model.num_layers=3",
    "model.embed_dim=256",
    "model.attention.num_heads=2",
    "model.mlp.hidden_dim=512",
    "data.seq_length=256",
    "data.batch_size=16",
    "mesh.data=1",
    "mesh.fsdp=-1",
    "optimizer.update=adamw",
)


@pytest.mark.mesh
def test_without_the_compiler_the_extra_is_named_and_the_flag_that_does_without(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"needs libtpu.*pip install 'llm_jax\[plan\]'.*--analytic"
    ):
        plan("configs/tiny_cpu.py", "v5e:2x2", SMALL)
    text = plan("configs/tiny_cpu.py", "v5e:2x2", SMALL, analytic=True)
    assert (
        "working space" in text
        and "memory is an estimate, within a tenth of the compiler's, and real traffic is unknown"
        in text
    )


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("text", "tflops"),
    [
        ("v4:2x2x1", 275),
        ("v5e:2x2", 197),
        ("v5p:2x2x1", 459),
        ("v6e:2x2", 918),
        ("v7x:2x2x1", 2307),
        ("tpu7x:2x2x1", 2307),
    ],
)
def test_a_chips_devices_are_those_of_the_compiler(text, tflops):
    s = parse_topology(text)
    found = topology.devices(s)
    assert {d.device_kind for d in found} == {s.chip.kind} and len(
        found
    ) == s.chips * s.chip.devices
    assert s.chip.tflops == tflops


@pytest.mark.compiler
def test_a_slice_that_is_not_made_is_refused():
    with pytest.raises(ConfigError, match="'v5e:3x5': the TPU compiler has no such slice"):
        topology.devices(parse_topology("v5e:3x5"))


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    text = plan("configs/tiny_cpu.py", "v5e:2x2", SMALL, out=str(out))
    return text, json.loads(out.read_text())


@pytest.mark.compiler
def test_the_step_of_a_config_is_compiled_for_the_slice(planned):
    text, p = planned
    assert p["chips"] == 4 and p["mesh"] == {**dict.fromkeys(MESH_AXES, 1), "fsdp": 4} and p["fits"]
    state = 4 * p["parameters"]
    # Norm scales live whole on every chip.
    assert p["memory_bytes_per_chip"]["parameters"] == pytest.approx(state / 4, rel=0.01)
    assert p["memory_bytes_per_chip"]["optimizer state"] == pytest.approx(2 * state / 4, rel=0.01)
    assert 0 < p["memory_bytes_per_chip"]["temporaries"] < p["hbm_bytes"]
    assert set(p["temporaries_estimated_bytes_per_chip"]) == {
        "gradients",
        "saved activations",
        "weights in use",
        "working space",
    }
    # Saved activations alone: of each of 3 layers 16 / 4 rows of 256 tokens, in bfloat16, at least
    # the residual stream.
    assert p["temporaries_estimated_bytes_per_chip"]["saved activations"] > 3 * 4 * 256 * 256 * 2
    assert (
        p["flops_per_step"]["model, causal"]
        < p["flops_per_step"]["model, full"]
        <= p["flops_per_step"]["traced"]
    )
    # Weights in bfloat16 are gathered and their gradients summed at least once, three quarters of
    # them from other chips.
    sent = sum(t["bytes"] for t in p["traffic"])
    assert 2 * p["parameters"] * 0.75 < sent < 40 * p["parameters"]
    assert all(t["axes"] == ["fsdp"] for t in p["traffic"])
    assert p["seconds"]["at best"] <= p["seconds"]["at worst"] and 0 < p["mfu_causal_at_best"] < 1
    assert "memory per chip, of 16 GiB" in text and ": fits" in text


@pytest.mark.compiler
def test_what_does_not_fit_is_said_with_the_compilers_reason():
    big = (
        *SMALL,
        "model.embed_dim=4096",
        "model.mlp.hidden_dim=16384",
        "model.num_layers=24",
        "execution.layers=scan",
    )
    text = plan("configs/tiny_cpu.py", "v5e:2x2", big, changes=0)
    assert "does not fit: RESOURCE_EXHAUSTED" in text and "hbm" in text.lower()


def test_figures_and_table_by_hand():
    seconds = Seconds({"compute": 2.0, "links at best": 1.0, "links at worst": 4.0, "memory": 0.5})
    flops = {"model, causal": 4 * 197e12, "model, full": 5e14, "traced": 6e14}
    p = Plan(
        parse_topology("v5e:2x2"),
        {"data": 4},
        10,
        800,
        {"parameters": 2.0**30},
        "",
        flops,
        [Traffic("all-gather", ("data",), 3, 1e9)],
        seconds,
        1.0,
    )
    assert (p.seconds.at_best, p.seconds.at_worst, p.seconds.bound) == (2.0, 6.5, "compute")
    assert figures(p)["mfu_causal_at_best"] == pytest.approx(0.5)
    shown = table(p)
    assert (
        "1.00 GiB: fits" in shown
        and "20.0% (recomputed)" in shown
        and "1.00 GB in 3 over data" in shown
    )
    assert "100 at best; MFU 50.0% causal" in shown
    assert "does not fit: too big" in table(p._replace(refused="too big"))
    assert figures(p)["fits"] is True and figures(p._replace(refused="too big"))["fits"] is False
    assert figures(p._replace(analytic=True))["fits"] is None


def test_what_runs_an_unknown_number_of_times_is_shown_and_not_added():
    found = [
        Collective("all-gather", ("fsdp",), 4e9, 4, 3),
        Collective("all-gather", ("fsdp",), 8e9, 4, 2, trips_known=False),
        Collective("all-reduce", ("data",), 2e9, 2, 5, trips_known=False),
    ]
    traffic = traffic_of(found)
    assert sum(t.bytes for t in traffic) == 9e9 and is_lower_bound(traffic)
    assert traffic_lines(traffic) == [
        "    all-gather                9.00 GB in 3 over fsdp",
        "    all-gather               12.00 GB in 2 x unknown trips over fsdp",
        "    all-reduce               10.00 GB in 5 x unknown trips over data",
        (
            "    together                  9.00 GB at least; loops and branches of unknown trips"
            " are not in it, nor in the times below"
        ),
    ]
    assert traffic_lines(traffic_of(found[:1]))[-1] == "    together                  9.00 GB"
    assert not is_lower_bound(traffic_of(found[:1]))
