"""safetensors files: the same as the reference library's, every lie of a header named, thousands of
damaged headers survived.
"""

from __future__ import annotations

import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest

from llm_jax.convert.tensor_writer import TensorWriter
from llm_jax.tensor_file import DTYPES, TensorFile
from llm_jax.types import DataError

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.asarray([[1.5, -2.0]], ml_dtypes.bfloat16),
    "scalar": np.asarray(7, np.int64),
    "empty": np.zeros((0, 4), np.float16),
}


def written(path, arrays=ARRAYS, metadata=None):
    with TensorWriter(path, {n: (a.dtype, a.shape) for n, a in arrays.items()}, metadata) as file:
        for name, array in arrays.items():
            file.write(name, array)
    return path


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_what_is_written_is_read(tmp_path):
    file = TensorFile(written(tmp_path / "x.safetensors", metadata={"format": "pt"}))
    assert file.metadata == {"format": "pt"} and list(file.tensors) == list(ARRAYS)
    for name, array in ARRAYS.items():
        got = file.read(name)
        assert (
            got.dtype == array.dtype
            and got.shape == array.shape
            and got.tobytes() == array.tobytes()
        )
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_reference_library_reads_and_writes_the_same(tmp_path):
    reference = pytest.importorskip("safetensors.numpy", reason="pip install safetensors")
    arrays = {name: a for name, a in ARRAYS.items() if a.dtype != ml_dtypes.bfloat16}
    theirs = reference.load_file(written(tmp_path / "ours.safetensors", arrays))
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in theirs.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in arrays.items()
    }
    reference.save_file(arrays, tmp_path / "theirs.safetensors", {"k": "v"})
    file = TensorFile(tmp_path / "theirs.safetensors")
    assert file.metadata == {"k": "v"}
    assert all(
        file.read(n).tobytes() == a.tobytes() and file.read(n).shape == a.shape
        for n, a in arrays.items()
    )


def test_parts_go_where_their_index_says(tmp_path):
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with TensorWriter(tmp_path / "x", {"w": (np.float32, (2, 3, 4))}) as file:
        for index in [(1, 2), (0, 0), (1, 0), (0, 2), (0, 1), (1, 1)]:
            file.write("w", whole[index], index)
    np.testing.assert_array_equal(TensorFile(tmp_path / "x").read("w"), whole)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_large_parts_in_any_order_and_type(tmp_path, axes):
    """Larger than a piece, which divides no side; cast on the way."""
    whole = np.arange(150 * 130 * 170, dtype=np.float32).reshape(150, 130, 170).transpose(axes)
    with TensorWriter(
        tmp_path / "x", {"w": (np.float32, (2, *whole.shape)), "half": (np.float16, whole.shape)}
    ) as file:
        file.write("half", whole / 1e5)
        file.write("w", whole, (1,))
        file.write("w", -whole, (0,))
    got = TensorFile(tmp_path / "x")
    np.testing.assert_array_equal(got.read("w"), [-whole, whole])
    np.testing.assert_array_equal(got.read("half"), (whole / 1e5).astype(np.float16))


@pytest.mark.parametrize("platforms", ["cpu", "tpu"])
@pytest.mark.parametrize("kind", DTYPES)
def test_turned_matrices_of_every_type(tmp_path, kind, platforms, monkeypatch):
    """Rows longer than a piece; with XLA's CPU and without it."""
    asked = []
    devices = jax.local_devices
    monkeypatch.setattr(
        jax, "local_devices", lambda backend: asked.append(backend) or devices(backend=backend)
    )
    dtype = DTYPES[kind]
    numbers = (
        np.random.default_rng(0)
        .integers(0, 2 if kind == "BOOL" else 120, (300_000, 35))
        .astype(dtype)
    )
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        with TensorWriter(
            tmp_path / "x", {"turned": (dtype, (35, 300_000)), "flipped": (dtype, numbers.shape)}
        ) as file:
            file.write("turned", numbers.T)
            file.write("flipped", numbers[::-1, ::-1])
    finally:
        jax.config.update("jax_platforms", before)
    # jax has no CPU to ask for where JAX_PLATFORMS leaves it out, and no types of 8 bytes.
    assert set(asked) == ({"cpu"} if platforms == "cpu" and dtype.itemsize < 8 else set())
    got = TensorFile(tmp_path / "x")
    assert (
        got.read("turned").tobytes() == numbers.T.tobytes()
        and got.read("flipped").tobytes() == numbers[::-1, ::-1].tobytes()
    )


def test_a_file_appears_only_whole(tmp_path):
    whole, x = pytest.raises(ValueError, match="'w' was not written exactly once"), tmp_path / "x"
    with whole, TensorWriter(x, {"w": (np.float32, (2, 3))}) as f:
        f.write("w", np.zeros(3, np.float32), (0,))
    with pytest.raises(KeyError), TensorWriter(tmp_path / "x", {"w": (np.float32, (2,))}) as f:
        f.write("v", np.zeros(2, np.float32))
    other = pytest.raises(ValueError, match=r"w\[\] is int32\(2,\), the file has float32\(2,\)")
    with other, TensorWriter(x, {"w": (np.float32, (2,))}) as f:
        f.write("w", np.zeros(2, np.int32))
    with pytest.raises(
        DataError, match="tensor 'w' has the type complex64, which safetensors files lack"
    ):
        TensorWriter(tmp_path / "x", {"w": (np.complex64, (2,))})
    large = pytest.raises(
        DataError, match="values of x are too large for float16; write the file as bfloat16"
    )
    with large, TensorWriter(x, {"w": (np.float16, (2,))}) as f:
        f.write("w", np.asarray([1.0, 1e6], np.float32))
    assert not list(tmp_path.iterdir())


BROKEN = {
    "fewer than the 8": b"1234567",
    "its header would have 1,000 bytes, the file has 12": (1000).to_bytes(8, "little") + b"{}  ",
    "its header would have 9,223,372,036,854,775,807 bytes": (
        (2**63 - 1).to_bytes(8, "little") + b"{}"
    ),
}
LIES = {
    "its header is not valid JSON ": b"{",
    "its header is not a JSON object": b"[]",
    "'a' is there twice": b'{"a":1,"a":2}',
    "its __metadata__ is not an object of strings": {"__metadata__": {"a": 1}},
    "tensor 'a' is not described by dtype, shape and data_offsets": {"a": {"dtype": "F32"}},
    "tensor 'a' has the type 'F31'; there are F64": {"a": entry([1], 0, 4, "F31")},
    r"tensor 'a' has the shape \[-1\], which is not a list of sizes": {"a": entry([-1], 0, 4)},
    r"tensor 'a' has the shape \[1.0\]": {"a": entry([1.0], 0, 4)},
    r"tensor 'a' has the shape \[True\]": {"a": entry([True], 0, 4)},
    r"tensor 'a' has the data_offsets \[0, 9223372036854775808\]": {"a": entry([1], 0, 2**63)},
    "has 4 bytes, but data_offsets": {"a": entry([1], 0, 8)},
    "has 16,000,000,000,000,000,000 bytes, but": {"a": entry([4 * 10**18], 0, 4)},
    r"has 8 bytes, but data_offsets \[0, 8\]": {"a": entry([2], 0, 8)},
    r"'b' of shape \[0, 4611686018427387904, 2\] has a name that cannot be printed, or is too": {
        "b": entry([0, 2**62, 2], 0, 0)
    },
    r"of shape \[1\] has a name that cannot be printed": {"\ud800": entry([1], 0, 4)},
    "'b' at byte .* overlaps 'a'": {"a": entry([1], 0, 4), "b": entry([1], 0, 4)},
    "'b' at byte .* leaves a gap after 'a'": {"a": entry([0], 0, 0), "b": entry([0], 4, 4)},
    "its tensors end at byte .* and the file at": {"a": entry([0], 0, 0)},
}


@pytest.mark.parametrize("message", LIES)
def test_each_lie_of_a_header_is_named(tmp_path, message):
    path = raw(tmp_path / "x.safetensors", LIES[message], b"\0" * 4)
    with pytest.raises(DataError, match=message) as error:
        TensorFile(path)
    assert "x.safetensors" in str(error.value) and "fetch or write it again" in str(error.value)


@pytest.mark.parametrize("message", BROKEN)
def test_a_file_that_is_none_is_named(tmp_path, message):
    (tmp_path / "x").write_bytes(BROKEN[message])
    with pytest.raises(DataError, match=message):
        TensorFile(tmp_path / "x")
    with pytest.raises(DataError, match="cannot be read"):
        TensorFile(tmp_path / "y")


def test_nesting_and_long_numbers_are_no_crash(tmp_path):
    for header in (
        b"[" * 100_000,
        b'{"a":' + b"1" * 10_000 + b"}",
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,Infinity]}}',
    ):
        with pytest.raises(DataError, match="is not an intact safetensors file"):
            TensorFile(raw(tmp_path / "x", header))


def test_2000_damaged_headers(tmp_path):
    """A clear error or a right reading each time, and never more memory than a small multiple of
    the file.
    """
    good = written(tmp_path / "good").read_bytes()
    length = int.from_bytes(good[:8], "little")
    rng, path, read = np.random.default_rng(0), tmp_path / "bad", 0
    tracemalloc.start()
    for _ in range(2000):
        bad = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            kind, at = rng.integers(4), int(rng.integers(8 + length))
            if kind == 0:
                bad[at] = rng.integers(256)
            elif kind == 1:
                bad[at] = ord(rng.choice(list('0123456789[]{},:"-eE.')))
            elif kind == 2:
                del bad[at : at + int(rng.integers(1, 9))]
            else:
                bad[at:at] = bytes(
                    rng.choice(list(b"0123456789"), int(rng.integers(1, 20))).tolist()
                )
        path.write_bytes(bad)
        try:
            file = TensorFile(path)
        except DataError as error:
            assert "is not an intact safetensors file" in str(error)
            continue
        read += 1
        for name, stored in file.tensors.items():
            assert (
                file.read(name).nbytes == stored.nbytes <= len(bad)
                and stored.dtype in DTYPES.values()
            )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < read < 2500 and peak < 3_000_000
