"""Which tokens end a text or an answer: everything that the files of a model say about it, in one
tuple of ids.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm_jax.tokenizers.chat import end_of_turn
from llm_jax.tokenizers.hf_config import Declared


def all_ends(
    eos: tuple[int, ...], declared: Declared, special: Mapping[str, int]
) -> tuple[int, ...]:
    """Ids at which generation stops, each once.

    The tokenizer's own end comes first, since documents are closed with it; then the ids that
    generation_config.json and config.json declare; then the token that ends an answer in the chat
    template (``end_of_turn``).

    Args:
        eos: the tokenizer's own end, or nothing.
        declared: what the folder says.
        special: text -> id of the special tokens of the vocabulary.
    """
    template = declared.chat_templates.get("default", "")
    tokens = {name: text for name, text in declared.named.items() if text is not None}
    turn = end_of_turn(template, tokens, special) if template else ""
    ends = (*eos, *declared.ids["eos"], *([special[turn]] if turn else []))
    return tuple(dict.fromkeys(ends))
