"""What the files of a Hugging Face model folder declare about its tokenizer.

The files are ``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json``,
``generation_config.json``, ``config.json`` and ``chat_template.jinja``. All of them are untrusted:
types and sizes are checked, and nothing is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.storage.paths import local_file
from llm_jax.types import DataError

CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
GENERATION = "generation_config.json"
MODEL_CONFIG = "config.json"
TEMPLATE = "chat_template.jinja"
DECLARING = (CONFIG, SPECIAL_MAP, ADDED, GENERATION, MODEL_CONFIG, TEMPLATE)
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Bytes of files.
MAX_MODEL = 256 << 20
MAX_CONFIG = 64 << 20
# Characters of a chat template.
MAX_TEMPLATE = 1 << 20
# Ids are smaller than this.
MAX_IDS = 1 << 24
_MAX_TOKEN = 1024
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}


class Declared(NamedTuple):
    """What the files declare, not yet checked against a vocabulary.

    Attributes:
        named: bos_token, … -> text; None where a file has null.
        extra: Other special tokens, in order.
        added: Id -> token with its flags, as in Hugging Face's ``added_tokens``.
        ids: bos, pad -> ids in generation_config.json, or else in config.json; eos -> ids in both.
        add_bos, add_eos: Flags of tokenizer_config.json, or None.
        vocab_size: Vocabulary size of the model, or 0.
        chat_templates: Name -> Jinja template.
        config: The whole tokenizer_config.json.
    """

    named: dict[str, str | None]
    extra: tuple[str, ...]
    added: dict[int, dict[str, Any]]
    ids: dict[str, tuple[int, ...]]
    add_bos: bool | None
    add_eos: bool | None
    vocab_size: int
    chat_templates: dict[str, str]
    config: dict[str, Any]


def read_declared(files: Mapping[str, bytes], where: str) -> Declared:
    """Reads what a folder declares.

    Args:
        files: Name -> bytes of the folder's files, of which those in ``DECLARING`` are read.
        where: Name of the folder, for messages.

    Raises:
        DataError: A file is not valid.
    """
    read = {
        name: read_json(files[name], f"{where}/{name}") for name in DECLARING[:-1] if name in files
    }
    config = read.get(CONFIG, {})
    special = read.get(SPECIAL_MAP, {})
    # In newer files tokenizer_config.json has everything; in older ones special_tokens_map.json
    # takes precedence.
    sources = (config, special) if "added_tokens_decoder" in config else (special, config)
    named = _named(sources, where)
    extra = _extra(sources, where)
    decoder = config.get("added_tokens_decoder")
    special_texts = {*named.values(), *extra}
    return Declared(
        named=named,
        extra=extra,
        added=_added(decoder, read.get(ADDED, {}), special_texts, where),
        ids=_special_ids(read, where),
        add_bos=_flag(config, "add_bos_token", where),
        add_eos=_flag(config, "add_eos_token", where),
        vocab_size=_vocab_size(read.get(MODEL_CONFIG, {}), where),
        chat_templates=_templates(config.get("chat_template"), files.get(TEMPLATE), where),
        config=config,
    )


def _named(sources: tuple[dict[str, Any], ...], where: str) -> dict[str, str | None]:
    """bos_token, … -> text, from the first of ``sources`` that has it."""
    return {
        name: _text(source[name], name, where)
        for source in reversed(sources)
        for name in NAMED
        if name in source
    }


def _extra(sources: tuple[dict[str, Any], ...], where: str) -> tuple[str, ...]:
    """Special tokens without a name, each once."""
    texts = [
        _text(token, key, where)
        for source in sources
        for key in ("additional_special_tokens", "extra_special_tokens")
        for token in _tokens(source.get(key), key, where)
    ]
    return tuple(dict.fromkeys(text for text in texts if text is not None))


def _vocab_size(model_config: dict[str, Any], where: str) -> int:
    inner = model_config.get("text_config")
    size = inner.get("vocab_size") if isinstance(inner, dict) else None
    size = model_config.get("vocab_size", size)
    return 0 if size is None else _id(size, "vocab_size", f"{where}/{MODEL_CONFIG}")


def _special_ids(read: dict[str, dict[str, Any]], where: str) -> dict[str, tuple[int, ...]]:
    """bos, eos, pad -> ids. A text begins with one token, and ends with any of several."""
    found = {name: _ids(read, f"{name}_token_id", where) for name in ("bos", "eos", "pad")}
    ids = {name: by_file[0] if by_file else () for name, by_file in found.items()}
    ids["eos"] = tuple(dict.fromkeys(id for in_file in found["eos"] for id in in_file))
    return ids


def read_json(data: bytes, where: str, limit: int = MAX_CONFIG) -> dict[str, Any]:
    """A JSON object of at most ``limit`` bytes.

    Raises:
        DataError: The file is larger, or does not hold a JSON object.
    """
    if len(data) > limit:
        raise DataError(
            f"{where}: {len(data):,} bytes; at most {limit:,} are read; is this the right file?"
        )
    try:
        value = json.loads(data.decode("utf-8-sig"))
        if b"\\u" in data:
            # Raises for an escaped half of a surrogate pair, which has no UTF-8 form.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); download the file again") from error
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: holds a {type(value).__name__}, expected a JSON object; download the file"
            " again"
        )
    return value


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a file of at most ``limit`` bytes.

    Raises:
        DataError: The file is larger or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise DataError(
                f"{str(path)!r}: {size:,} bytes; at most {limit:,} are read; is this the right"
                " file?"
            )
        return local_file(path).read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from error


def _text(value: Any, name: str, where: str) -> str | None:
    """A token's text, which may be given as a string or as an object with its flags."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is None or (isinstance(text, str) and 0 < len(text) < _MAX_TOKEN):
        return text
    raise DataError(
        f"{where}: {name} is {str(text)[:80]!r}, expected a token's text; fix {CONFIG} or"
        f" {SPECIAL_MAP}"
    )


def _tokens(value: Any, name: str, where: str) -> list[Any]:
    """The tokens of a list. In newer files they have names: {"image_token": "<image>"}."""
    tokens = list(value.values()) if isinstance(value, dict) else value or []
    if not isinstance(tokens, list):
        raise DataError(
            f"{where}: {name} is a {type(tokens).__name__}, expected a list of tokens; fix {CONFIG}"
        )
    return [token for token in tokens if token]


def _id(value: Any, name: str, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_IDS:
        return value
    raise DataError(
        f"{where}: {name} is {str(value)[:80]!r}, expected a number from 0 to {MAX_IDS - 1}; fix"
        " the file"
    )


def _ids(read: dict[str, dict[str, Any]], name: str, where: str) -> list[tuple[int, ...]]:
    """The ids under ``name`` in each place that has them: generation_config.json, config.json and
    its text_config.
    """
    model = read.get(MODEL_CONFIG, {})
    inner = model.get("text_config")
    places = (
        (GENERATION, read.get(GENERATION, {})),
        (MODEL_CONFIG, model),
        (MODEL_CONFIG, inner if isinstance(inner, dict) else {}),
    )
    found = []
    for file, values in places:
        value = values.get(name)
        if value is None:
            continue
        several = value if isinstance(value, list) else [value]
        found.append(tuple(_id(v, name, f"{where}/{file}") for v in several))
    return found


def _flag(config: dict[str, Any], name: str, where: str) -> bool | None:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise DataError(
            f"{where}/{CONFIG}: {name} is {str(value)[:80]!r}, expected true or false; fix the file"
        )
    return value


def _added(
    decoder: Any, older: dict[str, Any], special: set[str | None], where: str
) -> dict[int, dict[str, Any]]:
    """Added tokens by id.

    Args:
        decoder: added_tokens_decoder of tokenizer_config.json, or None.
        older: added_tokens.json, which is used where there is no decoder.
        special: Texts of special tokens.
        where: Name of the folder, for messages.
    """
    if not isinstance(decoder, dict | None):
        raise DataError(
            f"{where}/{CONFIG}: added_tokens_decoder is a {type(decoder).__name__}, expected an"
            " object; fix the file"
        )
    if decoder is None:
        decoder = {id: {"content": text, "special": text in special} for text, id in older.items()}
    added = {}
    for key, token in decoder.items():
        id = _id(_number(key), f"id of added token {str(token)[:80]}", where)
        added[id] = _added_token(id, token, where)
    return added


def _number(key: Any) -> Any:
    """A key of a JSON object as the number that it is written as; other keys as they are."""
    is_number = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10
    return int(key) if is_number else key


def _added_token(id: int, token: Any, where: str) -> dict[str, Any]:
    text = token.get("content") if isinstance(token, dict) else None
    if not isinstance(text, str) or not text:
        raise DataError(
            f"{where}: added token {id} is {str(token)[:80]!r}, expected an object with its text as"
            " content; fix the file"
        )
    flags = {name: bool(token.get(name, default)) for name, default in _FLAGS.items()}
    normalized = bool(token.get("normalized", not flags["special"]))
    return {"id": id, "content": text, **flags, "normalized": normalized}


def _templates(value: Any, file: bytes | None, where: str) -> dict[str, str]:
    """Name -> chat template.

    Args:
        value: chat_template of tokenizer_config.json: one template, or a list of named ones.
        file: chat_template.jinja, which takes precedence, or None.
        where: Name of the folder, for messages.
    """
    try:
        value = value if file is None else file.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}/{TEMPLATE}: not valid UTF-8 ({error}); download the file again"
        ) from error
    named: dict[Any, Any] = {}
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
    elif value is not None:
        named = {"default": value}
    for name, text in named.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataError(
                f"{where}/{CONFIG}: chat_template {str(name)[:40]!r} is a {type(text).__name__},"
                " expected a text; fix the file"
            )
        if len(text) > MAX_TEMPLATE:
            raise DataError(
                f"{where}: chat template {name!r} has {len(text):,} characters, and at most"
                f" {MAX_TEMPLATE:,} are read; use a shorter template"
            )
    return named
