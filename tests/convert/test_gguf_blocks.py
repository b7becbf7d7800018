"""Every block format de-quantises as its definition says and, bit for bit, as the
reference does.
"""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.convert.gguf_blocks import BLOCK_TYPES, OTHER_TYPES, dequantize

BY_NAME = {kind.name: kind for kind in BLOCK_TYPES.values()}


def half(*values: float) -> bytes:
    return np.array(values, "<f2").tobytes()


def decoded(name: str, raw: bytes) -> list[float]:
    return dequantize(raw, BY_NAME[name]).tolist()


def test_floats_are_widened_exactly():
    assert (
        decoded("F32", np.array([1.5, -0.1], "<f4").tobytes())
        == np.array([1.5, -0.1], np.float32).tolist()
    )
    assert decoded("F16", half(0.1, -2, 65504)) == [0.0999755859375, -2.0, 65504.0]
    assert decoded("BF16", bytes([0x80, 0x3F, 0x49, 0xC0])) == [1.0, -3.140625]


def test_8_bits():
    assert decoded("Q8_0", half(0.5) + np.arange(-16, 16, dtype=np.int8).tobytes()) == [
        i / 2 for i in range(-16, 16)
    ]


def test_4_bits_low_halves_first():
    packed = bytes(low | (15 - low) << 4 for low in range(16))
    assert decoded("Q4_0", half(2) + packed) == [
        2.0 * (q - 8) for q in [*range(16), *range(15, -1, -1)]
    ]
    assert decoded("Q4_1", half(2, -1) + packed) == [
        2.0 * q - 1 for q in [*range(16), *range(15, -1, -1)]
    ]


def test_4_bits_of_a_float_share_a_power_of_two():
    # 127 stands for 1; the 4 bits are a sign, two of exponent and one of mantissa (OCP Microscaling
    # Formats 1.0).
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    every = bytes(low | (15 - low) << 4 for low in range(16))
    both = [*positive, *(-x for x in positive)]
    assert decoded("MXFP4", bytes([127]) + every) == [*both, *both[::-1]]
    assert decoded("MXFP4", bytes([130]) + every) == [8 * x for x in [*both, *both[::-1]]]
    assert decoded("MXFP4", bytes([0]) + b"\x22" * 16) == [2.0**-127] * 32


def test_5_bits_have_the_fifth_apart():
    packed, fifth = bytes(16), (0b1000_0000_0000_0001_0000_0000_0000_0010).to_bytes(4, "little")
    on = {1, 16, 31}
    assert decoded("Q5_0", half(1) + fifth + packed) == [
        0.0 if i in on else -16.0 for i in range(32)
    ]
    assert decoded("Q5_1", half(1, 3) + fifth + packed) == [
        19.0 if i in on else 3.0 for i in range(32)
    ]


def test_4_bit_groups_have_scales_and_minima_of_6_bits():
    # Group 0: scale 1, minimum 2. Group 4: scale 0x35, minimum 0x2A, whose high bits lie above
    # those of groups 0's.
    scales = bytearray(12)
    scales[0] = 1 | 0b11 << 6
    scales[4] = 2 | 0b10 << 6
    scales[8] = 0x5 | 0xA << 4
    weights = np.array(decoded("Q4_K", half(1, 0.5) + bytes(scales) + b"\x73" * 128)).reshape(8, 32)
    assert (weights[0] == 1 * 3 - 0.5 * 2).all() and (weights[4] == 0x35 * 3 - 0.5 * 0x2A).all()
    assert not weights[[1, 2, 3, 5, 6, 7]].any()


def test_6_bits():
    raw = b"\x21" * 128 + b"\b" * 64 + np.arange(16, dtype=np.int8).tobytes() + half(0.25)
    weights = np.array(decoded("Q6_K", raw)).reshape(2, 4, 2, 16)
    scale = np.arange(16).reshape(2, 4, 2)
    # 0b00_1000 spread over four groups of 32: bits 0, 2, 0, 0; low halves 1 in the first two
    # groups, 2 in the others.
    for group, (low, high) in enumerate(((1, 0), (1, 2), (2, 0), (2, 0))):
        assert (
            weights[:, group] == (0.25 * scale[:, group] * (low + 16 * high - 32))[..., None]
        ).all()


@pytest.mark.parametrize("number", BLOCK_TYPES)
def test_equals_the_reference_bit_for_bit(number):
    gguf = pytest.importorskip("gguf", reason="compares with the gguf package: pip install gguf")
    from gguf.quants import dequantize as reference

    kind, theirs = BLOCK_TYPES[number], gguf.GGMLQuantizationType(number)
    assert (kind.name, kind.size, kind.nbytes) == (theirs.name, *gguf.GGML_QUANT_SIZES[theirs])
    raw = np.random.default_rng(number).integers(0, 256, (4096, kind.nbytes), dtype=np.uint8)
    # All zeros, all ones; scales that are infinite, not a number, or subnormal come by chance, in
    # every lane.
    raw[0], raw[1] = 0, 255
    ours = dequantize(raw.tobytes(), kind)
    with np.errstate(all="ignore"):
        wanted = reference(raw, theirs).reshape(-1)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), wanted.view(np.uint32))
    assert not np.isfinite(ours).all()


def test_no_type_of_the_format_is_nameless():
    gguf = pytest.importorskip("gguf", reason="compares with the gguf package: pip install gguf")
    for theirs in gguf.GGMLQuantizationType:
        name = BLOCK_TYPES[theirs].name if theirs in BLOCK_TYPES else OTHER_TYPES[theirs]
        assert name == theirs.name
