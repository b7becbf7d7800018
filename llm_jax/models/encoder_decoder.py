"""The encoder–decoder transformer as a ``Model``: two stacks of the one block library around one
embedding.

The decoder's parameters are where those of a decoder alone are; the encoder's are the same tree
under ``encoder``, less the embedding, which both share. Decoding runs the encoder once: what each
layer's cross attention makes of its output is kept in the cache.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.config.validate_model import validate_model
from llm_jax.models.contract import Model, Output, rows_of
from llm_jax.models.cross import Memory
from llm_jax.models.decoder import decoder
from llm_jax.ops.cache import Cache
from llm_jax.types import Batch, ConfigError, Params, Tokens


def encoder_decoder(config: ModelConfig, execution: ExecutionConfig) -> Model:
    """A model whose decoder attends to ``batch.encoder``. ``execution`` must be resolved:
    see ``models.resolve_execution``.

    Raises ConfigError for an architecture that cannot be built.
    """
    validate_model(config)
    reads, writes = decoder(config.encoder_stack, execution), decoder(config, execution)

    def with_encoder(tree: Params, encoder: Params) -> Params:
        return {
            **tree,
            "encoder": {name: part for name, part in encoder.items() if name != "embed"},
        }

    def init(key: Array) -> Params:
        keys = jax.random.split(key)
        return with_encoder(writes.init(keys[0]), reads.init(keys[1]))

    def check_length(length: int) -> None:
        if length > config.max_length:
            raise ConfigError(
                f"batch.encoder has rows of {length}, more than model.max_length"
                f" {config.max_length}"
            )

    def read(params: Params, encoder: Tokens, dropout_key: Array | None) -> Memory:
        check_length(encoder.ids.shape[1])
        row = Batch(encoder, targets=encoder.ids, loss_mask=encoder.segment_ids != 0)
        out = reads.apply(
            {"embed": params["embed"], **params["encoder"]}, row, dropout_key=dropout_key
        )
        return Memory(out.hidden, encoder.segment_ids)

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
        if goes_on and batch.encoder is not None:
            raise ConfigError(
                "batch.encoder is given for rows that go on, and an encoder reads where rows begin:"
                " leave it out, or set begin"
            )
        if batch.encoder is not None:
            memory = read(params, batch.encoder, keys[0])
        elif goes_on:
            memory = Memory(None, cache.encoder_segments)
        else:
            raise ConfigError(
                "batch.encoder is None, and model.encoder is 'on':"
                " give what the encoder reads, or a cache in which it is"
            )
        return writes.apply(params, batch, cache, dropout_key=keys[1], begin=begin, memory=memory)

    def prefill_batch(tokens: Array, lengths: Array) -> Batch:
        check_length(tokens.shape[1])
        start = rows_of(
            jnp.full((tokens.shape[0], 1), config.start_token, jnp.int32), jnp.ones_like(lengths)
        )
        return start._replace(encoder=rows_of(tokens, lengths).inputs)

    specs = with_encoder(writes.specs, reads.specs)
    return writes._replace(init=init, apply=apply, specs=specs, prefill_batch=prefill_batch)
