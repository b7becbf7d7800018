"""The encoder–decoder transformer: two models of one stack around one embedding.

The decoder's parameters are where those of a decoder alone are. The encoder's are the same tree
under ``encoder``, without the embedding, which both share. In decoding the encoder runs once: the
cache keeps the keys and values that each layer's cross-attention makes of its output.
"""

from __future__ import annotations

import jax
from jax import Array

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.config.validate_model import validate_model
from llm_jax.models.contract import Model, Output
from llm_jax.models.inputs import Memory
from llm_jax.models.transformer import Transformer, split_key
from llm_jax.ops.cache import Cache
from llm_jax.types import Batch, ConfigError, Params, Tokens


def encoder_decoder(config: ModelConfig, execution: ExecutionConfig) -> Model:
    """The model whose decoder attends to what an encoder reads, ``batch.encoder``.

    Args:
        config: the model.
        execution: how it runs; it must be resolved (``models.resolve_execution``).

    Raises:
        ConfigError: the model cannot be built.
    """
    validate_model(config)
    parts = _EncoderDecoder(config, execution)
    decoder = parts.decoder
    return Model(
        init=parts.init,
        apply=parts.apply,
        logits=decoder.logits,
        head=decoder.head,
        init_cache=decoder.init_cache,
        specs=_with_encoder(decoder.specs, parts.encoder.specs),
        config=config,
    )


class _EncoderDecoder:
    """The functions of the model that are not those of its decoder."""

    def __init__(self, config: ModelConfig, execution: ExecutionConfig) -> None:
        self.config = config
        self.encoder = Transformer(config.encoder_stack, execution)
        self.decoder = Transformer(config, execution)

    def init(self, key: Array) -> Params:
        """Initial parameters."""
        keys = jax.random.split(key)
        return _with_encoder(self.decoder.init(keys[0]), self.encoder.init(keys[1]))

    def apply(
        self,
        params: Params,
        batch: Batch,
        cache: Cache | None = None,
        *,
        dropout_key: Array | None = None,
        begin: bool = False,
    ) -> Output:
        """The forward pass of a batch; see ``models.contract.Model``."""
        encoder_key, decoder_key = split_key(dropout_key)
        memory = self._memory(params, batch, None if begin else cache, encoder_key)
        return self.decoder.apply(
            params, batch, cache, dropout_key=decoder_key, begin=begin, memory=memory
        )

    def _memory(
        self, params: Params, batch: Batch, continued: Cache | None, key: Array | None
    ) -> Memory:
        """What the decoder attends to. continued: the cache of rows that go on; None if they begin.
        key: of dropout.
        """
        if batch.encoder is None:
            if continued is None:
                raise ConfigError(
                    "batch.encoder is None, and model.encoder is 'on': give what the encoder reads,"
                    " or a cache in which it is"
                )
            return Memory(None, continued.encoder_segments)
        if continued is not None:
            raise ConfigError(
                "batch.encoder is given for rows that go on, and an encoder reads where rows begin:"
                " leave it out, or set begin"
            )
        return self._encode(params, batch.encoder, key)

    def _encode(self, params: Params, tokens: Tokens, key: Array | None) -> Memory:
        check_encoder_length(self.config, tokens.ids.shape[1])
        batch = Batch(tokens, targets=tokens.ids, loss_mask=tokens.segment_ids != 0)
        own = {"embed": params["embed"], **params["encoder"]}
        out = self.encoder.apply(own, batch, dropout_key=key)
        return Memory(out.hidden, tokens.segment_ids)


def check_encoder_length(config: ModelConfig, length: int) -> None:
    """Raises ConfigError for rows of ``length`` tokens that are too long for the encoder."""
    if length > config.max_length:
        raise ConfigError(
            f"batch.encoder has rows of {length}, more than model.max_length {config.max_length}"
        )


def _with_encoder(decoder: Params, encoder: Params) -> Params:
    """The parameters (or specs) of both."""
    own = {name: part for name, part in encoder.items() if name != "embed"}
    return {**decoder, "encoder": own}
