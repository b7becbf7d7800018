"""The encoder–decoder transformer as a ``Model``: two stacks of the one block library around one
embedding.

The decoder's parameters are where those of a decoder alone are; the encoder's are the same tree
under ``encoder``, less the embedding, which both share. Decoding runs the encoder once: what each
layer's cross attention makes of its output is kept in the cache.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.config.validate import validate_model
from llm_jax.models.contract import Model, Output, rows_of
from llm_jax.models.cross import Memory
from llm_jax.models.decoder import decoder
from llm_jax.ops.cache import Cache
from llm_jax.ops.positions import within_segments
from llm_jax.types import Batch, ConfigError, Params


def encoder_config(config: ModelConfig) -> ModelConfig:
    """Of the encoder alone: the same fields, seen in both directions, and no output projection of
    its own.
    """
    return dataclasses.replace(
        config,
        num_layers=config.encoder_layers,
        encoder_layers=0,
        mlp_dim=config.encoder_mlp_size,
        encoder_mlp_dim=0,
        causal=False,
        tied_embeddings=True,
        head_bias=False,
        head_transform=False,
        head_transform_bias=False,
        start_token=0,
    )


def encoder_decoder(config: ModelConfig, execution: ExecutionConfig) -> Model:
    """A model whose decoder attends to ``batch.encoder_tokens``. ``execution`` must be resolved:
    see ``models.resolve_execution``.

    Raises ConfigError for an architecture that cannot be built.
    """
    validate_model(config)
    reads, writes = decoder(encoder_config(config), execution), decoder(config, execution)

    def with_encoder(tree: Params, encoder: Params) -> Params:
        return {
            **tree,
            "encoder": {name: part for name, part in encoder.items() if name != "embed"},
        }

    def init(key: Array) -> Params:
        keys = jax.random.split(key)
        return with_encoder(writes.init(keys[0]), reads.init(keys[1]))

    def check_length(tokens: Array) -> None:
        if tokens.shape[1] > config.max_length:
            raise ConfigError(
                f"batch.encoder_tokens has rows of {tokens.shape[1]}, more than model.max_length"
                f" {config.max_length}"
            )

    def read(params: Params, batch: Batch, dropout_key: Array | None) -> Memory:
        tokens, segments = batch.encoder_tokens, batch.encoder_segment_ids
        if segments is None:
            raise ConfigError(
                "batch.encoder_segment_ids is None; give 1 for the tokens of batch.encoder_tokens,"
                " and 0 for padding"
            )
        check_length(tokens)
        row = Batch(tokens, tokens, segments != 0, segments, within_segments(segments))
        out = reads.apply(
            {"embed": params["embed"], **params["encoder"]}, row, dropout_key=dropout_key
        )
        return Memory(out.hidden, segments)

    def apply(
        params: Params,
        batch: Batch,
        cache: Cache | None = None,
        *,
        dropout_key: Array | None = None,
        begin: bool = False,
    ) -> Output:
        keys = (None, None) if dropout_key is None else tuple(jax.random.split(dropout_key))
        goes_on = cache is not None and not begin
        if goes_on and batch.encoder_tokens is not None:
            raise ConfigError(
                "batch.encoder_tokens is given for rows that go on, and an encoder reads where rows"
                " begin: leave them out, or set begin"
            )
        if batch.encoder_tokens is not None:
            memory = read(params, batch, keys[0])
        elif goes_on:
            memory = Memory(None, cache.encoder_segments)
        else:
            raise ConfigError(
                "batch.encoder_tokens is None, and model.encoder_layers is"
                f" {config.encoder_layers}: give what the encoder reads, or a cache in which it is"
            )
        return writes.apply(params, batch, cache, dropout_key=keys[1], begin=begin, memory=memory)

    def prompt(tokens: Array, lengths: Array) -> Batch:
        check_length(tokens)
        start = rows_of(
            jnp.full((tokens.shape[0], 1), config.start_token, jnp.int32), jnp.ones_like(lengths)
        )
        row = rows_of(tokens, lengths)
        return start._replace(encoder_tokens=tokens, encoder_segment_ids=row.segment_ids)

    specs = with_encoder(writes.specs, reads.specs)
    return writes._replace(init=init, apply=apply, specs=specs, prompt=prompt)
