"""Speed of ``prepare`` against what SentencePiece alone does with the same text on the same number
of processes.

    python benchmarks/prepare.py [--text PATH …] [--megabytes 64] [--characters 4000] [--rounds 3]
    [--workers 2]

The text is that of ``--text``, read once, as one .jsonl file. Without it, it is the documentation
of Python (``python_docs``), repeated with a running number in every document so that none is a
duplicate. ``prepare`` keeps the tokens of words it has seen, so text that does not repeat is the
harder test.

"sentencepiece whole" reads the file, distributes the documents over the processes and encodes each
whole, keeping only the count; "sentencepiece lines" encodes the documents line by line. Both start
new processes each time and encode in batches of about 8 MB, as ``prepare`` does. The three take
turns; printed are medians of wall-clock time, and of processor time (all processes together), which
other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from llm_jax.data.corpus.python_docs import write_corpus
from llm_jax.data.corpus.sources import expand, read_documents
from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer

UNIT = 8 << 20
_sp = None


def write_text(path: Path, texts: Iterable[str], megabytes: float, characters: int) -> float:
    """Writes texts, joined into documents of at least ``characters``, up to a size.

    Returns:
        The megabytes of text.
    """
    size = 0
    joined = ""
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            joined += text + "\n\n"
            if len(joined) >= characters:
                file.write(json.dumps({"text": joined}, ensure_ascii=False) + "\n")
                size += len(joined.encode())
                joined = ""
            if size >= megabytes * 1e6:
                break
    return size / 1e6


def repeated(corpus: list[str]) -> Iterator[str]:
    """The documentation of Python repeated without end, every text with its number."""
    texts = [document.text for document in read_documents(expand(corpus))]
    return (f"{number}: {text}" for number, text in enumerate(itertools.cycle(texts)))


def start(model: str) -> None:
    """Load the model in a process."""
    import sentencepiece

    global _sp
    _sp = sentencepiece.SentencePieceProcessor(model_file=model)


def encode(texts: list[str], lines: bool) -> int:
    """Number of tokens."""
    if lines:
        texts = [line for text in texts for line in text.splitlines(keepends=True)]
    return sum(map(len, _sp.EncodeAsIds(texts, num_threads=1)))


def encode_lines(texts: list[str]) -> int:
    """``encode`` by lines."""
    return encode(texts, True)


def encode_whole(texts: list[str]) -> int:
    """``encode`` by documents."""
    return encode(texts, False)


def batches(path: Path) -> Iterator[list[str]]:
    """Documents of the file in lists of about UNIT characters."""
    texts: list[str] = []
    size = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1])
            if size >= UNIT:
                yield texts
                texts = []
                size = 0
    yield texts


def sentencepiece_alone(
    path: Path, model: Path, workers: int, function: Callable[[list[str]], int]
) -> float:
    """Seconds to encode the file."""
    begin = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(workers, start, (str(model),)) as pool:
        sum(pool.imap_unordered(function, batches(path)))
    return time.perf_counter() - begin


def prepared(path: Path, tokenizer: Path, out: Path, workers: int) -> float:
    """Seconds for all of ``prepare``."""
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    prepare((str(path),), tokenizer, out, workers=workers, shard_bytes=UNIT)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", nargs="*", help="files, folders or patterns; the documentation of Python without"
    )
    parser.add_argument("--megabytes", type=float, default=64)
    parser.add_argument(
        "--characters",
        type=int,
        default=4000,
        help="least length of a document; web pages have about 4000",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        megabytes, seconds = measure(Path(name), args)
    print(__doc__.strip(), "\n")
    print(
        f"{megabytes:.1f} MB of {'text of your own' if args.text else 'repeated documentation'},"
        f" documents of at least {args.characters} characters, {args.model_type},"
        f" {args.workers} processes, medians of {args.rounds}"
    )
    median = {
        run: [statistics.median(values) for values in zip(*pairs)] for run, pairs in seconds.items()
    }
    base_wall, base_processor = median["prepare"]
    for run, (wall, processor) in median.items():
        print(
            f"{run:<22}{wall:8.2f} s wall {megabytes / wall:6.1f} MB/s {processor:8.2f} s processor"
            f"   prepare takes {base_wall / wall:5.2f} × the wall,"
            f" {base_processor / processor:5.2f} × the processor time"
        )


def measure(
    folder: Path, args: argparse.Namespace
) -> tuple[float, dict[str, list[tuple[float, float]]]]:
    """The megabytes of text, and (wall, processor) seconds of every side and round."""
    if args.text:
        corpus = args.text
        texts = (document.text for document in read_documents(expand(corpus)))
    else:
        corpus = list(map(str, write_corpus(folder / "docs")))
        texts = repeated(corpus)
    path = folder / "corpus.jsonl"
    megabytes = write_text(path, texts, args.megabytes, args.characters)
    tokenizer = train_tokenizer(
        tuple(corpus), folder / "tok", vocab_size=8192, model_type=args.model_type
    )
    alone = partial(sentencepiece_alone, path, tokenizer.path, args.workers)
    runs = {
        "prepare": partial(prepared, path, folder / "tok", folder / "out", args.workers),
        "sentencepiece whole": partial(alone, encode_whole),
        "sentencepiece lines": partial(alone, encode_lines),
    }
    seconds: dict[str, list[tuple[float, float]]] = {run: [] for run in runs}
    for _ in range(args.rounds):
        for run, function in runs.items():
            before = processor_seconds()
            wall = function()
            seconds[run].append((wall, processor_seconds() - before))
    return megabytes, seconds


def processor_seconds() -> float:
    """User and system time of this process and its ended children."""
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    main()
