"""Collectives read from compiled programs whose traffic is known by hand, on 8 simulated
devices.
"""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from pairwise import parametrize

from llm_jax.config import Config, MeshConfig
from llm_jax.config.overrides import override
from llm_jax.plan.hlo import SLICES, collectives, summed
from llm_jax.sharding import make_mesh
from llm_jax.training.build import build
from llm_jax.training.step import jit_train_step, make_train_step
from llm_jax.types import Batch, Tokens

MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
ROWS = 64


def traffic(body, spec_in, spec_out, shape=(ROWS, 16)):
    """summed() of ``body`` run by every device on its part."""
    mapped = jax.shard_map(body, mesh=MESH, in_specs=spec_in, out_specs=spec_out, check_vma=False)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(MESH, spec_in))
    return summed(collectives(jax.jit(mapped).lower(x).compile().as_text(), MESH.shape))


P = PartitionSpec
PART = ROWS // 2 * 16 * 4  # bytes that a device has where rows are split in two


def test_an_all_reduce_sends_its_array_twice_but_for_ones_own_share():
    assert traffic(lambda x: jax.lax.psum(x, "tensor"), P("data"), P("data")) == {
        ("all-reduce", ("tensor",)): (1, 2 * PART / 2)
    }
    over = traffic(lambda x: jax.lax.psum(x, ("data", "tensor")), P("fsdp"), P("fsdp"))
    assert over == {("all-reduce", ("data", "tensor")): (1, 2 * PART * 3 / 4)}


@pytest.mark.mesh
def test_gather_and_scatter_send_all_but_ones_own_share():
    gather = traffic(lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), P("fsdp"), P())
    assert gather == {("all-gather", ("fsdp",)): (1, 2 * PART / 2)}
    scatter = traffic(
        lambda x: jax.lax.psum_scatter(x, "data", tiled=True), P("fsdp"), P(("fsdp", "data"))
    )
    assert scatter == {("reduce-scatter", ("data",)): (1, PART / 2)}


def test_exchanges():
    assert traffic(
        lambda x: jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)]), P("data"), P("data")
    ) == {("collective-permute", ("tensor",)): (1, PART)}
    found = traffic(lambda x: jax.lax.all_to_all(x, "data", 0, 0, tiled=True), P("data"), P("data"))
    assert found == {("all-to-all", ("data",)): (1, PART / 2)}


RAGGED = """HloModule experts
ENTRY %main (p: bf16[8,4], r: bf16[32,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %r = bf16[32,4]{1,0} parameter(1)
  %n = s32[4]{0} constant({2, 2, 2, 2})
  %there = bf16[32,4]{1,0} ragged-all-to-all(%p, %r, %n, %n, %n, %n), replica_groups={{0,1,2,3}}
  ROOT %back = bf16[8,4]{1,0} ragged-all-to-all(bf16[32,4]{1,0} %there, bf16[8,4]{1,0} %p, %n, %n, %n, %n), replica_groups={{0,1,2,3}}
}
"""


def test_room_for_the_worst_case_is_not_sent():
    there, back = collectives(RAGGED, {"expert": 4})
    assert there.size == back.size == 8 * 4 * 2 and there.moved == 8 * 4 * 2 * 3 / 4


BESIDE_PRODUCTS = """HloModule beside
%begins (p: bf16[4]) -> (bf16[4], bf16[16]) {
  %p = bf16[4]{0} parameter(0)
  %gather.1 = bf16[16]{0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  ROOT %b = (bf16[4]{0}, bf16[16]{0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}
%goes_on (p: bf16[4]) -> (f32[2], bf16[4], bf16[16]) {
  %p = bf16[4]{0} parameter(0)
  %gather.2 = bf16[16]{0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  %product = f32[2]{0} convolution(%a, %b)
  ROOT %t = (f32[2]{0}, bf16[4]{0}, bf16[16]{0}) tuple(%product, %p, %gather.2)
}
%ends (p: bf16[4]) -> bf16[16] {
  %p = bf16[4]{0} parameter(0)
  %gather.3 = bf16[16]{0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  ROOT %e = bf16[16]{0} custom-call(%p, %gather.3), custom_call_target="AsyncCollectiveDone"
}
ENTRY %main (p: bf16[4]) -> bf16[16] {
  %p = bf16[4]{0} parameter(0)
  %one = (bf16[4]{0}, bf16[16]{0}) fusion(%p), kind=kCustom, calls=%begins
  %two = (f32[2]{0}, bf16[4]{0}, bf16[16]{0}) fusion(%p), kind=kCustom, calls=%goes_on
  ROOT %three = bf16[16]{0} fusion(%p), kind=kCustom, calls=%ends
}
"""


def test_a_gather_that_runs_beside_several_products_counts_once():
    assert summed(collectives(BESIDE_PRODUCTS, {"fsdp": 4})) == {
        ("all-gather", ("fsdp",)): (1, 16 * 2 * 3 / 4)
    }


STARTED = """HloModule started
ENTRY %main (p: f32[8], q: bf16[4]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %q = bf16[4]{0} parameter(1)
  %g = ((f32[8]{0}, bf16[4]{0}), (f32[16]{0:T(8,128)}, bf16[8]{0})) all-gather-start(%p, %q), replica_groups={{0,1}}, dimensions={0}
  %c = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}
  %r = (f32[8]{0}, f32[]) all-reduce-start(%p, %s), replica_groups=[1,2]<=[2], to_apply=%add
  ROOT %d = f32[8]{0} all-reduce-done(%r)
}
"""


def test_started_collectives_of_several_arrays_count_each_once():
    assert summed(collectives(STARTED, {"data": 2})) == {
        ("all-gather", ("data",)): (1, (16 * 4 + 8 * 2) / 2),
        ("collective-permute", ("data",)): (1, 8 * 4),
        ("all-reduce", ("data",)): (1, 8 * 4 + 4),
    }


def test_what_is_in_loops_counts_as_often_as_they_run():
    def body(x):
        def inner(c, _):
            return (jax.lax.psum(jnp.sin(c), "fsdp"), None)

        def outer(c, _):
            return (
                jnp.cos(jax.lax.scan(inner, c, None, length=5)[0]),
                None,
            )

        return jax.lax.scan(outer, x, None, length=3)[0]

    assert traffic(body, P("data"), P("data")) == {
        ("all-reduce", ("fsdp",)): (15, 15 * 2 * PART / 2)
    }


MESHES = ({"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 4})


@pytest.mark.mesh
@parametrize(
    "mesh, tied",
    itertools.product(MESHES, (True, False)),
    by_default=[(MESHES[1], False)],
)
def test_a_train_step_sends_a_few_times_its_weights_however_small_the_chunks_of_its_loss(
    mesh, tied
):
    """Once each chunk had the whole gradient of the output projection summed over all devices: 4 TB
    a step for a 1 B model.
    """
    sent = []
    for chunk in (256, 32):
        config = override(
            Config(),
            {
                "model.vocab_size": 512,
                "model.num_layers": 1,
                "model.embed_dim": 64,
                "model.attention.num_heads": 4,
                "model.mlp.hidden_dim": 128,
                "model.embedding.tied": tied,
                "data.seq_length": 64,
                "data.batch_size": 16,
                "execution.loss_chunk": chunk,
                **{f"mesh.{axis}": mesh.get(axis, 1) for axis in ("data", "fsdp", "tensor")},
            },
        )
        parts = build(config)
        rows = NamedSharding(parts.mesh, P(("data", "fsdp"), None))
        ids, mask = (jax.ShapeDtypeStruct((16, 64), d, sharding=rows) for d in (jnp.int32, bool))
        batch = Batch(Tokens(ids, ids, ids), ids, mask)
        step = jit_train_step(
            make_train_step(parts.loss, parts.optimizer, config, parts.model.specs),
            parts.model,
            parts.optimizer,
            parts.mesh,
        )
        with jax.set_mesh(parts.mesh):
            text = step.lower(parts.abstract, batch).compile().as_text()
        sent.append(sum(size for _, size in summed(collectives(text, parts.mesh.shape)).values()))
    weights = 4 * sum(a.size for a in jax.tree.leaves(parts.abstract.params))
    activations = 4 * 16 * 64 * 64
    # A vocabulary split over tensor has every chunk's gradient of the hidden states summed over it,
    # 14 more times here.
    summed_over_tensor = 14 * 1.1 * activations / mesh["fsdp"] if "tensor" in mesh else 0
    assert sent[1] < 1.25 * sent[0] + summed_over_tensor
    assert weights < sent[1] < 8 * (weights + activations)


SENT = """ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {
  %token = token[] after-all()
  %send.1 = (bf16[4,8]{1,0}, u32[], token[]) send(%p, %token), is_host_transfer=true, frontend_attributes={KIND}
  %send.2 = (f32[2]{0}, u32[], token[]) send(%q, %token), is_host_transfer=true, frontend_attributes={_xla_other="to the host"}
}
"""


@pytest.mark.parametrize(
    ("kind", "name", "moved"),
    [
        ("ALL_REDUCE", "all-reduce", 2 * 64 * 2 / 3),
        ("REDUCE_SCATTER", "reduce-scatter", 64 * 2 / 3),
        ("ALL_GATHER", "all-gather", 2 * 64),
        ("ONE_TO_ONE", "collective-permute", 64),
    ],
)
def test_what_goes_from_slice_to_slice_is_a_send_to_the_runtime(kind, name, moved):
    target = "" if kind == "ONE_TO_ONE" else '_xla_megascale_target="{1,2,3}x{0:3}",'
    [one] = collectives(
        SENT.replace("KIND", f'{target}_xla_megascale_transfer_type="{kind}"'), {"fsdp": 4}
    )
    assert (one.kind, one.axes, one.count) == (name, (SLICES,), 1) and one.moved == pytest.approx(
        moved
    )
