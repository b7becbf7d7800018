"""BLEU of a translation run on held-out pairs, beside two baselines.

    python benchmarks/translate.py RUN pairs/train.jsonl pairs/test.jsonl --source en --target pt
    [--show 10] [--out translations.jsonl]

The baselines are copying the source, and a word-by-word dictionary: IBM model 1 (Brown et al.
1993), five rounds from even on the training pairs, with words cut from punctuation and lower-cased.
Each source word is written as its likeliest word, with its capital, and an unknown word as it is.

The run translates every held-out text greedily, texts of like length together, with room for twice
the tokens of the longest. BLEU is sacreBLEU's, with its signature.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

_WORDS = re.compile(r"\w+|[^\w\s]")


def read_pairs(path: Path, source: str, target: str) -> list[tuple[str, str]]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(record[source], record[target]) for record in records]


def numbered(texts: Iterable[str]) -> tuple[dict[str, int], list[np.ndarray]]:
    """Each text as the numbers of its words, lower-cased."""
    known: dict[str, int] = {}
    rows = [
        np.array([known.setdefault(w, len(known)) for w in _WORDS.findall(text.lower())], np.int64)
        for text in texts
    ]
    return known, rows


def dictionary(pairs: Sequence[tuple[str, str]], rounds: int = 5) -> dict[str, str]:
    """The likeliest target word of each source word by IBM model 1, without the empty word."""
    sources, reads = numbered(s for s, _ in pairs)
    targets, writes = numbered(t for _, t in pairs)
    # One entry for each place of a target word and each source word that may have made it.
    s = np.concatenate([np.tile(a, len(b)) for a, b in zip(reads, writes)])
    t = np.concatenate([np.repeat(b, len(a)) for a, b in zip(reads, writes)])
    place = np.repeat(
        np.arange(sum(map(len, writes))),
        np.concatenate([np.full(len(b), len(a)) for a, b in zip(reads, writes)]),
    )
    cells, cell = np.unique(s * len(targets) + t, return_inverse=True)
    of_source = cells // len(targets)
    likely = np.ones(len(cells))
    for _ in range(rounds):
        share = likely[cell]
        share /= np.bincount(place, share)[place]
        counts = np.bincount(cell, share, len(cells))
        likely = counts / np.bincount(of_source, counts)[of_source]
    order = np.lexsort((likely, of_source))
    best = order[np.flatnonzero(np.diff(np.append(of_source[order], -1)))]
    words = list(targets)
    return {source: words[cells[b] % len(targets)] for source, b in zip(sources, best)}


def word_by_word(text: str, words: dict[str, str]) -> str:
    def one(match: re.Match) -> str:
        found = words.get(match[0].lower(), match[0])
        return found.capitalize() if match[0][:1].isupper() else found

    return _WORDS.sub(one, text)


def translate(run: Path, texts: Sequence[str], rows: int = 32) -> list[str]:
    """Greedy translations, texts of like length together."""
    from llm_jax.checkpoints.open_run import open_run
    from llm_jax.config import DecodeConfig
    from llm_jax.decode import Generator
    from llm_jax.tokenizers.open_tokenizer import open_tokenizer
    from llm_jax.tokenizers.tokenizer import encoder_ids

    opened = open_run(run)
    tokenizer = open_tokenizer(run / "tokenizer")
    generator = Generator(opened.model, opened.params)
    ids = encoder_ids(tokenizer, texts)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = [""] * len(ids)
    for start in range(0, len(order), rows):
        here = order[start : start + rows]
        prompts = [ids[i] for i in here]
        # A few lengths only, so that few programs are compiled.
        room = -(-(2 * max(map(len, prompts)) + 16) // 64) * 64
        settings = DecodeConfig(min(room, opened.config.model.max_length), temperature=0.0)
        for i, written in zip(here, generator.generate(prompts, settings, tokenizer.eos_ids)):
            out[i] = tokenizer.decode(written)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("run", "train", "test"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--source", default="en")
    parser.add_argument("--target", default="pt")
    parser.add_argument("--show", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import sacrebleu

    test = read_pairs(args.test, args.source, args.target)
    sources = [source for source, _ in test]
    references = [target for _, target in test]
    words = dictionary(read_pairs(args.train, args.source, args.target))
    began = time.perf_counter()
    written = translate(args.run, sources)
    seconds = time.perf_counter() - began
    metric = sacrebleu.BLEU()
    systems = {
        "copying": sources,
        "dictionary": [word_by_word(source, words) for source in sources],
        "the run": written,
    }
    for name, texts in systems.items():
        print(f"BLEU {metric.corpus_score(texts, [references]).score:6.2f}  {name}")
    print(metric.get_signature())
    print(f"{len(test):,} held-out pairs, translated in {seconds:.0f} s")
    for i in np.linspace(0, len(test) - 1, args.show).astype(int).tolist():
        print(f"\n{args.source}   {sources[i]}\n{args.target}   {references[i]}\nrun  {written[i]}")
    if args.out:
        lines = (
            json.dumps({"source": s, "reference": r, "written": w}, ensure_ascii=False)
            for (s, r), w in zip(test, written)
        )
        args.out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
