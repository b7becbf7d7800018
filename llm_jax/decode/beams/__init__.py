"""Beam search: plain, drawn, in diverse groups, and with required phrases.

``front`` takes prompts and gives texts back, ``program`` is the compiled loop, ``selection`` one
step of it, ``phrases`` that step with required phrases, and ``checks`` refuses what cannot be done.
"""

from llm_jax.decode.beams.front import Hypothesis, beam_search

__all__ = ["Hypothesis", "beam_search"]
