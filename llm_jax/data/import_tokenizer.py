"""Importing a tokenizer: a Hugging Face folder, a SentencePiece model or a file of ranks becomes a folder for ``open_tokenizer``.

The source's files are copied byte for byte, and ``imported.json`` is written from what they say together (``imported``, ``declared``).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.data.declared import (
    CONFIG,
    DECLARING,
    GENERATION,
    MAX_CONFIG,
    MAX_MODEL,
    MODEL_CONFIG,
    Declared,
    read_declared,
    read_file,
    read_json,
)
from llm_jax.data.hf_tokenizer import load_tokenizer_json
from llm_jax.data.imported import IMPORTED, Imported
from llm_jax.data.open_tokenizer import open_tokenizer
from llm_jax.data.output import make_folder, write_atomic
from llm_jax.data.tokenizer import META_FILE, MODEL_FILE, Tokenizer
from llm_jax.types import DataError

JSON_FILE = "tokenizer.json"
# Kept for whoever gets the folder back; of these nothing is read.
_KEPT = ("vocab.json", "vocab.txt", "merges.txt")


class Specials(NamedTuple):
    """What a tokenizer.json does not say: special ids (-1: none), and whether a text is put between ``<s>`` and ``</s>``.

    vocab_size: of the model where its embedding is padded; 0 takes the tokenizer's own.
    """

    bos: int = -1
    eos: tuple[int, ...] = ()
    pad: int = -1
    unk: int = -1
    add_bos: bool = False
    add_eos: bool = False
    vocab_size: int = 0


def import_tokenizer(source: Path, out: Path, overwrite: bool = False) -> Tokenizer:
    """Copy a tokenizer that was made elsewhere, so that data prepare, training and generate can use it.

    Args:
        source: folder of a Hugging Face model or tokenizer, with tokenizer.json.
        out: folder to write the tokenizer to.
        overwrite: replace a tokenizer that is already there.

    Raises:
        DataError: no tokenizer in the source, or one that cannot be read or is of an unknown kind; ``out`` is taken or cannot be written.
    """
    source = Path(source)
    if not source.is_dir():
        raise DataError(f"source {str(source)!r} is no folder; name the folder that holds tokenizer.json")
    names = (JSON_FILE, *DECLARING, *_KEPT)
    files = {name: read_file(source / name, MAX_MODEL if name == JSON_FILE else MAX_CONFIG) for name in names if (source / name).is_file()}
    if JSON_FILE not in files:
        raise DataError(f"source {str(source)!r} has no {JSON_FILE}; there are {', '.join(sorted(p.name for p in source.iterdir()))[:300]}")
    if "kind" in read_json(files[JSON_FILE], str(source / JSON_FILE), MAX_MODEL):
        raise DataError(f"source {str(source)!r} is a tokenizer trained here; use it as it is")
    declared = read_declared(files, str(source))
    files.pop(MODEL_CONFIG, None)
    record = hugging_face_record(files, declared, str(source))
    return _write(record, files, Path(out), overwrite)


def import_tokenizer_json(
    tokenizer_json: dict[str, Any], specials: Specials, chat_template: str | None, out: Path, source: str = "", overwrite: bool = False
) -> Tokenizer:
    """A ``tokenizer.json`` built by the caller, and what goes with it, as an imported tokenizer; loads in transformers too.

    A post-processor that puts ``<s>`` and ``</s>`` is added where there is none. Raises DataError as ``import_tokenizer`` does, for an id
    that is no token, and for a post-processor that says otherwise than ``specials``.
    """
    where = source or "the tokenizer"
    text = {token: id for id, token in _tokens_of(tokenizer_json, where).items()}
    by_id = {id: token for token, id in text.items()}
    for name, id in (("bos", specials.bos), *(("eos", id) for id in specials.eos), ("pad", specials.pad), ("unk", specials.unk)):
        if id >= 0 and id not in by_id:
            raise DataError(f"{where}: {name} id {id} is no token of the vocabulary, which has {len(by_id)}")
    named = {"bos_token": specials.bos, "eos_token": (*specials.eos, -1)[0], "pad_token": specials.pad, "unk_token": specials.unk}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": 1 << 30}
    config |= {name: by_id.get(id) for name, id in named.items()} | ({"chat_template": chat_template} if chat_template else {})
    if (specials.add_bos or specials.add_eos) and not tokenizer_json.get("post_processor"):
        tokenizer_json = {**tokenizer_json, "post_processor": _template_processing(specials, by_id)}
    files = {name: json.dumps(value, ensure_ascii=False).encode() for name, value in ((JSON_FILE, tokenizer_json), (CONFIG, config))}
    if len(specials.eos) > 1:
        files[GENERATION] = json.dumps({"eos_token_id": list(specials.eos)}).encode()
    declared = read_declared(files, where)._replace(vocab_size=specials.vocab_size)
    record = hugging_face_record(files, declared, where)
    if (record.add_bos, record.add_eos) != (specials.add_bos, specials.add_eos):
        raise DataError(
            f"{where}: the post-processor gives add_bos={record.add_bos}, add_eos={record.add_eos}, and add_bos={specials.add_bos}, "
            f"add_eos={specials.add_eos} were asked for; mend one of them"
        )
    return _write(record, files, Path(out), overwrite)


def hugging_face_record(files: dict[str, bytes], declared: Declared, source: str) -> Imported:
    """The record of a tokenizer.json with what its folder declares. Raises DataError."""
    where = f"{source}/{JSON_FILE}"
    tok = load_tokenizer_json(files[JSON_FILE], where)
    if getattr(tok.model, "dropout", None):
        raise DataError(f"{where}: dropout {tok.model.dropout} makes the ids random; set it to null")
    added = _add_missing(tok, declared, where)
    id_of = tok.token_to_id
    before, after = _around(tok, where)
    bos, eos = (_special(name, other, declared, id_of) for name, other in (("bos", "cls"), ("eos", "sep")))
    adds = []
    for what, name, special, found, flag in (
        ("before", "bos", bos, before, declared.add_bos), ("after", "eos", eos, after, declared.add_eos)
    ):  # fmt: skip
        if found not in ((), special[:1]):
            raise DataError(
                f"{where}: puts {[tok.id_to_token(i) for i in found]} {what} a text, and its {name}_token is "
                f"{[tok.id_to_token(i) for i in special[:1]] or None}; only that one token is supported there: change post_processor"
            )
        # Some files leave it to the class, which reads the flag.
        adds.append(bool(found) or bool(flag and special))
    generated = [id for id in declared.ids["eos"] if id not in eos]
    pad, unk = (_special(name, "", declared, id_of) for name in ("pad", "unk"))
    top = max(tok.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    tokens = {name: text for name, text in declared.named.items() if text is not None}
    return Imported(
        kind="hugging-face", model=JSON_FILE, files=_sha256(files), add_bos=adds[0], add_eos=adds[1],
        special={"bos": (*bos, -1)[0], "pad": (*pad, -1)[0], "unk": (*unk, -1)[0]}, eos_ids=(*eos, *generated),
        vocab_size=max(top, declared.vocab_size), added_tokens=added, piece_ids={}, tokens=tokens,
        chat_templates=declared.chat_templates, source=source,
    )  # fmt: skip


def _special(name: str, other: str, declared: Declared, id_of) -> tuple[int, ...]:
    """Id of the token that is declared as ``name``, or of ``other``, which encoders have in its place, or by id."""
    for key in (f"{name}_token", f"{other}_token"):
        if (text := declared.named.get(key)) is not None:
            return (id_of(text),)
    # A name given as null says that there is none.
    return () if f"{name}_token" in declared.named else declared.ids.get(name, ())[:1]


def _add_missing(tok: Any, declared: Declared, where: str) -> tuple[dict[str, Any], ...]:
    """Adds to ``tok`` what transformers adds: declared tokens, and special ones that the file does not mark as such."""
    from tokenizers import AddedToken

    present = {token.content for token in tok.get_added_tokens_decoder().values()}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [text for text in (*declared.named.values(), *declared.extra) if text is not None]
    wanted = [declared.added[id] for id in sorted(declared.added)] + [{"content": text, **plain} for text in special]
    added = []
    for token in wanted:
        if token["content"] in present:
            continue
        flags = {name: token[name] for name in plain} | {"special": token["special"] or token["content"] in special}
        tok.add_tokens([AddedToken(token["content"], **flags)])
        present.add(token["content"])
        id = tok.token_to_id(token["content"])
        if token.get("id", id) != id:
            raise DataError(f"{where}: added token {token['content']!r} is declared as id {token['id']} and gets {id}; mend {CONFIG}")
        added.append({"id": id, "content": token["content"], **flags})
    return tuple(added)


def _around(tok: Any, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor puts before and after a text."""
    encoding = tok.encode("a", add_special_tokens=True)
    text = tok.encode("a", add_special_tokens=False).ids
    first = next((n for n, special in enumerate(encoding.special_tokens_mask) if not special), len(encoding.ids))
    if encoding.ids[first : first + len(text)] != text:
        raise DataError(f"{where}: its post-processor changes the tokens of the text itself; only tokens before and after it are supported")
    return tuple(encoding.ids[:first]), tuple(encoding.ids[first + len(text) :])


def _tokens_of(tokenizer_json: dict[str, Any], where: str) -> dict[int, str]:
    tok = load_tokenizer_json(json.dumps(tokenizer_json).encode(), where)
    return {id: token for token, id in tok.get_vocab(with_added_tokens=True).items()}


def _template_processing(specials: Specials, by_id: dict[int, str]) -> dict[str, Any]:
    used = ([specials.bos] if specials.add_bos else []), (list(specials.eos[:1]) if specials.add_eos else [])
    special = lambda id, type: {"SpecialToken": {"id": by_id[id], "type_id": type}}  # noqa: E731
    one = lambda name, type: [  # noqa: E731
        *(special(id, type) for id in used[0]), {"Sequence": {"id": name, "type_id": type}}, *(special(id, type) for id in used[1])
    ]
    tokens = {by_id[id]: {"id": by_id[id], "ids": [id], "tokens": [by_id[id]]} for id in (*used[0], *used[1])}
    return {"type": "TemplateProcessing", "single": one("A", 0), "pair": one("A", 0) + one("B", 1), "special_tokens": tokens}


def _sha256(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def _write(record: Imported, files: dict[str, bytes], out: Path, overwrite: bool) -> Tokenizer:
    """The folder of an imported tokenizer; ``imported.json`` is written last, so that half a folder is none."""
    if not overwrite and (there := [name for name in (IMPORTED, MODEL_FILE, META_FILE) if (out / name).exists()]):
        raise DataError(f"out {str(out)!r} holds a tokenizer already ({there[0]}); pass overwrite (--overwrite) or another out")
    make_folder(out)
    for name in (IMPORTED, MODEL_FILE, JSON_FILE, *DECLARING, *_KEPT):
        (out / name).unlink(missing_ok=True)
    for name, data in files.items():
        write_atomic(out / name, data)
    write_atomic(out / IMPORTED, record.to_json())
    return open_tokenizer(out)
