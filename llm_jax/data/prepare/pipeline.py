"""Preparing data: text files in, tokenized shards out.

The main process reads, cleans, deduplicates and splits, and cuts each split into units of a fixed
number of text bytes; worker processes tokenise a unit and write it as one shard file. What is in a
unit depends on the text and the options only, so the files are the same, byte for byte, for any
number of workers. A unit is finished when its shard and then its ``parts/*.json`` are there: after
a kill the same command goes on with the units that are not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from llm_jax.data.corpus import dedup
from llm_jax.data.corpus.clean import CleanOptions, Normalization, clean
from llm_jax.data.corpus.formats import InvalidUtf8, ReadCounts
from llm_jax.data.corpus.sources import DOCUMENT_BYTES, expand, read_documents
from llm_jax.data.prepare import worker
from llm_jax.data.prepare.resume import PLAN, make_plan, start
from llm_jax.data.prepare.summary import summary
from llm_jax.data.shards.store import MANIFEST, json_bytes, shard_name, write_dataset_info
from llm_jax.files import write_atomic
from llm_jax.progress import note, progress
from llm_jax.ranges import Bytes, Natural, Range, ShareBelowOne, checked
from llm_jax.tokenizers.open_tokenizer import open_tokenizer, tokenizer_files
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import DataError


class Unit(NamedTuple):
    """Texts that become one shard file."""

    split: str
    index: int
    texts: list[tuple[str, ...]]
    bytes_read: int


@checked
def prepare(
    input: tuple[str, ...],
    tokenizer: Path,
    out: Path,
    text_field: str = "text",
    encoder_field: str = "",
    validation_fraction: ShareBelowOne | None = None,
    validation: tuple[str, ...] = (),
    block_size: Annotated[int, Range(2, 2**31 - 1)] = 2048,
    encoder_block_size: Natural = 0,
    workers: Natural = 0,
    normalization: Normalization = "nfc",
    strip_control: bool = True,
    whitespace: bool = True,
    lower_case: bool = False,
    remove_punctuation: bool = False,
    invalid_utf8: InvalidUtf8 = "repair",
    min_characters: Natural = 1,
    deduplicate: bool = True,
    document_bytes: Bytes = DOCUMENT_BYTES,
    add_bos: bool = True,
    add_eos: bool = True,
    shard_bytes: Bytes = 16 << 20,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Tokenise text files into shards for training.

    Uses all cores. The files are byte-identical for any number of workers, and after a kill the
    same command goes on where it was. Worker processes are spawned, so a script that calls this
    needs `if __name__ == "__main__":`, unless workers is 1.

    Args:
        input: text files, folders or patterns (.txt .md .jsonl, each also .gz or .zst, and
            .parquet).
        tokenizer: folder of tokenizer train or tokenizer import, or a SentencePiece .model file.
        out: folder to write the shards to.
        text_field: field of .jsonl lines or column of .parquet files that holds the text; a null is
            an empty document.
        encoder_field: field of a second text, which an encoder reads so that a decoder writes the
            first: documents are pairs then, and are packed into rows (data.objective pairs).
        validation_fraction: share of documents held out, chosen by hash; at least one where there
            are two. 0 holds none out, 0.05 is what it is unless validation is given.
        validation: files, folders or patterns that are held out, in place of a share; a document of
            them that input has too is dropped as a duplicate.
        block_size: tokens in a block; the sequence lengths of training are its divisors. Of pairs,
            tokens that a decoder writes in a row.
        encoder_block_size: of pairs, tokens that an encoder reads in a row; 0 is block_size. A pair
            that fits no row is dropped.
        workers: processes that tokenise; 0 for one per core (none where the text fits one shard), 1
            for none but this one.
        normalization: Unicode form, nfc, nfkc or none.
        strip_control: drop control and meaningless zero-width characters; those that separate
            words, such as form feeds, become line ends or blanks.
        whitespace: unify line and page ends, strip blanks at line ends, collapse runs of blank
            lines.
        lower_case: lower-case everything.
        remove_punctuation: drop all punctuation.
        invalid_utf8: repair replaces invalid bytes by U+FFFD and counts them, refuse stops at the
            first.
        min_characters: shorter documents are dropped.
        deduplicate: drop documents whose cleaned text has been seen.
        document_bytes: a plain text file larger than this is cut into several documents, at blank
            lines where there are any.
        add_bos: begin every document with <s>.
        add_eos: end every document with </s>.
        shard_bytes: text in one shard file; also what a worker holds in memory at a time.
        overwrite: delete what an earlier run with other options or sources left in out.

    Returns:
        The manifest, as written to out/manifest.json; its counts are also printed.

    Raises:
        DataError: bad input, no documents left, or ``out`` unwritable or holding something else.
    """
    options = {
        k: v
        for k, v in locals().items()
        if k not in ("input", "tokenizer", "out", "workers", "overwrite")
    }
    options |= _held_out(validation_fraction, validation) | _of_pairs(
        encoder_field, block_size, encoder_block_size
    )
    # Options that came later are written down where they are used, so that folders made before them
    # are known again.
    options = {
        k: v
        for k, v in options.items()
        if v or k not in ("encoder_field", "encoder_block_size", "validation")
    }
    out, clean_options = (
        Path(out),
        CleanOptions(normalization, strip_control, whitespace, lower_case, remove_punctuation),
    )
    paths = expand(input)
    held_out = _apart(paths, expand(validation)) if validation else []
    loaded = open_tokenizer(tokenizer)
    _check(options, loaded)
    plan = make_plan(options, [*paths, *held_out], loaded)
    if (manifest := start(out, plan, overwrite)) is not None:
        note(f"{out}: already complete, nothing to do")
        _report(out, manifest)
        return manifest
    _copy_tokenizer(loaded.path, out)
    counts, dropped = ReadCounts(), Counter()
    names = {str(path) for path in held_out}
    documents = _documents([*paths, *held_out], names, options, clean_options, counts, dropped)
    split = (
        _by_file(documents, names)
        if names
        else dedup.assign_splits(documents, options["validation_fraction"])
    )
    total = sum(source["bytes"] for source in plan["sources"])
    with progress("tokenising", total=total, unit="B") as bar:
        units = _units(split, shard_bytes, counts)
        parts = _run(
            units,
            out,
            worker.Settings(
                str(out), block_size, add_bos, add_eos, options.get("encoder_block_size", 0)
            ),
            workers or _cores(total, shard_bytes),
            bar,
        )
    manifest = _manifest(plan, parts, counts, dropped)
    if not any(part["blocks"] for part in parts):
        reasons = ", ".join(f"{reason} {n}" for reason, n in manifest["dropped"].items() if n)
        raise DataError(
            f"no documents left after cleaning: dropped {reasons} of"
            f" {sum(counts.documents.values())} documents read; check the files and the options"
        )
    if held_out and not manifest["shards"]["validation"]:
        raise DataError(
            f"validation={list(validation)}: no document of it is left that input does not have"
            " too; name other files as validation (--validation)"
        )
    return _finish(out, manifest)


def _cores(total: int, shard_bytes: int) -> int:
    return 1 if total < shard_bytes else len(os.sched_getaffinity(0))


def _held_out(fraction: float | None, validation: tuple[str, ...]) -> dict[str, Any]:
    if validation and fraction is not None:
        raise DataError(
            f"validation_fraction={fraction} and validation={list(validation)}; give one of "
            "validation_fraction (--validation-fraction) and validation (--validation)"
        )
    return {
        "validation_fraction": 0.05 if fraction is None and not validation else fraction or 0.0,
        "validation": list(validation),
    }


def _by_file(
    documents: Iterator[tuple[tuple[str, ...], str, bytes]], held_out: set[str]
) -> Iterator[dedup.Hashed]:
    return (
        dedup.Hashed(*document, "validation" if document[1] in held_out else "train")
        for document in documents
    )


def _of_pairs(encoder_field: str, block_size: int, encoder_block_size: int) -> dict[str, Any]:
    if encoder_block_size and not encoder_field:
        raise DataError(
            f"encoder_block_size={encoder_block_size} without encoder_field; it is for pairs, so"
            " name the field that an encoder reads as encoder_field (--encoder-field)"
        )
    return {"encoder_block_size": encoder_block_size or block_size} if encoder_field else {}


def _apart(paths: list[Path], held_out: list[Path]) -> list[Path]:
    known = {path.resolve() for path in paths}
    if both := [path for path in held_out if path.resolve() in known]:
        raise DataError(f"validation has {str(both[0])!r}, which input has too; give it once")
    return held_out


def _check(options: dict[str, Any], tokenizer: Tokenizer) -> None:
    dedup.split_of(bytes(16), options["validation_fraction"])
    if options.get("encoder_field"):
        if not (options["add_bos"] and options["add_eos"]):
            raise DataError(
                f"add_bos={options['add_bos']} and add_eos={options['add_eos']} with"
                f" encoder_field={options['encoder_field']!r}; they are for single texts, and pairs"
                " always have what the tokenizer adds: leave them out (--no-add-bos, --no-add-eos)"
            )
        if tokenizer.eos_id < 0:
            raise DataError(
                f"tokenizer {str(tokenizer.path)!r} has no </s> to end what a decoder writes; use "
                "another tokenizer (--tokenizer), or leave out encoder_field (--encoder-field)"
            )
        return
    for flag, option, name, value in (
        ("add_bos", "--no-add-bos", "<s>", tokenizer.bos_id),
        ("add_eos", "--no-add-eos", "</s>", tokenizer.eos_id),
    ):
        if options[flag] and value < 0:
            raise DataError(
                f"{flag}=True, but tokenizer {str(tokenizer.path)!r} has no {name}; "
                f"pass {flag}=False ({option})"
            )


def _copy_tokenizer(source: Path, out: Path) -> None:
    (out / "tokenizer").mkdir(exist_ok=True)
    for name, data in tokenizer_files(source).items():
        write_atomic(out / "tokenizer" / name, data)


def _documents(
    paths, held_out: set[str], options, clean_options, counts: ReadCounts, dropped: Counter
) -> Iterator[tuple[tuple[str, ...], str, bytes]]:
    """Cleaned, new documents (a text or a pair) with their file and their hash; counts what is
    dropped, by rule. One of the files ``held_out`` is dropped if it has been seen, whatever the
    options say.
    """
    seen = dedup.Deduplicator()
    names = ("text_field", "encoder_field", "invalid_utf8", "document_bytes")
    given = {name: options[name] for name in names if name in options}
    for document in read_documents(paths, counts=counts, **given):
        texts = (
            (document.text, document.encoder_text) if "encoder_field" in given else (document.text,)
        )
        texts = tuple(clean(text, clean_options) for text in texts)
        if not all(texts):
            dropped["empty"] += 1
        elif min(map(len, texts)) < options["min_characters"]:
            dropped["too_short"] += 1
        elif not seen.is_new(key := dedup.digest(texts)) and (
            options["deduplicate"] or document.source in held_out
        ):
            dropped["duplicate"] += 1
        else:
            yield texts, document.source, key


def _units(
    documents: Iterator[dedup.Hashed], shard_bytes: int, counts: ReadCounts
) -> Iterator[Unit]:
    """Cut each split into units; a unit is closed by the document that fills it."""
    texts: dict[str, list[tuple[str, ...]]] = {split: [] for split in dedup.SPLITS}
    size, index, read = Counter(), Counter(), 0
    for document in documents:
        split = document.split
        texts[split].append(document.texts)
        size[split] += sum(
            len(text) if text.isascii() else len(text.encode()) for text in document.texts
        )
        if size[split] >= shard_bytes:
            yield Unit(split, index[split], texts[split], counts.bytes_read - read)
            texts[split], size[split], read = [], 0, counts.bytes_read
            index[split] += 1
    for split in dedup.SPLITS:
        if texts[split]:
            yield Unit(split, index[split], texts[split], counts.bytes_read - read)
            read = counts.bytes_read


def _run(
    units: Iterator[Unit], out: Path, settings: worker.Settings, workers: int, bar
) -> list[dict[str, Any]]:
    """Have every unit tokenised that is not finished; a few are in flight, the rest of the text is
    not read yet.
    """
    parts: list[dict[str, Any]] = []
    pool = None
    if workers > 1:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=worker.start, initargs=(settings,)
        )
    running: dict[Future, int] = {}
    try:
        for unit in units:
            if (done := part_path(out, unit).exists()) or pool is None:
                parts.append(
                    json.loads(part_path(out, unit).read_text())
                    if done
                    else worker.write_unit(*unit[:3], settings)
                )
                bar.advance(unit.bytes_read)
                continue
            running[pool.submit(worker.write_unit, *unit[:3])] = unit.bytes_read
            if len(running) > workers + 1:
                _collect(running, parts, bar)
        while running:
            _collect(running, parts, bar)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed (out of memory?); finished shards stay: run it again with "
            "fewer workers (--workers)"
        ) from error
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
    return sorted(parts, key=lambda part: part["file"])


def part_path(out: Path, unit: Unit) -> Path:
    """The file whose presence says that the unit is finished; it holds the unit's counts."""
    return out / "parts" / f"{shard_name(unit.split, unit.index)}.json"


def _collect(running: dict[Future, int], parts: list[dict[str, Any]], bar) -> None:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        bytes_read = running.pop(future)
        parts.append(future.result())
        bar.advance(bytes_read)


def _manifest(
    plan: dict[str, Any], parts: list[dict[str, Any]], counts: ReadCounts, dropped: Counter
) -> dict[str, Any]:
    shards: dict[str, list[dict[str, Any]]] = {split: [] for split in dedup.SPLITS}
    for part in parts:
        dropped = dropped + Counter(part.pop("dropped", {}))
        shards[part["split"]].append({key: value for key, value in part.items() if key != "split"})
    # Shards without a pair that fits are files too, since their numbers must go on; a split of
    # nothing else is empty.
    shards = {
        split: kept if any(shard["blocks"] for shard in kept) else []
        for split, kept in shards.items()
    }
    options, pairs = plan["options"], "encoder_block_size" in plan["options"]
    names = ("documents", "tokens", *["encoder_tokens"] * pairs, "blocks", "text_bytes", "words")
    return {
        **plan,
        **({"kind": "pairs", "encoder_block_size": options["encoder_block_size"]} if pairs else {}),
        "block_size": options["block_size"],
        "sources": [
            {**source, "documents": counts.documents.get(source["path"], 0)}
            for source in plan["sources"]
        ],
        "splits": {
            split: {name: sum(s[name] for s in shards[split]) for name in names} for split in shards
        },
        "dropped": {
            reason: dropped[reason]
            for reason in ("empty", "too_short", "duplicate", *["too_long"] * pairs)
        },
        "read": {
            "empty_files": counts.empty,
            "invalid_utf8_repaired": counts.invalid_utf8,
            "nulls": counts.nulls,
        },
        "shards": shards,
    }


def _finish(out: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write what makes the folder a dataset; the manifest comes last but for the removal of what
    only a resume needs.
    """
    write_dataset_info(out, manifest)
    write_atomic(out / MANIFEST, json_bytes(manifest))
    shutil.rmtree(out / "parts")
    (out / PLAN).unlink()
    for leftover in out.glob(".*.tmp"):
        leftover.unlink()
    _report(out, manifest)
    return manifest


def _report(out: Path, manifest: dict[str, Any]) -> None:
    for line in summary(manifest):
        note(f"{out}: {line}")
