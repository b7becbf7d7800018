"""FLOPs counted in a traced function: products by hand, loops, and what remat computes again."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from llm_jax.config import ExecutionConfig, ModelConfig, override
from llm_jax.models import build
from llm_jax.objectives.token_loss import token_loss
from llm_jax.ops.masks import Mask
from llm_jax.ops.moe import Experts, apply_experts, route
from llm_jax.ops.splash import splash_attention
from llm_jax.plan.trace import matmul_flops
from llm_jax.training.flops import train_flops
from llm_jax.types import Batch, Tokens

X, W = jax.ShapeDtypeStruct((4, 8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)


def count(f, *args) -> float:
    return matmul_flops(jax.make_jaxpr(f)(*args))


def test_products_by_hand():
    assert count(lambda x, w: x @ w, X, W) == 2 * 4 * 8 * 16 * 32
    assert count(lambda x: jnp.einsum("btd,bsd->bts", x, x), X) == 2 * 4 * 8 * 8 * 16
    assert count(lambda x: jnp.sin(x) + 1, X) == 0


def test_loops_count_as_often_as_they_run_and_calls_once():
    step = jax.jit(lambda x, w: jnp.tanh(x @ w) @ w.T)
    once = 2 * count(lambda x, w: x @ w, X, W)
    assert count(step, X, W) == once
    assert (
        count(
            lambda x, w: jax.lax.scan(lambda c, _: (step(c, w), None), x, None, length=7)[0], X, W
        )
        == 7 * once
    )
    assert (
        count(lambda x, w: jax.lax.cond(x[0, 0, 0] > 0, lambda: step(x, w), lambda: x), X, W)
        == once
    )


PLAIN = override(
    ModelConfig(),
    {
        "vocab_size": 512,
        "num_layers": 4,
        "embed_dim": 64,
        "attention.num_heads": 4,
        "attention.num_kv_heads": 2,
        "mlp.hidden_dim": 256,
        "max_length": 64,
    },
)
WIDTHS = {
    "attention.head_dim": 24,
    "attention.value_dim": 16,
    "attention": "latent",
    "attention.kv_latent": 40,
    "attention.q_latent": 48,
    "attention.rope_dim": 8,
}
LATENT = override(
    PLAIN,
    {**WIDTHS, "first_layers.count": 1, "first_layers.mlp_dim": 256},
)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
@pytest.mark.parametrize(
    "m", [PLAIN, LATENT, override(PLAIN, {"attention.value_dim": 24, "attention.sinks": True})]
)
def test_a_model_without_remat_is_what_the_formula_says_and_full_remat_adds_a_forward_pass(
    m, layers
):
    like = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    batch = Batch(
        inputs=Tokens(like, like, like),
        targets=like,
        loss_mask=jax.ShapeDtypeStruct((2, 64), jnp.bool_),
    )

    def traced(remat: str) -> float:
        model = build(
            m, ExecutionConfig(attention="xla", layers=layers, remat=remat, compute_dtype="float32")
        )
        loss = token_loss(model, 256, 0.0)
        return count(
            jax.grad(lambda p, b: loss(p, {}, b, None).total),
            jax.eval_shape(model.init, jax.random.key(0)),
            batch,
        )

    tokens, head = 2 * 64, 2 * 512 * 64
    model = train_flops(m, 64).full * tokens
    assert traced("none") == pytest.approx(
        model + head * tokens, rel=1e-6
    )  # the logits are made twice
    forward, last_product = (model - 3 * head * tokens) / 3, 4 * 2 * tokens * 256 * 64
    # A layer's last product is an input of nothing that is differentiated, and is not made again.
    assert traced("full") == pytest.approx(model + head * tokens + forward - last_product, rel=1e-6)


@pytest.mark.mesh
@pytest.mark.parametrize("ways", [1, 4])
def test_experts_count_the_rows_that_they_have_when_evenly_used(ways):
    """96 tokens through 2 of 8 experts, forward and backward, wherever experts are; room for the
    worst case is no work.
    """
    D, F, E, k, n = 16, 24, 8, 2, 96
    experts = Experts(
        *(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((E, D, F), (E, D, F), (E, F, D)))
    )
    mesh = jax.make_mesh(
        (ways,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:ways]
    )
    spread = jax.shard_map(
        lambda x, w: apply_experts(
            x, route(x[:, :E], k), w, activation="silu", axis="expert" if ways > 1 else None
        ),
        mesh=mesh,
        in_specs=P("expert"),
        out_specs=P("expert"),
        check_vma=False,
    )
    once, x = 3 * 2 * n * k * D * F, jax.ShapeDtypeStruct((n, D), jnp.float32)

    def routing_and_sums(f):
        return count(f, x, experts) % once

    for f, times in ((spread, 1), (jax.grad(lambda *a: jnp.sum(spread(*a)), (0, 1)), 3)):
        assert count(f, x, experts) // once == times and routing_and_sums(f) < 0.1 * once


def test_a_kernel_that_cannot_be_counted_is_not_counted_as_nothing():
    def ragged(x, w, n):
        return jax.lax.ragged_dot(x, w, n)

    args = (jnp.ones((4, 8)), jnp.ones((2, 8, 3)), jnp.array([2, 2], jnp.int32))
    with pytest.raises(NotImplementedError, match="cannot count ragged_dot"):
        count(ragged, *args)


@pytest.mark.parametrize("window", [0, 256])
def test_the_tpu_kernel_counts_the_blocks_that_its_mask_leaves(window):
    B, T, N, H = 3, 2048, 2, 128
    x = jax.ShapeDtypeStruct((B, T, N, H), jnp.float32)
    run = jax.value_and_grad(
        lambda q, k, v: splash_attention(q, k, v, Mask(window=window), scale=1.0).sum(), (0, 1, 2)
    )
    # 4 blocks of 512: 10 on and below the diagonal, or with the window the diagonal and the 3 below
    # it, each row's second beside them.
    blocks = 10 if window == 0 else 8
    # Forward two products; backward the scores and their gradient twice, and one each for q, k and
    # v; and out·gradient, row by row.
    assert (
        count(run, x, x, x) == B * N * blocks * (2 + 3 + 4) * 2 * 512 * 512 * H + 2 * B * T * N * H
    )


@pytest.mark.mesh
def test_what_every_device_does_counts_on_all():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    part = jax.shard_map(
        lambda x, w: x @ w,
        mesh=mesh,
        in_specs=(P("data"), P()),
        out_specs=P("data"),
        check_vma=False,
    )
    assert count(part, jax.ShapeDtypeStruct((64, 16), jnp.float32), W) == 2 * 64 * 16 * 32
