"""Preparing data: text files in, tokenized shards out.

The main process reads the documents, applies the stages, splits the documents and cuts each split
into units of a fixed number of text bytes. Worker processes tokenize a unit and write it as one
shard file. A unit is a function of the text and the options only, so the files are the same, byte
for byte, for any number of workers. A unit is finished when its shard, and after it a file of its
counts, has been written. After a kill, the same command tokenizes the other units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from llm_jax.data.corpus.clean import Normalization
from llm_jax.data.corpus.counts import ReadCounts
from llm_jax.data.corpus.dedup import Assigned, Keyed, assign_splits, with_key
from llm_jax.data.corpus.document import Document
from llm_jax.data.corpus.sources import DOCUMENT_BYTES, expand, read_documents
from llm_jax.data.corpus.utf8 import InvalidUtf8
from llm_jax.data.prepare.manifest import make_manifest
from llm_jax.data.prepare.options import (
    PrepareOptions,
    check_sources,
    check_tokenizer_options,
    resolve_encoder_block_size,
    resolve_validation_fraction,
)
from llm_jax.data.prepare.pool import default_workers, run_units
from llm_jax.data.prepare.resume import PLAN, make_plan, start
from llm_jax.data.prepare.stages import DropDuplicates, Stage, document_stages, run_stages
from llm_jax.data.prepare.summary import summary
from llm_jax.data.prepare.units import PARTS, cut_units
from llm_jax.data.prepare.worker import Settings
from llm_jax.data.shards.store import MANIFEST, json_bytes, write_dataset_info
from llm_jax.files import remove_tree, write_atomic
from llm_jax.progress import note, progress
from llm_jax.ranges import Bytes, Natural, Range, ShareBelowOne, checked
from llm_jax.storage.paths import path_of
from llm_jax.tokenizers.open_tokenizer import open_tokenizer, tokenizer_files
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import DataError


@checked
def prepare(
    input: tuple[str, ...],
    tokenizer: Path,
    out: Path,
    *,
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
    """Tokenize text files into shards for training.

    Uses all cores. The files are byte-identical for any number of workers. After a kill, the same
    command continues with the shards that are missing. Worker processes are spawned, so a script
    that calls this needs `if __name__ == "__main__":`, unless workers is 1.

    Args:
        input: text files, folders or patterns (.txt .md .jsonl, each also .gz or .zst, and
            .parquet).
        tokenizer: folder of tokenizer train or tokenizer import, or a SentencePiece .model file.
        out: folder to write the shards to.
        text_field: field of .jsonl lines or column of .parquet files that holds the text; a null is
            an empty document.
        encoder_field: field of a second text, which an encoder reads so that a decoder writes the
            first. Documents are pairs then, and are packed into rows (data.objective pairs).
        validation_fraction: share of documents held out, chosen by hash; at least one where there
            are two documents. The default is 0.05, or 0 with validation; 0 holds none out.
        validation: files, folders or patterns that are held out, instead of a share. A held-out
            document whose text is also in input is dropped as a duplicate.
        block_size: tokens in a block; training takes sequence lengths that divide it. For pairs,
            tokens that a decoder writes in a row.
        encoder_block_size: for pairs, tokens that an encoder reads in a row; 0 is block_size. A
            pair that does not fit a row is dropped.
        workers: processes that tokenize; 0 is one per core (this one only where the text fits one
            shard), 1 is this process only.
        normalization: Unicode form, nfc, nfkc or none.
        strip_control: drop control characters and meaningless zero-width characters; those that
            separate words, such as form feeds, become line ends or blanks.
        whitespace: unify line and page ends, strip blanks at line ends, collapse runs of blank
            lines.
        lower_case: lower-case everything.
        remove_punctuation: drop all punctuation.
        invalid_utf8: repair replaces invalid bytes by U+FFFD and counts them; refuse stops at the
            first.
        min_characters: drop documents with fewer characters.
        deduplicate: drop documents whose cleaned text has been seen before.
        document_bytes: a plain text file larger than this is cut into several documents, at blank
            lines where there are any.
        add_bos: begin every document with <s>.
        add_eos: end every document with </s>.
        shard_bytes: bytes of text in one shard file; a worker holds as much in memory.
        overwrite: delete the files that a run with other options or sources left in out.

    Returns:
        The manifest, as written to out/manifest.json; its counts are also printed.

    Raises:
        DataError: bad input, no documents left, or ``out`` unwritable or holding other files.
    """
    options = PrepareOptions(
        text_field=text_field,
        encoder_field=encoder_field,
        validation_fraction=resolve_validation_fraction(validation_fraction, validation),
        validation=tuple(validation),
        block_size=block_size,
        encoder_block_size=resolve_encoder_block_size(
            encoder_field, block_size, encoder_block_size
        ),
        normalization=normalization,
        strip_control=strip_control,
        whitespace=whitespace,
        lower_case=lower_case,
        remove_punctuation=remove_punctuation,
        invalid_utf8=invalid_utf8,
        min_characters=min_characters,
        deduplicate=deduplicate,
        document_bytes=document_bytes,
        add_bos=add_bos,
        add_eos=add_eos,
        shard_bytes=shard_bytes,
    )
    inputs = _open_inputs(input, tokenizer, options)
    out = path_of(out)
    manifest = start(out, inputs.plan, overwrite)
    if manifest is not None:
        note(f"{out}: already complete, nothing to do")
        _report(out, manifest)
        return manifest
    _copy_tokenizer(inputs.tokenizer.path, out)
    manifest = _write_shards(inputs, out, workers)
    _check_not_empty(manifest, options.validation)
    _finish(out, manifest)
    return manifest


class _Inputs(NamedTuple):
    """What ``prepare`` reads.

    Attributes:
        corpus: the files and what is done to their documents.
        tokenizer: encodes the documents.
        plan: as ``make_plan`` returns it.
    """

    corpus: _Corpus
    tokenizer: Tokenizer
    plan: dict[str, Any]


def _open_inputs(input: tuple[str, ...], tokenizer: Path, options: PrepareOptions) -> _Inputs:
    """Finds the files, opens the tokenizer, and checks both against the options."""
    stages = document_stages(options)
    paths = expand(input)
    held_out = expand(options.validation) if options.validation else []
    check_sources(paths, held_out)
    opened = open_tokenizer(tokenizer)
    check_tokenizer_options(options, opened)
    plan = make_plan(options.recorded(), [*paths, *held_out], opened)
    return _Inputs(_Corpus(paths, held_out, options, stages), opened, plan)


def _write_shards(inputs: _Inputs, out: Path, workers: int) -> dict[str, Any]:
    """Tokenizes the corpus into shards, and returns the manifest; 0 ``workers`` is the default."""
    options = inputs.corpus.options
    counts = ReadCounts()
    dropped: Counter[str] = Counter()
    settings = Settings(
        out=str(out),
        tokenizer_fingerprint=inputs.tokenizer.fingerprint,
        block_size=options.block_size,
        add_bos=options.add_bos,
        add_eos=options.add_eos,
        encoder_block_size=options.encoder_block_size,
    )
    total = sum(source["bytes"] for source in inputs.plan["sources"])
    processes = workers or default_workers(total, options.shard_bytes)
    with progress("tokenising", total=total, unit="B") as bar:
        documents = inputs.corpus.documents(counts, dropped)
        units = cut_units(documents, options.shard_bytes, counts)
        parts = run_units(units, settings, processes, bar)
    return make_manifest(inputs.plan, parts, counts, dropped)


def _copy_tokenizer(source: Path, out: Path) -> None:
    (out / "tokenizer").mkdir(exist_ok=True)
    for name, data in tokenizer_files(source).items():
        write_atomic(out / "tokenizer" / name, data)


class _Corpus(NamedTuple):
    """The files to read, and what is done to their documents."""

    paths: list[Path]
    held_out: list[Path]
    options: PrepareOptions
    stages: tuple[Stage[Document], ...]

    def documents(self, counts: ReadCounts, dropped: Counter[str]) -> Iterator[Assigned]:
        """The documents that the stages keep, with their splits.

        Args:
            counts: filled in as the files are read.
            dropped: documents dropped so far, by rule.
        """
        held_out = {str(path) for path in self.held_out}
        keyed = self._new_documents(held_out, counts, dropped)
        if held_out:
            return (_assign_by_source(document, held_out) for document, _ in keyed)
        return assign_splits(keyed, self.options.validation_fraction)

    def _new_documents(
        self, held_out: set[str], counts: ReadCounts, dropped: Counter[str]
    ) -> Iterator[Keyed]:
        options = self.options
        documents = read_documents(
            [*self.paths, *self.held_out],
            text_field=options.text_field,
            encoder_field=options.encoder_field,
            invalid_utf8=options.invalid_utf8,
            document_bytes=options.document_bytes,
            counts=counts,
        )
        cleaned = run_stages(documents, self.stages, dropped)
        unique = DropDuplicates(options.deduplicate, held_out)
        return run_stages(map(with_key, cleaned), (unique,), dropped)


def _assign_by_source(document: Document, held_out: set[str]) -> Assigned:
    return Assigned(document, "validation" if document.source in held_out else "train")


def _check_not_empty(manifest: dict[str, Any], validation: tuple[str, ...]) -> None:
    shards = manifest["shards"]
    if not any(shards.values()):
        reasons = ", ".join(f"{rule} {n}" for rule, n in manifest["dropped"].items() if n)
        read = sum(source["documents"] for source in manifest["sources"])
        raise DataError(
            f"no documents left after cleaning: dropped {reasons} of"
            f" {read} documents read; check the files and the options"
        )
    if validation and not shards["validation"]:
        raise DataError(
            f"validation={list(validation)}: no document of it is left that input does not have"
            " too; name other files as validation (--validation)"
        )


def _finish(out: Path, manifest: dict[str, Any]) -> None:
    """Write the files that make the folder a dataset, and delete those that only a resume needs.

    The manifest is written last: its presence means that the folder is complete.
    """
    write_dataset_info(out, manifest)
    write_atomic(out / MANIFEST, json_bytes(manifest))
    remove_tree(out / PARTS)
    (out / PLAN).unlink()
    for leftover in out.glob(".*.tmp"):
        leftover.unlink()
    _report(out, manifest)


def _report(out: Path, manifest: dict[str, Any]) -> None:
    for line in summary(manifest):
        note(f"{out}: {line}")
