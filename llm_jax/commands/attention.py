"""``llm-jax attention``: which tokens of a text each head of a model attends to."""

from __future__ import annotations

from pathlib import Path

from llm_jax.api.texts import TextRows
from llm_jax.checkpoints.open_run import open_run
from llm_jax.commands.attention_page import AttentionPage, page
from llm_jax.evaluation.attention import attention_of, head_figures
from llm_jax.files import write_atomic
from llm_jax.ranges import Natural, checked
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import ConfigError


@checked
def show_attention(
    run: Path,
    text: str = "",
    *,
    out: Path,
    encoder: str = "",
    layer: tuple[Natural, ...] = (),
    step: Natural | None = None,
) -> str:
    """Write a page with the attention of a text: a map of every head of the layers that are chosen,
    and entropy, norm, weight of the first token and distance of every head of the model.

    Args:
        run: folder of the run or model.
        text: the text.
        out: the HTML file to write.
        encoder: what the encoder reads, for a model with one.
        layer: layers whose maps are drawn, from 0 on; all if not given.
        step: which checkpoint of a run; the newest if not given.
    """
    if not text:
        raise ConfigError("text is empty; give --text a text")
    opened = open_run(run, step)
    config = opened.config.model
    for one in layer:
        if one >= config.num_layers:
            raise ConfigError(
                f"layer is {one}, and the model has the layers 0 to {config.num_layers - 1}"
            )
    tokenizer = open_tokenizer(opened.folder / "tokenizer")
    rows = TextRows(config, lambda: tokenizer)
    ids = rows.token_ids(text)
    reads = rows.encoder_rows(encoder or None, 1)
    maps = attention_of(opened, ids, reads[0] if reads else ())
    drawn = [one for one in maps if not layer or one.layer in layer]
    shown = AttentionPage(
        title=f"Attention of {opened.folder.name}, step {opened.step}",
        tokens=[tokenizer.piece(id) for id in ids],
        encoder_tokens=[tokenizer.piece(id) for id in (reads[0] if reads else ())],
        maps=drawn,
        figures=head_figures(maps),
    )
    write_atomic(out, page(shown).encode())
    return f"{len(drawn)} maps of {len(ids)} tokens written to {out}"
