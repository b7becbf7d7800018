"""The tokens that end a text or an answer, collected from all files of a model."""

from __future__ import annotations

from collections.abc import Mapping

from llm_jax.tokenizers.chat import end_of_turn
from llm_jax.tokenizers.hf_config import Declared


def all_ends(
    eos: tuple[int, ...], declared: Declared, special: Mapping[str, int]
) -> tuple[int, ...]:
    """Ids at which generation stops, each once.

    The tokenizer's own end comes first, since it closes documents. The ids that
    generation_config.json and config.json declare follow, and then the token that ends an answer in
    the chat template (``end_of_turn``).

    Args:
        eos: The tokenizer's own end, or an empty tuple.
        declared: What the folder declares.
        special: Text -> id of the special tokens of the vocabulary.
    """
    ends = [*eos, *declared.ids["eos"]]
    template = declared.chat_templates.get("default", "")
    if template:
        tokens = {name: text for name, text in declared.named.items() if text is not None}
        turn = end_of_turn(template, tokens, special)
        if turn:
            ends.append(special[turn])
    return tuple(dict.fromkeys(ends))
