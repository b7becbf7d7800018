"""``llm-jax convert …``: models from and to other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm_jax.config.model import ModelConfig
from llm_jax.config.sections import value_of
from llm_jax.ranges import Natural, NotNegative, Seed, checked
from llm_jax.types import ConfigError


@checked
def convert_from_hf(
    path: Path,
    out: Path,
    max_length: Natural = 0,
    dtype: str = "",
    ignore: tuple[str, ...] = (),
    encoding: str = "",
) -> str:
    """Convert a model folder of transformers (safetensors, config.json, tokenizer) into one that
    generate, eval and the others take.

    Args:
        path: folder with config.json and model.safetensors, or several such files and their index.
        out: folder to write.
        max_length: a shorter context than the model's; 0 keeps it. Of two lists of rotary factors
            it also settles which holds.
        dtype: float32, bfloat16 or float16 for the parameters on disk; empty keeps theirs.
        ignore: keys of config.json that are known to change nothing in what the model computes.
        encoding: of a tokenizer that is a file of ranks, where its name does not say: gpt2, cl100k,
            o200k, llama3 or qwen.
    """
    from llm_jax.convert.hf import from_hf

    return _next_command(
        out,
        from_hf(path, out, max_length=max_length, dtype=dtype, ignore=ignore, encoding=encoding),
    )


@checked
def convert_to_hf(
    path: Path, out: Path, family: str = "", dtype: str = "", step: Natural | None = None
) -> str:
    """Write a converted model, or a run, as a folder that transformers, vLLM and llama.cpp's
    converter load.

    Args:
        path: folder of the model or run.
        out: folder to write.
        family: what a run shall be, such as llama; a converted model has its own.
        dtype: float32, bfloat16 or float16; empty is as it is stored.
        step: which checkpoint of a run; the newest if not given.
    """
    from llm_jax.convert.hf import to_hf

    to_hf(path, out, family=family, dtype=dtype, step=step)
    return f"model in {out}"


@checked
def convert_from_gguf(
    path: Path,
    out: Path,
    max_length: Natural = 0,
    dtype: str = "float32",
    pre: str = "",
    ignore: tuple[str, ...] = (),
) -> str:
    """Convert a GGUF file, de-quantised, with its tokenizer and chat template.

    Args:
        path: the .gguf file.
        out: folder to write.
        max_length: a shorter context than the model's; 0 keeps it.
        dtype: float32, bfloat16 or float16 for the parameters on disk.
        pre: how the tokenizer cuts text, such as llama-bpe, where the file does not say.
        ignore: metadata keys that are known to change nothing in what the model computes.
    """
    from llm_jax.convert.from_gguf import from_gguf

    return _next_command(
        out, from_gguf(path, out, max_length=max_length, dtype=dtype, pre=pre, ignore=ignore)
    )


def convert_inspect(path: Path, other: Path | None = None) -> str:
    """Tensors of a run, a converted model, a folder of transformers', a .safetensors or .gguf file;
    or how those of two differ.

    Args:
        path: the folder or file.
        other: a second one, compared name by name.
    """
    from llm_jax.convert.inspect import differences, entries, tree

    return tree(entries(path)) if other is None else differences(entries(path), entries(other))


@checked
def convert_verify(
    path: Path,
    run: Path,
    text: str = "",
    length: Natural = 0,
    seed: Seed = 0,
    tolerance: NotNegative = 1e-3,
) -> int:
    """Compare a converted model with transformers' reading of its source, by position. Exit status
    1 where they differ more than allowed.

    Args:
        path: folder of transformers, or .gguf file, that was converted.
        run: the converted model.
        text: compare on this text; empty is random tokens.
        length: most tokens compared; 0 is 512, or the model's max_length if that is less.
        seed: of the random tokens.
        tolerance: largest difference that is allowed.
    """
    from llm_jax.checkpoints.open_run import open_run
    from llm_jax.convert.verify import compare, table
    from llm_jax.tokenizers.open_tokenizer import open_tokenizer
    from llm_jax.tokenizers.tokenizer import encoder_ids

    opened = open_run(run)
    m = opened.config.model
    if length > m.max_length:
        raise ConfigError(
            f"length is {length}; the model's max_length is {m.max_length}, so it must be at most"
            " that"
        )
    length = length or min(512, m.max_length)
    if not text:
        # RoBERTa gives ids up to that of padding no position.
        ids = np.random.default_rng(seed).integers(
            value_of(m, "positions.offset") or 0, m.vocab_size, length
        )
    elif m.encoder:
        ids = np.asarray(encoder_ids(open_tokenizer(run / "tokenizer"), [text])[0][:length])
    else:
        ids = np.asarray(open_tokenizer(run / "tokenizer").encode(text)[:length])
    found = compare(opened, path, ids.astype(np.int64)[None])
    worst = float(found.gap.max())
    same = worst <= tolerance
    print(table(found))
    print(
        f"{path} and {run}: {found.what} differ by at most {worst:.2e} (allowed {tolerance:.0e}):"
        f" {'equal' if same else 'NOT EQUAL'}"
    )
    return 0 if same else 1


def _next_command(out: Path, model: ModelConfig) -> str:
    verb = f"generate {out} --prompt" if model.causal else f"embed {out} --text"
    return f'{model.num_layers} layers in {out}; try: llm-jax {verb} "Once upon a time"'
