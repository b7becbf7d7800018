"""The flags a step is compiled with: known to this machine's compilers, and those that are not
named and left out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from llm_jax.config import MeshConfig
from llm_jax.plan.topology import devices, parse_topology
from llm_jax.sharding import make_mesh
from llm_jax.training import compiler_flags
from llm_jax.training.compiler_flags import FLAGS, Flag, compiler_options, unknown_options


@pytest.fixture
def tpu():
    return make_mesh(MeshConfig(), devices(parse_topology("v5e:2x2")))


@pytest.mark.mesh
def test_flags_for_gpus_are_those_of_this_jaxlib():
    """Every jaxlib knows them by name, whatever devices it has."""
    mesh = make_mesh(MeshConfig())
    assert {
        name: unknown_options(mesh, {name: flag.value}) for name, flag in FLAGS["gpu"].items()
    } == {n: [] for n in FLAGS["gpu"]}


@pytest.mark.compiler
def test_flags_for_tpus_are_those_of_this_libtpu(tpu):
    assert {
        name: unknown_options(tpu, {name: flag.value}) for name, flag in FLAGS["tpu"].items()
    } == {n: [] for n in FLAGS["tpu"]}
    assert compiler_options(tpu) == {name: flag.value for name, flag in FLAGS["tpu"].items()}


def with_flags(monkeypatch, platform, **values):
    monkeypatch.setitem(
        FLAGS, platform, {name: Flag(value, "a test") for name, value in values.items()}
    )
    said = []
    monkeypatch.setattr(compiler_flags, "note", said.append)
    return said


@pytest.mark.mesh
def test_an_unknown_flag_is_named_with_the_compilers_version_and_left_out(monkeypatch):
    said = with_flags(monkeypatch, "cpu", xla_cpu_of_tomorrow=True, xla_cpu_enable_fast_math=False)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    assert compiler_options.__wrapped__(mesh) == {"xla_cpu_enable_fast_math": False}
    [line] = said
    assert line.startswith(
        f"jaxlib {jax.lib.__version__} does not know xla_cpu_of_tomorrow; the step is compiled"
    )
    # What is left does compile.
    step = jax.jit(lambda x: x + 1, compiler_options=compiler_options.__wrapped__(mesh))
    assert step(jnp.zeros(())) == 1


@pytest.mark.compiler
def test_an_unknown_flag_for_tpus_is_named_too(monkeypatch, tpu):
    said = with_flags(monkeypatch, "tpu", xla_tpu_of_yesterday="true")
    assert (
        compiler_options.__wrapped__(tpu) == {}
        and "xla_tpu_of_yesterday" in said[0]
        and said[0].startswith("libtpu 0.")
    )


@pytest.mark.mesh
def test_a_value_that_a_flag_cannot_have_is_no_unknown_flag(monkeypatch):
    with_flags(monkeypatch, "cpu", xla_cpu_enable_fast_math="perhaps")
    with pytest.raises(jax.errors.JaxRuntimeError, match="not a valid bool"):
        compiler_options.__wrapped__(make_mesh(MeshConfig(fsdp=2)))


def test_one_device_has_nothing_to_send(monkeypatch):
    with_flags(monkeypatch, "cpu", xla_cpu_of_tomorrow=True)
    assert compiler_options.__wrapped__(make_mesh(MeshConfig(), jax.devices()[:1])) == {}


@pytest.mark.parametrize("platform", FLAGS)
def test_every_flag_says_why(platform):
    assert all(flag.why and name.startswith("xla_") for name, flag in FLAGS[platform].items())
