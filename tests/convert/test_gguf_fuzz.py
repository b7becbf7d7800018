"""Five thousand damaged headers: each is refused with a DataError or read whole, and none allocates
much or raises anything else.
"""

from __future__ import annotations

import random
import struct
import tracemalloc

from gguf_builders import ARRAY, BOOL, F32, F64, I32, STRING, U8, U32, U64, gguf, key, tensor
from pairwise import parametrize

from llm_jax.convert.gguf import open_gguf
from llm_jax.convert.gguf_blocks import BLOCK_TYPES
from llm_jax.convert.gguf_tokenizer import tokenizer_json
from llm_jax.convert.gguf_vocabulary import chat_template, special_tokens
from llm_jax.types import DataError

ROUNDS, PER_ROUND = 10, 500
NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    9,
    31,
    32,
    33,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 32,
    2**64 - 1,
)


def base() -> tuple[bytes, int]:
    """A small file with every type of value and of tensor, a tokenizer, and the length of its
    header.
    """
    keys = [
        key("general.architecture", STRING, "llama"),
        key("general.alignment", U32, 32),
        key("llama.block_count", U32, 2),
        key("llama.rope.freq_base", F32, 1e5),
        key("f64", F64, 0.1),
        key("u64", U64, 2**40),
        key("nested", ARRAY, (ARRAY, [(U8, [1, 2]), (STRING, ["x", "yz"])])),
        key("tokenizer.ggml.model", STRING, "llama"),
        key("tokenizer.ggml.pre", STRING, "default"),
        key(
            "tokenizer.ggml.tokens",
            ARRAY,
            (STRING, ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u2581"]),
        ),
        key("tokenizer.ggml.scores", ARRAY, (F32, [0, 0, 0, -2, -3, -1, -4])),
        key("tokenizer.ggml.token_type", ARRAY, (I32, [2, 3, 3, 1, 1, 1, 1])),
        key("tokenizer.ggml.bos_token_id", U32, 1),
        key("tokenizer.ggml.unknown_token_id", U32, 0),
        key("tokenizer.ggml.add_bos_token", BOOL, True),
        key("tokenizer.chat_template", STRING, "{{ messages }}"),
    ]
    tensors, at = [], 0
    for number, kind in BLOCK_TYPES.items():
        tensors.append(tensor(f"blk.0.{kind.name}", (2 * kind.size, 3), number, at))
        at += -(-6 * kind.nbytes // 32) * 32
    head = gguf(keys, tensors)
    return head + random.Random(0).randbytes(at), len(head)


WHOLE, HEADER = base()


def damaged(rng: random.Random) -> bytes:
    raw = bytearray(WHOLE)
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(HEADER)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        for _ in range(rng.randint(1, 3)):
            raw[rng.randrange(HEADER)] = rng.randrange(256)
    elif kind == 2:
        del raw[rng.randrange(len(raw)) :]
    elif kind == 3:
        # Counts, lengths, offsets and types wherever they lie, among them the two of the beginning.
        code = rng.choice("QI")
        at = rng.choice((8, 16, rng.randrange(HEADER - 8), rng.randrange(HEADER - 8)))
        struct.pack_into(
            "<" + code, raw, at, rng.choice(NUMBERS) % 2 ** (8 * struct.calcsize("<" + code))
        )
    else:
        at, length = rng.randrange(HEADER), rng.randint(1, 16)
        if rng.random() < 0.5:
            del raw[at : at + length]
        else:
            raw[at:at] = rng.randbytes(length)
    return bytes(raw)


def use(path) -> bool:
    """Open, read all, build the tokenizer; True where nothing was refused."""
    try:
        file = open_gguf(path)
    except DataError as error:
        assert str(path) in str(error) and len(str(error)) < 1000
        return False
    for name, entry in file.tensors.items():
        assert file.read(name).shape == entry.shape
    try:
        tokenizer_json(file.metadata)
        special_tokens(file.metadata)
        chat_template(file.metadata)
    except DataError as error:
        assert "tokenizer" in str(error) or "token" in str(error)
    return True


def test_the_undamaged_file_is_read(tmp_path):
    (tmp_path / "f.gguf").write_bytes(WHOLE)
    assert use(tmp_path / "f.gguf")
    assert len(open_gguf(tmp_path / "f.gguf").tensors) == len(BLOCK_TYPES)


@parametrize("seed", [[seed] for seed in range(ROUNDS)], by_default=[[0], [1], [2]])
def test_damaged_headers_are_refused_or_read(tmp_path, seed):
    rng = random.Random(seed)
    path = tmp_path / "f.gguf"
    read = 0
    tracemalloc.start()
    # One file written over and over: making thousands takes far longer than reading them.
    out = path.open("wb")
    try:
        for _ in range(PER_ROUND):
            out.seek(0)
            out.write(damaged(rng))
            out.truncate()
            out.flush()
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            read += use(path)
            _, peak = tracemalloc.get_traced_memory()
            # The file has 5,500 bytes; its largest tensor, 6,000 when read.
            assert peak - before < 20 * len(WHOLE)
    finally:
        out.close()
        tracemalloc.stop()
    # Both ends are met: a test in which nothing was refused, or everything, would show nothing.
    assert PER_ROUND // 20 < read < PER_ROUND * 19 // 20
