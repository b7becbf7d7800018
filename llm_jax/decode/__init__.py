"""Autoregressive decoding over two contracts: the decode step and the sampler."""

from llm_jax.decode.generate import Generator
from llm_jax.decode.programs import decode_step, extend, prefill

__all__ = ["Generator", "decode_step", "extend", "prefill"]
