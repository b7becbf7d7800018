"""``llm-jax``: one line per verb. Modules are imported only when their verb runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from llm_jax.host_memory import allocating, keep_freed_memory


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
        target: ``module:function`` under ``llm_jax``; its arguments are the options.
        positional: names of the arguments that may be given without their option.
        meaning: what the verb does, for the list of verbs.
        raw: the function takes the words of the command line as they are.
        forms: other targets, each by the option that asks for it.
    """

    target: str
    positional: tuple[str, ...]
    meaning: str
    raw: bool = False
    forms: Mapping[str, str] = MappingProxyType({})

    def target_of(self, words: Sequence[str]) -> str:
        """The target that words of the command line ask for."""
        given = {word.partition("=")[0] for word in words}
        return next((to for option, to in self.forms.items() if option in given), self.target)


VERBS = {
    "quickstart": Verb(
        "commands.quickstart:quickstart",
        (),
        "text to a trained, evaluated model and a report, in one go",
    ),
    "tokenizer train": Verb(
        "data.prepare.train_tokenizer:train_tokenizer",
        (),
        "train a SentencePiece vocabulary on text files",
    ),
    "tokenizer import": Verb(
        "tokenizers.import_tokenizer:import_tokenizer",
        ("source",),
        "take over the tokenizer of a Hugging Face model",
    ),
    "tokenizer export": Verb(
        "tokenizers.export_tokenizer:export_tokenizer",
        ("folder",),
        "write a tokenizer as Hugging Face's read it",
    ),
    "data prepare": Verb("data.prepare.pipeline:prepare", (), "tokenise text files into shards"),
    "data inspect": Verb(
        "data.shards.inspect:inspect_shards",
        ("path",),
        "counts, packing and decoded rows of a folder of shards",
    ),
    "plan": Verb(
        "commands.plan:plan",
        ("config",),
        "compile a config's step for a TPU slice on this machine: memory, traffic, time, cost",
    ),
    "train": Verb(
        "commands.train:main",
        (),
        "CONFIG [--section.key=value …]: train, or go on with, a run",
        raw=True,
    ),
    "eval": Verb(
        "commands.evaluate:evaluate_run",
        ("run",),
        "perplexity and bits per byte of a run; with --losses, of each document; with --tasks, its"
        " answers to questions",
        forms={
            "--tasks": "commands.evaluate_tasks:evaluate_on_tasks",
            "--losses": "commands.losses:write_losses",
        },
    ),
    "eval compare": Verb(
        "commands.evaluate_tasks:compare_results",
        (),
        "a page of several evaluations on tasks, side by side",
    ),
    "generate": Verb("commands.generate:generate", ("run",), "write text with a run"),
    "chat": Verb("commands.chat:chat", ("run",), "talk with a model in the terminal"),
    "embed": Verb(
        "commands.embed:embed", ("run",), "vectors of texts, by the mean over their tokens"
    ),
    "task classify": Verb(
        "commands.classify:classify",
        ("train",),
        "a classifier of texts, by their words or with --model, and its score on held-out texts",
        forms={"--model": "commands.tasks.classify:finetune_classifier"},
    ),
    "task label": Verb(
        "commands.tasks.label:label_texts",
        ("classifier", "texts"),
        "the labels that a trained classifier gives to new texts",
    ),
    "task tag": Verb(
        "commands.tasks.tag:finetune_tagger",
        ("train",),
        "a model that labels words, and its score on held-out sentences",
    ),
    "task embed": Verb(
        "commands.tasks.embed:finetune_embedder",
        ("train",),
        "vectors of texts, learnt from pairs, and how well they find held-out ones",
    ),
    "task similarity": Verb(
        "commands.tasks.similarity:similarity",
        ("pairs",),
        "how a model's vectors agree with scores of how similar texts are",
    ),
    "task retrieve": Verb(
        "commands.tasks.similarity:retrieve",
        ("queries",),
        "how well a model's vectors find the documents that are relevant",
    ),
    "task summarize": Verb(
        "commands.tasks.write:summarize",
        ("documents",),
        "summaries that a model writes, by ROUGE, beside the first sentences",
    ),
    "task translate": Verb(
        "commands.tasks.write:translate",
        ("sentences",),
        "translations that a model writes, by BLEU, chrF and TER",
    ),
    "task answer": Verb(
        "commands.tasks.write:answer",
        ("questions",),
        "short answers that a model writes, by exact match and F1",
    ),
    "task mask": Verb(
        "commands.tasks.mask:mask",
        ("texts",),
        "hidden tokens that an encoder predicts",
    ),
    "word2vec": Verb(
        "commands.word2vec:train", ("input",), "vectors of words, from text, by word2vec"
    ),
    "vectors nearest": Verb(
        "commands.word2vec:nearest", ("vectors", "words"), "the nearest words of words"
    ),
    "vectors analogy": Verb(
        "commands.word2vec:analogy",
        ("vectors", "words"),
        "what is to a third word as the second is to the first",
    ),
    "vectors eval": Verb(
        "commands.word2vec:evaluate",
        ("vectors",),
        "word vectors on similarities of words and on analogies",
    ),
    "vectors page": Verb(
        "commands.word2vec:page",
        ("vectors", "words"),
        "a page with a picture of words and their neighbours",
    ),
    "toxicity": Verb(
        "commands.toxicity:measure_toxicity",
        ("run", "prompts"),
        "how toxic a model's texts are, by a classifier of your own",
    ),
    "bias": Verb(
        "commands.bias:measure_bias",
        ("run",),
        "how much more likely a model finds stereotypes than their opposites",
    ),
    "memorization": Verb(
        "commands.memorization:memorization",
        ("run", "data"),
        "how far a model goes on with its training text word for word",
    ),
    "contamination": Verb(
        "commands.memorization:contamination",
        ("data",),
        "which evaluation texts a folder of shards already has",
    ),
    "card": Verb("commands.card:write_card", ("run",), "a model card from the files of a run"),
    "long-context": Verb(
        "commands.long_context:long_context",
        ("run", "data"),
        "loss by position, and facts found again in long texts",
    ),
    "attention": Verb(
        "commands.attention:show_attention",
        ("run",),
        "a page of which tokens each head attends to in a text",
    ),
    "check-parity": Verb(
        "commands.parity:check_run", ("run",), "cached decoding against the full forward pass"
    ),
    "convert from-hf": Verb(
        "commands.convert:convert_from_hf", ("path",), "a model folder of transformers, to use here"
    ),
    "convert from-gguf": Verb(
        "commands.convert:convert_from_gguf",
        ("path",),
        "a GGUF file, de-quantised, with its tokenizer",
    ),
    "convert to-hf": Verb(
        "commands.convert:convert_to_hf",
        ("path",),
        "a model or run, for transformers, vLLM and llama.cpp",
    ),
    "convert inspect": Verb(
        "commands.convert:convert_inspect",
        ("path", "other"),
        "tensors of a model, or how two differ",
    ),
    "convert verify": Verb(
        "commands.convert:convert_verify", ("path", "run"), "a converted model beside transformers"
    ),
    "config explain": Verb(
        "commands.config:explain_key",
        ("config", "key"),
        "value of a setting, where it was set, what it means",
    ),
    "bench train": Verb(
        "bench.train:bench_train", ("config",), "tokens/s and MFU of the real train step"
    ),
    "bench decode": Verb(
        "bench.decode:bench_decode",
        ("config",),
        "tokens/s of cached decoding, and its share of memory bandwidth",
    ),
    "bench data": Verb("bench.data:bench_data", ("path",), "tokens/s of the loader"),
}


def usage() -> str:
    width = max(map(len, VERBS)) + 2
    lines = [f"  llm-jax {name:{width}}{verb.meaning}" for name, verb in VERBS.items()]
    return "\n".join(["usage: llm-jax VERB … (VERB --help shows every option)", "", *lines])


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit status. An error that the user can fix prints one message
    and no traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        from llm_jax import __version__

        print(__version__)
        return 0
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in VERBS), None)
    if name is None:
        import difflib

        near = difflib.get_close_matches(
            " ".join(words[:2]), VERBS, n=1
        ) or difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"llm-jax: unknown verb {' '.join(words[:2])!r}{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    return _run(name, words[len(name.split()) :])


def _run(name: str, words: list[str]) -> int:
    from llm_jax.storage.paths import bucket_refusal
    from llm_jax.types import ConfigError, DataError

    verb = VERBS[name]
    module, _, function = verb.target_of(words).partition(":")
    # Before jax is imported. Workers on data run no train step, and give their memory back.
    if not module.startswith(("data.", "tokenizers.")):
        keep_freed_memory()
    try:
        call = getattr(importlib.import_module(f"llm_jax.{module}"), function)
        # Explains memory errors that no inner block has explained.
        with allocating(
            f"llm-jax {name} {' '.join(words)}",
            "ask for less at once, or use more devices or memory",
        ):
            result = call(words) if verb.raw else _with_tyro(name, verb, call, words)
        if isinstance(result, str):
            print(result, flush=True)
    except BrokenPipeError:
        # The reader (head, less) has gone: what is left to flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # The user can fix these kinds; anything else is a bug and keeps its traceback.
        known = isinstance(error, ConfigError | DataError)
        refusal = bucket_refusal(error)
        if not known and not refusal and type(error).__name__ not in _USER_ERRORS:
            raise
        print(f"llm-jax {name}: error: {refusal or error}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


_USER_ERRORS = ("CheckpointError", "MismatchError", "NonFiniteError", "SpikeError")


def _with_tyro(name: str, verb: Verb, call: Callable, words: list[str]) -> Any:
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_path_from_word)
    wanted = list(verb.positional)
    flags: list[str] = []
    while words and wanted and not words[0].startswith("-"):
        flags += [f"--{wanted.pop(0)}", words.pop(0)]
    return tyro.cli(call, prog=f"llm-jax {name}", args=flags + words, registry=registry)


def _path_from_word(hint: Any) -> Any:
    """How tyro makes a path of a word: one of a bucket where it names one."""
    from pathlib import Path

    from tyro.constructors import PrimitiveConstructorSpec

    from llm_jax.storage.paths import path_of

    if hint.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: path_of(words[0]),
        is_instance=lambda value: isinstance(value, os.PathLike),
        str_from_instance=lambda value: [str(value)],
    )


if __name__ == "__main__":
    sys.exit(main())
