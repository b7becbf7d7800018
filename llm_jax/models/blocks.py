"""One transformer block, and running a stack of them from parameters stacked on a leading
L axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.config.validate import remat_names
from llm_jax.models.cross import CrossAttention, Memory
from llm_jax.models.latent import LatentAttention
from llm_jax.models.layers import Attention, Mlp, Norm, place
from llm_jax.models.moe import ExpertMlp
from llm_jax.models.parameters import stacked
from llm_jax.ops.cache import Chunk, LayerCache
from llm_jax.ops.masks import Mask
from llm_jax.ops.nn import dropout
from llm_jax.sharding import HOST_MEMORY, constrain_with_grad
from llm_jax.types import Params


class BlockInput(NamedTuple):
    """What every layer shares: masks by window width, angles by rotation (``ModelConfig.rope``),
    dropout key, what the call appends to the cache (None without one), and which tokens count in
    the loss (float32 [B, T], or None with a cache, where experts have no balance to learn); the
    bias of relative positions by window width, and what an encoder read with who may see what of
    it, each where there is one.
    """

    masks: dict[int, Mask]
    angles: dict[str, tuple[Array, Array] | None]
    dropout_key: Array | None
    chunk: Chunk | None
    loss_weights: Array | None
    bias: dict[int, Array] | None = None
    memory: Memory | None = None
    memory_mask: Mask = Mask()


# What a layer says of its experts (``models.moe``): float32 sums over counted tokens, {} of a layer
# without any.
Aux = dict[str, Array]


class Block(nn.Module):
    """Attention and MLP with residuals, and attention over an encoder's output between them where
    there is one; norm before, after or around each, one after the other or in parallel.
    """

    config: ModelConfig
    execution: ExecutionConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Mask,
        angles: tuple[Array, Array] | None,
        key: Array | None,
        cache: LayerCache | None,
        loss_weights: Array | None,
        bias: Array | None = None,
        memory: Array | None = None,
        memory_mask: Mask = Mask(),  # noqa: B008 (frozen)
        chunk: Chunk | None = None,
    ) -> tuple[Array, LayerCache | None, Aux]:
        """x [B, T, D] through the block, the cache with the chunk written, and what its experts
        say. memory: an encoder's output, or None where the cache has its keys and values.
        """
        c = self.config
        keys = (
            (None, None, None)
            if key is None
            else tuple(jax.random.split(key, 3 if c.encoder else 2))
        )
        before, after = (
            c.norm.position in ("pre", "sandwich"),
            c.norm.position in ("sandwich", "output"),
        )
        length, between = position_axes(self.execution, x.shape[1], cached=cache is not None)

        def sub_layer(name: str, h: Array, layer: Callable, key: Array | None) -> tuple[Array, Any]:
            y = (
                Norm(c, name=f"{name}_norm")(h)
                if before and (c.norm.attention or name != "attention")
                else h
            )
            if between != length and not self.is_initializing():
                y = constrain_with_grad(
                    y, ("batch", length, "act_embed"), ("batch", between, "act_embed")
                )
            y, more = layer(y)
            y = place(self, y, "batch", between, "act_embed")
            y = checkpoint_name(y, "mlp_out") if name == "mlp" else y
            y = Norm(c, name=f"{name}_post_norm")(y) if after else y
            y = y if c.residual_scale == 1 else y * jnp.asarray(c.residual_scale, y.dtype)
            return dropout(y, c.dropout, key), more

        sharded_attention = (LatentAttention if c.latent else Attention)(
            c, self.execution, name="attention"
        )
        added = {} if bias is None else {"bias": bias}
        own = None if cache is None else cache.own
        if c.experts:
            experts = ExpertMlp(c, name="mlp")

            def mlp(h):
                return experts(h, length, between, loss_weights)
        else:
            dense = Mlp(c, c.mlp.hidden_dim, name="mlp")

            def mlp(h):
                return (dense(h, length), {})

        a, own = sub_layer(
            "attention",
            x,
            lambda h: sharded_attention(h, length, mask, angles, own, **added, chunk=chunk),
            keys[0],
        )
        post = c.norm.position == "post"
        if c.parallel_residual:
            m, aux = sub_layer("mlp", x, mlp, keys[1])
            x = x + a + m
            x = Norm(c, name="post_norm")(x) if post else x
            return x, None if cache is None else cache._replace(own=own), aux
        x = Norm(c, name="attention_norm")(x + a) if post else x + a
        if c.encoder:
            cross = CrossAttention(c, self.execution, name="cross_attention")

            def run(h):
                return cross(h, length, memory, memory_mask, cache and cache.cross)

            a, cross_cache = sub_layer("cross_attention", x, run, keys[2])
            x = Norm(c, name="cross_attention_norm")(x + a) if post else x + a
            cache = cache and cache._replace(cross=cross_cache)
        m, aux = sub_layer("mlp", x, mlp, keys[1])
        x = Norm(c, name="mlp_norm")(x + m) if post else x + m
        return x, None if cache is None else cache._replace(own=own), aux


def position_axes(
    execution: ExecutionConfig, length: int, *, cached: bool
) -> tuple[str | None, str | None]:
    """Logical axes of the ``length`` positions of a row, in a layer's products and between them.

    Between them they are also split over mesh.tensor (Korthikanti et al. 2022) where it divides
    them. With a cache, tokens come one after another and are not split.
    """
    if cached:
        return None, None
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not execution.shard_sequence or mesh.shape["tensor"] == 1:
        return "length", "length"
    return "length", (
        "length" if length % (mesh.shape["context"] * mesh.shape["tensor"]) else "act_length"
    )


def init_stack(block: Block, key: Array, num_layers: int, *inputs: object) -> Params:
    """Boxed parameters of ``num_layers`` blocks, every array with a leading L axis."""
    keys = jax.random.split(key, num_layers)
    return stacked(jax.vmap(lambda k: block.init(k, *inputs)["params"])(keys))


def run_stack(
    block: Block,
    params: Params,
    config: ModelConfig,
    execution: ExecutionConfig,
    x: Array,
    shared: BlockInput,
    cache: tuple[LayerCache, ...] | None,
    pick: Callable[[Params], Params] = lambda p: p,
    start: int = 0,
) -> tuple[Array, tuple[LayerCache, ...] | None, Aux]:
    """x [B, T, D] through all layers; with a cache of each layer, these caches with this call's
    chunk written; what the layers say of their experts, [L, …].

    ``params`` are stacked on L, or (see ``params.layout``) a tuple of one tree per layer, which run
    unrolled. Unrolled, or scanned over repeats of the patterns of windows and rotations
    (so that these stay static in every layer); layers beyond the last whole repeat are unrolled
    after the scan. ``pick``: what a layer makes of its part of ``params``, made again where the
    backward pass recomputes the layer. ``start``: layers of the model before these.
    """

    def layer(
        l: int | Array, like: int, p: Params, x: Array, kv: LayerCache | None
    ) -> tuple[Array, LayerCache | None, Aux]:
        """Layer ``l``, which has the window and the rotation of layer ``like``."""
        key = (
            None
            if shared.dropout_key is None
            else jax.random.fold_in(shared.dropout_key, start + l)
        )
        window = config.window(start + like)
        mask, angles = shared.masks[window], shared.angles[config.rotation(start + like)]
        bias = None if shared.bias is None else shared.bias[window]
        memory = None if shared.memory is None else shared.memory.hidden
        return block.apply(
            {"params": pick(p)},
            x,
            mask,
            angles,
            key,
            kv,
            shared.loss_weights,
            bias,
            memory,
            shared.memory_mask,
            shared.chunk,
        )

    L, period = config.num_layers, config.period
    scanned = (
        L // period * period if execution.layers == "scan" and not isinstance(params, tuple) else 0
    )
    kvs = [None] * L if cache is None else list(cache)
    written: list = []
    by_layers: list[Aux] = []

    if scanned:

        def group(x: Array, xs: tuple) -> tuple:
            index, ps, kv = xs
            kv_out, aux_out = [], []
            for i in range(period):
                x, kv_i, aux = step(i)(
                    index * period + i, jax.tree.map(lambda a, i=i: a[i], ps), x, kv[i]
                )
                kv_out.append(kv_i)
                aux_out.append(aux)
            return x, (tuple(kv_out), jax.tree.map(lambda *a: jnp.stack(a), *aux_out))

        def step(i: int) -> Callable:
            return remat(lambda l, p, x, kv: layer(l, i, p, x, kv), execution.remat, in_scan=True)

        repeats = scanned // period
        ps = jax.tree.map(lambda a: a[:scanned].reshape(repeats, period, *a.shape[1:]), params)
        # Stacked by place in the pattern, as layers of other windows have other caches.
        kv = tuple(_stacked(kvs[i:scanned:period]) for i in range(period))
        x, (kv, aux) = jax.lax.scan(group, x, (jnp.arange(repeats), ps, kv))
        by_layers.append(jax.tree.map(lambda a: a.reshape(scanned, *a.shape[2:]), aux))
        written = [
            jax.tree.map(lambda a, r=l // period: a[r], kv[l % period]) for l in range(scanned)
        ]

    if isinstance(params, tuple):
        rest = list(params)
    else:
        rest = unstack(
            jax.tree.map(lambda a: a[scanned:], params) if scanned else params, L - scanned
        )
    for l in range(scanned, L):
        run = remat(lambda p, x, kv, l=l: layer(l, l, p, x, kv), execution.remat, in_scan=False)
        x, w, aux = run(rest[l - scanned], x, kvs[l])
        written.append(w)
        by_layers.append(jax.tree.map(lambda a: a[None], aux))
    aux = jax.tree.map(lambda *a: jnp.concatenate(a), *by_layers)
    return x, None if cache is None else tuple(written), aux


def _stacked(caches: list) -> LayerCache | None:
    """The caches of layers that are alike, with a leading axis; None of layers without any."""
    return None if caches[0] is None else jax.tree.map(lambda *a: jnp.stack(a), *caches)


def unstack(params: Params, layers: int) -> list[Params]:
    """Per-layer trees of a stacked tree. ``split`` transposes to one concatenation, where indexing
    would pad L times.
    """
    if layers == 0:
        return []
    leaves, treedef = jax.tree.flatten(params)
    pieces = [jax.lax.split(a, (1,) * layers, axis=0) for a in leaves]
    return [treedef.unflatten([jnp.squeeze(p[l], 0) for p in pieces]) for l in range(layers)]


def remat(f: Callable, policy: str, *, in_scan: bool) -> Callable:
    """``f`` recomputed in the backward pass as ``policy`` says (see ExecutionConfig.remat)."""
    if policy == "none":
        return f
    if policy == "full":
        save = jax.checkpoint_policies.nothing_saveable
    elif policy == "dots":
        save = jax.checkpoint_policies.save_only_these_names("dot", "attention_out")
    elif policy.startswith("offload:"):
        save = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(remat_names(policy)),
            offload_src="device",
            offload_dst=HOST_MEMORY,
        )
    else:
        save = jax.checkpoint_policies.save_only_these_names(*remat_names(policy))
    # Inside a scan the loop itself keeps XLA from undoing the recomputation.
    return jax.checkpoint(f, policy=save, prevent_cse=not in_scan)
