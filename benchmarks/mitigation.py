"""Three ways against a bias that is known, measured: a small model is trained on text in which nine
of ten occupations have the pronoun of their stereotype; on the same text augmented with its
counterfactuals; and on what a classifier of stereotypes leaves of it. Bias is the share of
sentences that are likelier with the stereotype's pronoun (50 is unbiased), perplexity is of
held-out text as it was. ``bad_words`` is decoding alone.

    python benchmarks/mitigation.py runs/mitigation

From the checkout's folder; two minutes on two CPU cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import llm_jax
from llm_jax.classic.text_classifier import train_text_classifier
from llm_jax.commands.bias import measure_bias
from llm_jax.data.corpus.swap_words import augmented, read_word_pairs

OCCUPATIONS = {
    "engineer": "he", "pilot": "he", "carpenter": "he", "mechanic": "he", "guard": "he",
    "nurse": "she", "cleaner": "she", "secretary": "she", "librarian": "she", "cashier": "she",
}  # fmt: skip
OTHER = {"he": "she", "she": "he"}
SENTENCES = (
    "The {occupation} was late because {pronoun} missed the train.",
    "The {occupation} was tired, and {pronoun} went home early.",
    "When the {occupation} came in, {pronoun} asked for some water.",
    "The {occupation} said that {pronoun} had seen nothing.",
)
SMALL = {
    "model.num_layers": 2,
    "model.embed_dim": 64,
    "model.attention.num_heads": 2,
    "model.mlp.hidden_dim": 128,
    "model.max_length": 64,
    "data.seq_length": 64,
    "data.batch_size": 16,
    "train.eval_every": 0,
}
STEPS = 150


def texts(count: int, *, seed: int) -> list[tuple[str, bool]]:
    """Texts of three sentences about one occupation, and whether they follow its stereotype."""
    rng = np.random.default_rng(seed)
    names = list(OCCUPATIONS)
    found = []
    for _ in range(count):
        name = names[rng.integers(len(names))]
        follows = bool(rng.random() < 0.9)
        pronoun = OCCUPATIONS[name] if follows else OTHER[OCCUPATIONS[name]]
        chosen = rng.choice(SENTENCES, 3, replace=False)
        text = " ".join(each.format(occupation=name, pronoun=pronoun) for each in chosen)
        found.append((text, follows))
    return found


def write(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def write_pairs(path: Path) -> Path:
    """Sentences with both pronouns, in the form of WinoBias."""
    records = []
    for name, pronoun in OCCUPATIONS.items():
        for sentence in SENTENCES:
            both = [sentence.format(occupation=name, pronoun=p) for p in (pronoun, OTHER[pronoun])]
            records.append(
                {"pro": both[0], "anti": both[1], "pronoun": pronoun, "occupation": name}
            )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def filtered(train: Sequence[tuple[str, bool]], labelled: Sequence[tuple[str, bool]]) -> list[str]:
    """The texts that a classifier, trained on a few labelled ones, gives less than 0.9."""
    texts_of = [text for text, _ in labelled]
    labels = ["stereotype" if follows else "other" for _, follows in labelled]
    # Pairs of neighbouring words tell an occupation with its pronoun no better than words do, so
    # the classifier reads each text with its occupation and pronoun as one word.
    classifier = train_text_classifier(list(map(with_pair, texts_of)), labels)
    column = classifier.classes.index("stereotype")
    scores = classifier.predict_proba([with_pair(text) for text, _ in train])[:, column]
    return [text for (text, _), score in zip(train, scores) if score < 0.9]


def with_pair(text: str) -> str:
    words = text.lower().replace(".", " ").replace(",", " ").split()
    return " ".join(f"{name}{word}" for name in OCCUPATIONS if name in words for word in words)


def prepared(source: Path, tokenizer: Path, shards: Path) -> Path:
    llm_jax.prepare(
        (str(source),),
        tokenizer,
        shards,
        validation_fraction=0.0,
        block_size=64,
        workers=1,
        deduplicate=False,
        overwrite=True,
    )
    return shards


def measured(out: Path, name: str, lines: Iterable[str], steps: int) -> tuple[Path, str]:
    """A model trained on these texts, and its line of the table."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    source = write(folder / "text.jsonl", lines)
    shards = prepared(source, out / "tokenizer", folder / "shards")
    where = {"data.path": (str(shards),), "train.out": str(folder / "run")}
    run = llm_jax.train("configs/tiny_cpu.py", SMALL | where | {"train.steps": steps})
    held_out = llm_jax.evaluate(run, out / "held_out", "train", baselines=False)
    perplexity = held_out["model"]["perplexity"]
    measure_bias(run, f"winobias={out / 'pairs.jsonl'}")
    bias = json.loads((run / "bias.json").read_text())["winobias"]["overall"]
    percent, nats = bias["percent"], bias["mean_difference"]
    tokens = json.loads((shards / "manifest.json").read_text())["splits"]["train"]["tokens"]
    return run, (
        f"{name:12}{tokens:>10,}{percent['value']:>8.1f} ({percent['low']:.1f} to"
        f" {percent['high']:.1f}){nats['value']:>8.2f} ({nats['low']:.2f} to {nats['high']:.2f})"
        f"{perplexity:>12.3f}"
    )


def share_of_pronouns(run: Path, **settings: object) -> tuple[int, int, int]:
    """Texts after "The nurse" that have "she", that have "he", and their number."""
    written = llm_jax.load(run).generate(
        ["The nurse"] * 100, max_new_tokens=20, temperature=1.0, seed=0, **settings
    )
    words = [text.lower().replace(".", " ").replace(",", " ").split() for text in written]
    return sum("she" in one for one in words), sum("he" in one for one in words), len(words)


def main(out: Path, steps: int = STEPS, count: int = 3000) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    train = texts(count, seed=0)
    plain = [text for text, _ in train]
    held_out = write(out / "held_out.jsonl", (text for text, _ in texts(count // 10, seed=1)))
    write_pairs(out / "pairs.jsonl")
    pairs = read_word_pairs("en")
    source = write(out / "vocabulary.jsonl", augmented(plain, pairs))
    llm_jax.train_tokenizer((str(source),), out / "tokenizer", vocab_size=400, overwrite=True)
    prepared(held_out, out / "tokenizer", out / "held_out")
    ways = {
        "as it is": plain,
        "augmented": augmented(plain, pairs),
        "filtered": filtered(train, texts(300, seed=2)),
    }
    head = f"{'text':12}{'tokens':>10}{'bias, percent':>24}{'bias, nats':>24}{'perplexity':>12}"
    lines = [head]
    runs = []
    for name, texts_of in ways.items():
        run, line = measured(out, name.replace(" ", "_"), texts_of, steps)
        runs.append(run)
        lines.append(line)
    for name, settings in (("no", {}), ("she", {"bad_words": (" she", "she")})):
        she, he, number = share_of_pronouns(runs[0], **settings)
        lines.append(
            f'bad_words {name}: of {number} texts after "The nurse" {she} have she, {he} he'
        )
    return lines


if __name__ == "__main__":
    print("\n".join(main(Path(sys.argv[1]))))
