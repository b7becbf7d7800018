"""One shape for every call of a generator, so that a row's numbers do not depend on other rows.

The bits of a matrix product depend on its number of rows, and those of attention on its number of
slots, since a compiler cuts them into other pieces. With one number of rows, one length of the
cache and prompts read in chunks at multiples of one size, a row is computed by the same programs
in every batch, and its tokens and log-probabilities are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from llm_jax.config import DecodeConfig
from llm_jax.decode.results import Completion
from llm_jax.types import ConfigError

Ids = Sequence[int]


class DecodeShape(NamedTuple):
    """The shape of every call.

    Attributes:
        rows: that are decoded together. Fewer are filled up, more are several calls.
        length: tokens that each row has room for, its prompt included.
        chunk: tokens of a prompt that are read at once, at multiples from the row's first token on.
    """

    rows: int
    length: int
    chunk: int = 64


class Group(NamedTuple):
    """Rows of one call.

    Attributes:
        places: of the rows in what was asked for; those that fill the call up have none.
        prompts: of all rows of the call.
        configs: of all rows.
        seeds: of all rows.
    """

    places: list[int]
    prompts: list[Ids]
    configs: list[DecodeConfig]
    seeds: list[int]


class Complete(Protocol):
    def __call__(self, group: Group) -> list[list[Completion]]: ...


def check_shape(shape: DecodeShape, max_length: int) -> None:
    """Raises ConfigError for a shape that the model does not have."""
    for name, value in shape._asdict().items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"shape.{name} is {value}; it must be a whole number from 1 on")
    if shape.rows < 2:
        raise ConfigError(
            "shape.rows is 1; a product of one row has bits of its own on many machines, so that it"
            " must be 2 or more"
        )
    if shape.length > max_length:
        raise ConfigError(
            f"shape.length is {shape.length}, and the model's max_length {max_length}; lower it"
        )


def complete_in_groups(
    complete: Complete,
    rows: int,
    prompts: Sequence[Ids],
    configs: Sequence[DecodeConfig],
    seeds: Sequence[int],
) -> list[Completion]:
    """A completion of each prompt, by calls of ``rows`` rows each.

    Args:
        complete: completes a group.
        rows: of each call.
        prompts: any number.
        configs: of each prompt.
        seeds: of each prompt.
    """
    found: list[Completion | None] = [None] * len(prompts)
    for group in _groups(rows, prompts, configs, seeds):
        completed = complete(group)
        for place, (only,) in zip(group.places, completed):
            found[place] = only
    return [completion for completion in found if completion is not None]


def _groups(
    rows: int,
    prompts: Sequence[Ids],
    configs: Sequence[DecodeConfig],
    seeds: Sequence[int],
) -> list[Group]:
    by_program: dict[tuple[bool, bool], list[int]] = {}
    for place, config in enumerate(configs):
        # These run programs of their own.
        program = (config.guidance_scale != 1, config.contrastive_alpha != 0)
        by_program.setdefault(program, []).append(place)
    groups = []
    for places in by_program.values():
        for start in range(0, len(places), rows):
            chosen = places[start : start + rows]
            filled = [*chosen, *[chosen[-1]] * (rows - len(chosen))]
            groups.append(
                Group(
                    places=chosen,
                    prompts=[prompts[i] for i in filled],
                    configs=[configs[i] for i in filled],
                    seeds=[seeds[i] for i in filled],
                )
            )
    return groups
