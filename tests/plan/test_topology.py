"""Chips as data, topologies and their errors, and the slices that configs name."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_jax.config.saved import load_config
from llm_jax.plan.chips import CHIPS
from llm_jax.plan.topology import parse_topology, slices_of, stand_ins
from llm_jax.types import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def test_a_topology_is_a_chip_and_its_shape():
    s = parse_topology("v5p:4x4x8")
    assert (s.chip_name, s.dims, s.chips, s.chip, s.nodes) == (
        "v5p",
        (4, 4, 8),
        128,
        CHIPS["v5p"],
        1,
    )
    s = parse_topology("h200:8x4")
    assert (s.chip_name, s.chips, s.nodes, s.chip.tflops) == ("h200", 32, 4, 989.4)
    assert parse_topology("h100:8").nodes == 1
    s = parse_topology("2xv5e:4x4")
    assert (s.name, s.chip_name, s.dims, s.chips, s.slices) == ("2xv5e:4x4", "v5e", (4, 4), 32, 2)


def test_the_compilers_name_of_a_chip_is_ours_too():
    assert (
        parse_topology("tpu7x:2x2x1") == parse_topology("v7x:2x2x1")
        and parse_topology("tpu7x:2x2x1").name == "v7x:2x2x1"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p", "is not of the form chip:AxB"),
        ("b300:8", "unknown chip 'b300'; there are v4, v5e, v5p, v6e, v7x, h100, h200, cpu"),
        ("v5e:2x2x2", "has 3 dimensions; v5e is a 2-dimensional torus, as in v5e:4x4"),
        ("h100:8x2x2", "has 3 dimensions; GPUs are GPUs a node x nodes, as in h100:8x4"),
        ("cpu:2x4", "has 2 dimensions; the devices of one machine are cpu:8"),
        ("v5p:0x2x2", "has a dimension of no chips"),
        ("0xv5e:2x2", "has a dimension of no chips"),
        ("2xh100:8", "has several slices, which only TPUs have"),
        ("2xcpu:8", "has several slices, which only TPUs have"),
    ],
)
def test_topologies_that_cannot_be(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_topology(text)


@pytest.mark.parametrize("name", CHIPS)
def test_every_chip_has_a_source_for_every_figure_and_power_that_makes_sense(name):
    chip = CHIPS[name]
    assert all(chip.sources[figure] for figure in ("peak", "hbm", "links", "power"))
    least, most = chip.watts
    assert 0 < least < most
    # Between what the makers published for v4 (1.4 TFLOP/s a watt) and a few times that.
    assert 1 < chip.tflops / most < 5


def test_devices_of_this_cpu_share_its_cores_and_memory():
    one, two = (parse_topology(f"cpu:{n}", cpu_tflops=0.5) for n in (1, 2))
    assert one.chip.tflops == two.chip.tflops == 0.5
    assert one.chip.hbm == 2 * two.chip.hbm > 2**28
    assert one.chip.sources["peak"] == "train.peak_tflops"
    measured = parse_topology("cpu:1").chip
    assert 1e-4 < measured.tflops < 100 and "measured" in measured.sources["peak"]


def test_a_stand_in_for_every_device():
    found = stand_ins(parse_topology("v7x:2x2x1"))
    assert [(d.id, d.coords, d.core_on_chip) for d in found[:3]] == [
        (0, (0, 0, 0), 0),
        (1, (0, 0, 0), 1),
        (2, (0, 1, 0), 0),
    ]
    assert len(found) == 8 and {d.platform for d in found} == {"tpu"}
    assert [d.slice_index for d in stand_ins(parse_topology("2xv5e:1x2"))] == [0, 0, 1, 1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_names_its_slices_in_its_docstring_too(path):
    text = path.read_text()
    for slice_ in (parse_topology(name, cpu_tflops=1.0) for name in slices_of(path)):
        where = f"--topology {slice_.name}" if slice_.chip.platform == "tpu" else "any CPU"
        assert where in " ".join(text.split("SLICES")[0].split())
    assert load_config(path).name == path.stem or path.stem == "tiny_cpu"


def test_a_config_without_slices_wants_a_topology(tmp_path):
    saved = tmp_path / "config.json"
    saved.write_text("{}")
    with pytest.raises(
        ConfigError,
        match=r"config.json names no slices that it is meant for \(SLICES\); give one: --topology",
    ):
        slices_of(saved)
