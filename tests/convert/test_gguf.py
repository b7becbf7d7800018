"""GGUF files are read as they were written; slices read their own bytes; whatever cannot be true is
refused by name.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tracemalloc

import gguf_builders as made
import numpy as np
import pytest
from gguf_builders import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    gguf,
    key,
    tensor,
)

from llm_jax.convert.gguf import open_gguf
from llm_jax.types import DataError

FLOATS = np.arange(24, dtype="<f4")


@pytest.fixture
def opened(tmp_path):
    """``opened(bytes)``: the bytes as a file, opened."""

    def write_and_open(raw: bytes):
        (tmp_path / "model.gguf").write_bytes(raw)
        return open_gguf(tmp_path / "model.gguf")

    return write_and_open


def plain(**changes) -> bytes:
    """A file with one float32 tensor ``w`` of shape (4, 6)."""
    return gguf(**{"tensors": [tensor("w", (6, 4), 0, 0)], "data": FLOATS.tobytes(), **changes})


@pytest.mark.parametrize("version", [2, 3])
def test_every_type_of_value(opened, version):
    values = {
        "u8": (U8, 255),
        "i8": (I8, -128),
        "u16": (U16, 65535),
        "i16": (I16, -1),
        "u32": (U32, 2**32 - 1),
        "i32": (I32, -7),
        "u64": (U64, 2**64 - 1),
        "i64": (I64, -(2**63)),
        "f32": (F32, 0.5),
        "f64": (F64, 0.1),
        "yes": (BOOL, True),
        "no": (BOOL, False),
        "text": (STRING, "ação 👍"),
        "none": (STRING, ""),
    }
    file = opened(gguf([key(name, *value) for name, value in values.items()], version=version))
    assert file.version == version
    assert file.metadata == {name: value for name, (_, value) in values.items()}
    assert {name: type(value) for name, value in file.metadata.items()} == {
        name: type(value) for name, (_, value) in values.items()
    }


def test_arrays(opened):
    keys = [
        key("ids", ARRAY, (I32, [3, -1])),
        key("scores", ARRAY, (F32, [0.5, -2.0, 8.0])),
        key("flags", ARRAY, (BOOL, [True, False])),
        key("words", ARRAY, (STRING, ["a", "", "é"])),
        key("nested", ARRAY, (ARRAY, [(U8, [1, 2]), (STRING, ["x"]), (U8, [])])),
        key("empty", ARRAY, (STRING, [])),
    ]
    got = opened(gguf(keys)).metadata
    assert got["ids"].dtype == np.int32 and got["ids"].tolist() == [3, -1]
    assert got["scores"].dtype == np.float32 and got["scores"].tolist() == [0.5, -2.0, 8.0]
    assert got["flags"].dtype == bool and got["flags"].tolist() == [True, False]
    assert got["words"] == ["a", "", "é"] and got["empty"] == []
    assert [list(inner) for inner in got["nested"]] == [[1, 2], ["x"], []]


def test_a_file_that_the_reference_writes(tmp_path):
    reference = pytest.importorskip("gguf", reason="writes with the gguf package: pip install gguf")
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (
            ("F32", (3,)),
            ("F16", (2, 3, 5)),
            ("BF16", (7, 2)),
            ("Q8_0", (5, 64)),
            ("Q4_0", (2, 3, 32)),
            ("Q4_1", (1, 96)),
            ("Q5_0", (4, 32)),
            ("Q5_1", (4, 32)),
        )
    }
    raw = {
        name: reference.quants.quantize(weight, reference.GGMLQuantizationType[name])
        for name, weight in weights.items()
    }
    raw |= {
        name: rng.integers(0, 256, (3, 2 * size), np.uint8)
        for name, size in (("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 210))
    }
    writer = reference.GGUFWriter(tmp_path / "w.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_token_list(["<s>", "▁a"])
    writer.add_token_scores([0.0, -1.5])
    for name, blocks in raw.items():
        writer.add_tensor(f"t.{name}", blocks, raw_dtype=reference.GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file, theirs = open_gguf(tmp_path / "w.gguf"), reference.GGUFReader(tmp_path / "w.gguf")
    assert set(file.metadata) == {name for name in theirs.fields if not name.startswith("GGUF.")}
    for name, value in file.metadata.items():
        np.testing.assert_array_equal(value, theirs.fields[name].contents())
    assert list(file.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        mine = file.tensors[t.name]
        assert mine.shape == tuple(map(int, t.shape[::-1])) and mine.type == t.tensor_type.name
        assert (mine.offset, mine.nbytes) == (t.data_offset, t.n_bytes) and mine.offset % 64 == 0
        with np.errstate(all="ignore"):
            wanted = reference.quants.dequantize(t.data, t.tensor_type)
        np.testing.assert_array_equal(file.read(t.name), wanted.reshape(mine.shape))


def test_shape_is_the_reverse_and_rows_are_slices_of_the_first_dimension(opened):
    file = opened(plain())
    whole = FLOATS.reshape(4, 6)
    assert file.tensors["w"].shape == (4, 6)
    np.testing.assert_array_equal(file.read("w"), whole)
    for rows in (
        slice(None),
        slice(1, 3),
        slice(2, None),
        slice(-1, None),
        slice(3, 99),
        slice(2, 2),
        slice(3, 1),
    ):
        got = file.read("w", rows)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, whole[rows])


def test_rows_of_blocks(opened):
    blocks = np.random.default_rng(1).integers(0, 120, (6, 2, 34), dtype=np.uint8)
    file = opened(
        gguf(
            tensors=[tensor("w", (64, 3, 2), 8, 0), tensor("v", (64,), 8, 416)],
            data=blocks.tobytes() + bytes(8) + bytes(68),
        )
    )
    whole = file.read("w")
    assert whole.shape == (2, 3, 64)
    np.testing.assert_array_equal(file.read("w", slice(1, 2)), whole[1:])
    assert file.read("v", slice(32, 64)).tolist() == [0.0] * 32
    with pytest.raises(
        DataError,
        match=(
            r"rows=slice\(3, 64, None\) of tensor 'v' cuts a Q8_0 block of 32; begin and end at"
            r" multiples"
        ),
    ):
        file.read("v", slice(3, 64))


def test_a_scalar(opened):
    file = opened(gguf(tensors=[tensor("s", (), 0, 0)], data=FLOATS[5:6].tobytes()))
    assert file.read("s").shape == () and file.read("s") == 5
    with pytest.raises(DataError, match=r"rows=slice\(0, 1, None\) of tensor 's' of shape \(\)"):
        file.read("s", slice(0, 1))


def test_reading_says_what_is_wrong(opened, tmp_path):
    file = opened(plain())
    with pytest.raises(DataError, match=r"model.gguf': has no tensor 'ww'; nearest: w"):
        file.read("ww")
    with pytest.raises(DataError, match="has no tensor 'token_embd.weight'; see .tensors"):
        file.read("token_embd.weight")
    with pytest.raises(DataError, match=r"rows=slice\(0, 4, 2\).*only a slice with step 1"):
        file.read("w", slice(0, 4, 2))
    (tmp_path / "model.gguf").write_bytes(plain()[:-1])
    with pytest.raises(
        DataError,
        match="tensor 'w' ends before its 96 bytes; the file has changed since it was opened",
    ):
        file.read("w")
    (tmp_path / "model.gguf").unlink()
    with pytest.raises(DataError, match="tensor 'w' cannot be read .No such file"):
        file.read("w")


def test_reading_a_tensor_takes_its_result_and_little_more(opened):
    rows = 20_000
    file = opened(gguf(tensors=[tensor("w", (256, rows), 14, 0)], data=bytes(210 * rows)))
    tracemalloc.start()
    whole = file.read("w")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    file.read("w", slice(7, 8))
    _, peak_of_row = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert whole.nbytes == 256 * rows * 4
    assert peak < whole.nbytes + (8 << 20)
    assert peak_of_row - before < 100_000


# What is wrong -> the file, and what the error must say. Every one also names the file.
MANY = 2**40
FLOAT_KEY = key("x", F32, 1.0)
BAD = {
    "empty": (
        b"",
        (
            "the magic at byte 0 needs 4 bytes, and 0 are left; the file is damaged or incomplete;"
            " download it again"
        ),
    ),
    "not gguf": (
        b"PK\3\4" + bytes(40),
        "begins with b'PK\\x03\\x04', not b'GGUF'; name a .gguf file",
    ),
    "big endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "is big endian, and only little endian files are read; convert the model again",
    ),
    "version 1": (
        gguf(version=1),
        (
            "has version 1, and versions 2 and 3 are supported; convert the model again with a"
            " current converter"
        ),
    ),
    "version 9": (gguf(version=9), "has version 9, and versions 2 and 3 are supported"),
    "no counts": (gguf()[:20], "the number of keys at byte 16 needs 8 bytes, and 4 are left"),
    "keys": (
        gguf([FLOAT_KEY], key_count=MANY),
        "the number of keys is 1,099,511,627,776, and the 40 bytes that are left hold at most 3",
    ),
    "tensors": (
        plain(tensor_count=2**64 - 1),
        "the number of tensors is 18,446,744,073,709,551,615, and the 168 bytes",
    ),
    "cut": (gguf([key("x", F64, 1.0)])[:-27], "key 'x' at byte 37 needs 8 bytes, and 0 are left"),
    "key length": (
        gguf([struct.pack("<Q", MANY) + bytes(30)]),
        "key 0 at byte 24 has 1,099,511,627,776 bytes, and at most 65,535",
    ),
    "key text": (
        gguf([key(b"a\xff", U8, 1)]),
        "key 0 at byte 24 is not valid UTF-8 (invalid start byte at byte 1)",
    ),
    "key twice": (gguf([FLOAT_KEY, FLOAT_KEY]), "key 'x' appears twice; convert the model again"),
    "value type": (
        gguf([made.text("k") + struct.pack("<I", 13) + bytes(8)]),
        "key 'k' has value type 13, and 0 to 12 are known",
    ),
    "bool": (
        gguf([key("k", U8, 2).replace(b"k\0\0\0\0", b"k\7\0\0\0")]),
        "key 'k' is a boolean with value 2, and only 0 and 1 are allowed",
    ),
    "string": (
        gguf([made.text("k") + struct.pack("<IQ", STRING, MANY)]),
        "key 'k' at byte 45 needs 1,099,511,627,776 bytes, and 19 are",
    ),
    "array": (
        gguf([made.text("k") + struct.pack("<IIQ", ARRAY, F64, MANY)]),
        "the length of key 'k' is 1,099,511,627,776, and the 15",
    ),
    "array type": (
        gguf([made.text("k") + struct.pack("<IIQ", ARRAY, 99, 1)]),
        "key 'k' has elements of value type 99",
    ),
    "strings": (
        gguf([made.text("k") + struct.pack("<IIQ", ARRAY, STRING, MANY)]),
        "the length of key 'k' is 1,099,511,627,776",
    ),
    "bools": (
        gguf([key("k", ARRAY, (U8, [3])).replace(b"\0\0\0\0\1", b"\7\0\0\0\1")]),
        "key 'k' is a boolean with value 3",
    ),
    "nesting": (
        gguf([made.text("k") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 9]),
        "key 'k' nests arrays deeper than 4",
    ),
    "alignment": (
        plain(keys=[key("general.alignment", U32, 48)]),
        "general.alignment is 48, and must be a power of two",
    ),
    "alignment 0": (
        plain(keys=[key("general.alignment", U32, 0)]),
        "general.alignment is 0, and must be a power of two",
    ),
    "alignment text": (
        plain(keys=[key("general.alignment", STRING, "32")]),
        "general.alignment is '32', and must be a power of two",
    ),
    "alignment far": (
        plain(keys=[key("general.alignment", U32, 1 << 31)]),
        "tensor 'w' ends at byte 2,147,483,744, and the file has",
    ),
    "one of many": (
        plain(keys=[key("split.count", U16, 3)]),
        "is one of several parts (split.count 3); merge the parts into one file",
    ),
    "parts": (
        plain(keys=[key("split.count", ARRAY, (U16, [1, 1]))]),
        "is one of several parts (split.count array",
    ),
    "tensor twice": (plain(tensors=[tensor("w", (6, 2), 0, 0)] * 2), "tensor 'w' appears twice"),
    "rank": (
        plain(tensors=[tensor("w", (1, 1, 1, 6, 4), 0, 0)]),
        "tensor 'w' has 5 dimensions, and at most 4 are allowed",
    ),
    "no weights": (
        plain(tensors=[tensor("w", (2**63, 0), 0, 0)]),
        "tensor 'w' has shape (0, 9223372036854775808), which has no elements",
    ),
    "overflow": (
        plain(tensors=[tensor("w", (2**32, 2**32), 0, 0)]),
        "tensor 'w' of shape (4294967296, 4294967296) and type F32 needs",
    ),
    "too large": (
        plain(tensors=[tensor("w", (6, 400), 0, 0)]),
        "needs 9,600 bytes, and the file has",
    ),
    "unknown type": (
        plain(tensors=[tensor("w", (6, 4), 77, 0)]),
        "tensor 'w' has type unknown (77), and F32, F16, Q4_0, Q4_1, Q5_0",
    ),
    "other type": (
        plain(tensors=[tensor("w", (256,), 10, 0)]),
        "tensor 'w' has type Q2_K (10), and F32, F16",
    ),
    "half a block": (
        plain(tensors=[tensor("w", (48, 2), 8, 0)]),
        "tensor 'w' has shape (2, 48), and Q8_0 needs a last dimension divis",
    ),
    "block of none": (
        plain(tensors=[tensor("w", (), 8, 0)]),
        "tensor 'w' has shape (), and Q8_0 needs",
    ),
    "offset": (
        plain(tensors=[tensor("w", (6, 2), 0, 4)]),
        "tensor 'w' has offset 4, which is not a multiple of the alignment 32",
    ),
    "outside": (
        plain(tensors=[tensor("w", (6, 4), 0, 32)]),
        "tensor 'w' ends at byte 224, and the file has 192",
    ),
    "far outside": (
        plain(tensors=[tensor("w", (6, 4), 0, 2**64 - 32)]),
        "tensor 'w' ends at byte 18,446,744,073,709,551,776, and",
    ),
    "overlap": (
        plain(tensors=[tensor("b", (8,), 0, 32), tensor("a", (9,), 0, 0)]),
        "tensors 'a' (offset 0, 36 bytes) and 'b' (offset 32)",
    ),
    "cut data": (plain()[:-1], "tensor 'w' ends at byte 192, and the file has 191"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_true_is_named(opened, tmp_path, what):
    raw, words = BAD[what]
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        opened(raw)
    assert f"gguf {str(tmp_path / 'model.gguf')!r}" in str(caught.value)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(
            DataError, match=re.escape(f"gguf {str(path)!r} is not a file; name a .gguf file")
        ):
            open_gguf(path)


def test_a_long_name_does_not_flood_the_error(opened):
    with pytest.raises(DataError) as caught:
        opened(gguf([key("k" * 60_000, U8, 1)] * 2))
    assert len(str(caught.value)) < 400


DENSE = {
    "keys": gguf([key(f"{i:x}", U8, 1) for i in range(20_000)]),
    "strings": gguf([key("k", ARRAY, (STRING, [f"{i % 4096:x}" for i in range(30_000)]))]),
    "arrays": gguf([key("k", ARRAY, (ARRAY, [(U8, [])] * 20_000))]),
    "numbers": gguf([key("k", ARRAY, (U8, [1] * 300_000))]),
    "tensors": gguf(
        tensors=[tensor(f"{i:x}", (1,), 0, 32 * i) for i in range(5_000)], data=bytes(32 * 5_000)
    ),
}


@pytest.mark.parametrize("what", DENSE)
def test_no_header_makes_more_than_a_small_multiple_of_itself(opened, what):
    tracemalloc.start()
    opened(DENSE[what])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(DENSE[what])


def test_only_numpy_is_imported():
    modules = "llm_jax.convert.gguf, llm_jax.convert.gguf_blocks, llm_jax.convert.gguf_tokenizer"
    heavy = "{'jax', 'gguf', 'torch', 'tokenizers', 'transformers'}"
    code = (
        f"import sys, {modules}; sys.exit(repr({heavy} & set(sys.modules)) if {heavy} &"
        " set(sys.modules) else 0)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
