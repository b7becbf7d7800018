"""De-quantization of GGUF's block formats, vectorized over blocks, bit for bit as in the reference.

A tensor is a row of blocks along its last dimension. Each block holds ``size`` weights in
``nbytes`` bytes: one or two float16 scales and small integers.

Source: ggml's ``ggml-common.h`` (layouts) and ``ggml-quants.c`` (arithmetic), all little endian.
Operands have the reference's order too, so that NaNs come out with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class BlockType(NamedTuple):
    """One block format.

    Attributes:
        name: Its name in ggml.
        size: Weights of a block.
        layout: Bytes of a block.
        decode: Function from ``[n]`` blocks to float32 ``[n, size]``.
    """

    name: str
    size: int
    layout: np.dtype
    decode: Callable[[np.ndarray], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of a block."""
        return self.layout.itemsize


def dequantize(raw: bytes | np.ndarray, kind: BlockType) -> np.ndarray:
    """Weights of whole blocks, float32 ``[weights]``. Widening float16 and bfloat16 is exact."""
    blocks = np.frombuffer(raw, kind.layout)
    # Infinite and NaN scales are kept; the caller checks the weights.
    with np.errstate(invalid="ignore", over="ignore"):
        return kind.decode(blocks).reshape(-1)


def _column(blocks: np.ndarray, name: str) -> np.ndarray:
    """A float16 of each block as float32 ``[n, 1]``."""
    return blocks[name].astype(np.float32)[:, None]


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """``[..., k]`` bytes -> ``[..., 2k]``: all low halves, then all high halves."""
    low = packed & np.uint8(15)
    high = packed >> np.uint8(4)
    return np.concatenate([low, high], axis=-1)


def _groups(packed: np.ndarray, width: int, bits: int) -> np.ndarray:
    """Bytes ``[n, k]`` -> ``[n, k // width * 8 // bits * width]``: of every ``width`` bytes all
    lowest ``bits``, then all next ``bits``.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    mask = np.uint8((1 << bits) - 1)
    parts = packed.reshape(len(packed), -1, 1, width) >> shifts & mask
    return parts.reshape(len(packed), -1)


def _centered(unsigned: np.ndarray, zero: int) -> np.ndarray:
    """Unsigned integers as float32, less the integer that stands for 0."""
    return (unsigned.astype(np.int8) - np.int8(zero)).astype(np.float32)


def _f32(blocks: np.ndarray) -> np.ndarray:
    return blocks["w"]


def _f16(blocks: np.ndarray) -> np.ndarray:
    return blocks["w"].astype(np.float32)


def _bf16(blocks: np.ndarray) -> np.ndarray:
    return (blocks["w"].astype(np.uint32) << np.uint32(16)).view(np.float32)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks["q"].astype(np.float32) * _column(blocks, "d")


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return _column(blocks, "d") * _centered(_nibbles(blocks["q"]), 8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    scaled = _column(blocks, "d") * _nibbles(blocks["q"]).astype(np.float32)
    return scaled + _column(blocks, "m")


def _five_bits(blocks: np.ndarray) -> np.ndarray:
    fifth = np.unpackbits(blocks["h"], axis=-1, bitorder="little")
    return _nibbles(blocks["q"]) | fifth << np.uint8(4)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    return _column(blocks, "d") * _centered(_five_bits(blocks), 16)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    scaled = _column(blocks, "d") * _five_bits(blocks).astype(np.float32)
    return scaled + _column(blocks, "m")


def _k_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima of the eight groups of a block, float32 ``[n, 8, 1]`` each: 6 bits apiece,
    packed in 12 bytes.
    """
    low = blocks["s"][:, :4]
    middle = blocks["s"][:, 4:8]
    high = blocks["s"][:, 8:]
    scales = np.concatenate([low & 63, high & 15 | low >> 2 & 48], axis=-1)
    minima = np.concatenate([middle & 63, high >> 4 | middle >> 2 & 48], axis=-1)
    d = _column(blocks, "d") * scales.astype(np.float32)
    m = _column(blocks, "m") * minima.astype(np.float32)
    return d[:, :, None], m[:, :, None]


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    d, m = _k_scales(blocks)
    q = _groups(blocks["q"], 32, 4)
    return d * q.reshape(-1, 8, 32).astype(np.float32) - m


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    d, m = _k_scales(blocks)
    q = _groups(blocks["q"], 32, 4) | _groups(blocks["h"], 32, 1) << np.uint8(4)
    return d * q.reshape(-1, 8, 32).astype(np.float32) - m


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    q = _groups(blocks["q"], 64, 4) | _groups(blocks["h"], 32, 2) << np.uint8(4)
    d = _column(blocks, "d") * blocks["s"].astype(np.float32)
    return d[:, :, None] * _centered(q, 32).reshape(-1, 16, 16)


# The values of 4 bits, doubled, since ``_mxfp4`` halves the scale.
_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _mxfp4(blocks: np.ndarray) -> np.ndarray:
    exponent = blocks["e"].astype(np.uint32)
    # Bits of the float32 2 ** (exponent - 128), half of the block's scale. The two smallest ones
    # are subnormal.
    subnormal = np.uint32(0x00200000) << np.minimum(exponent, 1)
    normal = (np.maximum(exponent, 1) - 1) << np.uint32(23)
    half = np.where(exponent < 2, subnormal, normal).astype(np.uint32)
    return half.view(np.float32)[:, None] * _FP4[_nibbles(blocks["q"])]


# Fields of blocks: the scale and the minimum.
_D = ("d", "<f2")
_M = ("m", "<f2")


def _block_type(
    name: str, size: int, fields: list, decode: Callable[[np.ndarray], np.ndarray]
) -> BlockType:
    return BlockType(name, size, np.dtype(fields), decode)


# By the number in a tensor's header.
BLOCK_TYPES = {
    0: _block_type("F32", 1, [("w", "<f4")], _f32),
    1: _block_type("F16", 1, [("w", "<f2")], _f16),
    2: _block_type("Q4_0", 32, [_D, ("q", "u1", 16)], _q4_0),
    3: _block_type("Q4_1", 32, [_D, _M, ("q", "u1", 16)], _q4_1),
    6: _block_type("Q5_0", 32, [_D, ("h", "u1", 4), ("q", "u1", 16)], _q5_0),
    7: _block_type("Q5_1", 32, [_D, _M, ("h", "u1", 4), ("q", "u1", 16)], _q5_1),
    8: _block_type("Q8_0", 32, [_D, ("q", "i1", 32)], _q8_0),
    12: _block_type("Q4_K", 256, [_D, _M, ("s", "u1", 12), ("q", "u1", 128)], _q4_k),
    13: _block_type(
        "Q5_K", 256, [_D, _M, ("s", "u1", 12), ("h", "u1", 32), ("q", "u1", 128)], _q5_k
    ),
    14: _block_type("Q6_K", 256, [("q", "u1", 128), ("h", "u1", 64), ("s", "i1", 16), _D], _q6_k),
    30: _block_type("BF16", 1, [("w", "<u2")], _bf16),
    39: _block_type("MXFP4", 32, [("e", "u1"), ("q", "u1", 16)], _mxfp4),
}
# Types of the format that are refused here; an error names them.
OTHER_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    40: "NVFP4",
    41: "Q1_0",
}
