"""The alphabet and the one structure every floor shares: ``Batch``.

Alphabet (used in einsum strings, docstrings and, in dense maths, as suffixes):

    B batch · T query length · S key length · L layers · D model · F hidden · N query heads · K
    key/value heads G = N/K · H head dimension · V vocabulary · C latent of keys and values · R
    rotated part of a head

A packed row, worked (``T = 8``; documents ``<s> a b </s>`` and ``<s> c d e …``; the second goes on
in another row):

    ids          <s>  a    b    </s> <s>  c    d    e
    targets      a    b    </s> <s>  c    d    e    f
    loss_mask    1    1    1    0    1    1    1    1     0: the next token is of another one
    segment_ids  1    1    1    1    2    2    2    2     0 would mean padding
    positions    0    1    2    3    0    1    2    3     restart with every document

This module imports only the standard library and numpy, so the data pipeline can use it without
jax.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

# A numpy or a jax array: this floor knows neither jax nor its types.
Array = Any
# A nested dict of arrays.
Params = Any


# What a parameter is, whatever its name: a matrix multiplies activations; scale is what a quantized
# matrix is multiplied with.
Role = Literal[
    "matrix",
    "router",
    "head",
    "embedding",
    "position",
    "norm",
    "bias",
    "sink",
    "balance",
    "scale",
]
ROLES: tuple[Role, ...] = get_args(Role)
# Axes of parameters that no product sums over and none makes: each layer, each expert is one more
# matrix of the same kind.
STACK_AXES = ("layers", "expert")


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """What a parameter is: read by weight decay, Muon, casting, sharding, quantization and `plan`.

    It is a leaf of ``Model.specs``, a tree of the structure of the parameters.

    Attributes:
        axes: logical axis of each dimension (``sharding.RULES``); None is split over no mesh.
        contract: indices of the dimensions that a product with the parameter sums over; () of what
            is no matrix.
        role: what the parameter is for.
        group_index: index of a kernel among those of its module that multiply the same input, by
            ``ops.weights.matmul_group``; None of a kernel that is multiplied alone.
    """

    axes: tuple[str | None, ...]
    contract: tuple[int, ...]
    role: Role
    group_index: int | None = None

    @property
    def outputs(self) -> tuple[int, ...]:
        """Indices of the dimensions that a product with the parameter makes."""
        return tuple(
            i
            for i, axis in enumerate(self.axes)
            if i not in self.contract and axis not in STACK_AXES
        )

    def stacked(self) -> ParamSpec:
        """The spec with a leading dimension for layers."""
        contract = tuple(i + 1 for i in self.contract)
        return dataclasses.replace(self, axes=("layers", *self.axes), contract=contract)

    def of_one_layer(self) -> ParamSpec:
        """The inverse of ``stacked``."""
        contract = tuple(i - 1 for i in self.contract)
        return dataclasses.replace(self, axes=self.axes[1:], contract=contract)


class ConfigError(ValueError):
    """A configuration or an argument that cannot be honoured; the message names it, its value and
    the fix.
    """


class DataError(ValueError):
    """Input data that cannot be used; the message names the file or field and the fix."""


class NonFiniteError(RuntimeError):
    """The loss, the gradient or logits became NaN or infinite; the message says where."""


class Tokens(NamedTuple):
    """Rows of packed documents [B, T]; a pytree, since it is a NamedTuple.

    ids: int32, token ids.
    segment_ids: int32, 1, 2, … per document within a row, 0 for padding. Attention never crosses a
        segment.
    positions: int32, index of the token within its segment.
    mutual_ids: int32 or None. Tokens of a segment that have the same id, not 0, see each other in
        both directions, whatever their order (a prefix, or the patches of an image); 0 is causal.
    token_types: int32 or None. Type of each token (``ModelConfig.token_types``), such as which of
        two sentences; None is 0 for all.
    """

    ids: Array
    segment_ids: Array
    positions: Array
    mutual_ids: Array | None = None
    token_types: Array | None = None


class Batch(NamedTuple):
    """One batch of token rows; a pytree, since it is a NamedTuple.

    Whatever handles a batch (hashes it, splits it by rows, accumulates, counts its memory) does so
    leaf by leaf.

    inputs: what the model reads, [B, T].
    targets: int32 [B, T], the token that follows each input token in the stream; of a masked
        language model the token that was there.
    loss_mask: bool [B, T], True where predicting ``targets`` counts. Never True across a document
        boundary or on padding.
    encoder: what an encoder reads [B, S], for models that have one
        (``model.encoder``), or None: tokens of segment n see the encoder's tokens of
        segment n, so that pairs can be packed.
    extras: arrays [B, …] by name that an objective declares and only its loss reads, or None.
    """

    inputs: Tokens
    targets: Array
    loss_mask: Array
    encoder: Tokens | None = None
    extras: dict[str, Array] | None = None
