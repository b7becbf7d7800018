"""The cost of training or decoding a number of tokens on a slice.

Chip-hours, money, energy and carbon are estimates, each given as a range.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llm_jax.plan.topology import Slice
from llm_jax.types import ConfigError

Range = tuple[float, float]


class Price(NamedTuple):
    """A price in USD per chip-hour on demand, with the month (``YYYY-MM``) and the source."""

    usd: float
    date: str
    source: str


_GCP = "list price, cloud.google.com/tpu/pricing"
PRICES = {
    "v4": Price(3.22, "2025-01", f"{_GCP}, us-central2"),
    "v5e": Price(
        1.20, "2025-02", f"{_GCP}, as in How to Scale Your Model, chapter on serving Llama 3"
    ),
    "v5p": Price(
        4.20, "2025-02", f"{_GCP}, as in How to Scale Your Model, chapter on serving Llama 3"
    ),
    "v6e": Price(2.70, "2026-07", f"{_GCP}, us-central1"),
    "h100": Price(6.88, "2026-11", "an eighth of AWS p5.48xlarge, us-east-1"),
    "h200": Price(
        7.912,
        "2026-08",
        "an eighth of AWS p5en.48xlarge, us-east-1, as in github.com/dstackai/dstack/pull/4110",
    ),
}
# Power usage effectiveness (energy of the building per energy of its machines), by platform.
PUE = {
    "tpu": (1.09, "Google's fleet in 2025, its environmental report of 2026"),
    "gpu": (1.15, "AWS's fleet in 2024, its sustainability report"),
    "cpu": (1.0, "no building counted"),
}
GRID = (458.0, "g CO2e/kWh, the world's electricity in 2025: Ember, Global Electricity Review 2026")


class Assumed(NamedTuple):
    """Figures that a user states in place of the tables; 0 takes the table's.

    Attributes:
        price: USD per chip-hour.
        pue: energy of the building per energy of the chips.
        grid: g CO2e per kWh.
    """

    price: float = 0.0
    pue: float = 0.0
    grid: float = 0.0


class Cost(NamedTuple):
    """Costs as ranges from the best time of a step to the time with nothing overlapped.

    Energy and carbon also range from the least to the most power of the chip. ``price`` and
    ``usd`` are None where no price is known. Each ``*_source`` names the source of a factor.
    """

    tokens: int
    chip_hours: Range
    price: float | None
    price_source: str
    usd: Range | None
    watts: Range
    watts_source: str
    pue: float
    pue_source: str
    kwh: Range
    grid: float
    grid_source: str
    kg_co2e: Range


def cost(
    target: Slice,
    tokens: int,
    tokens_per_step: float,
    seconds: Range,
    assumed: Assumed = Assumed(),  # noqa: B008 (frozen)
) -> Cost:
    """The cost of ``tokens`` on ``target``.

    Energy covers the chips and the building's overhead for them, not hosts or the network between
    nodes.

    Args:
        target: the slice.
        tokens: tokens to train on, or to write.
        tokens_per_step: tokens of one step.
        seconds: of one step, at best and at worst.
        assumed: figures that replace those of the tables.

    Raises:
        ConfigError: ``tokens`` is less than 1, or a stated figure is out of range.
    """
    _check(tokens, assumed)
    price, price_source = _price(target, assumed)
    pue, pue_source = (assumed.pue, "stated") if assumed.pue else PUE[target.chip.platform]
    grid, grid_source = (assumed.grid, "g CO2e/kWh, stated") if assumed.grid else GRID
    hours = _scaled(seconds, tokens / tokens_per_step * target.chips / 3600)
    least, most = target.chip.watts
    kwh = (hours[0] * least * pue / 1000, hours[1] * most * pue / 1000)
    return Cost(
        tokens=tokens,
        chip_hours=hours,
        price=price,
        price_source=price_source,
        usd=_scaled(hours, price) if price else None,
        watts=target.chip.watts,
        watts_source=target.chip.sources["power"],
        pue=pue,
        pue_source=pue_source,
        kwh=kwh,
        grid=grid,
        grid_source=grid_source,
        kg_co2e=_scaled(kwh, grid / 1000),
    )


def _price(target: Slice, assumed: Assumed) -> tuple[float | None, str]:
    """USD per chip-hour and its source; None where no price is known."""
    if assumed.price:
        return assumed.price, "stated"
    known = PRICES.get(target.chip_name)
    if known is None:
        return None, ""
    return known.usd, f"{known.source}, {known.date}"


def _check(tokens: int, assumed: Assumed) -> None:
    if tokens < 1:
        raise ConfigError(f"tokens is {tokens}; it must be at least 1")
    for name, value in assumed._asdict().items():
        if value < 0 or (name == "pue" and 0 < value < 1):
            allowed = "at least 1" if name == "pue" else "positive"
            raise ConfigError(
                f"{name} is {value}; it must be {allowed}, or 0 for the value of the table"
            )


def _scaled(values: Range, factor: float) -> Range:
    return values[0] * factor, values[1] * factor


def lines(c: Cost, unit: str = "tokens") -> list[str]:
    """A Cost as lines of a table."""
    if c.usd:
        money = f"${_span(c.usd)}, at ${c.price:,.2f} a chip-hour ({c.price_source})"
    else:
        money = "no price known for this chip; give --price"
    power = f"{c.watts[0]:,.0f} to {c.watts[1]:,.0f} W a chip x PUE {c.pue:g}"
    return [
        f"  cost of {c.tokens:,} {unit}, estimates: from all overlapped to nothing overlapped",
        f"    {'chip-hours':<20}{_span(c.chip_hours)}",
        f"    {'price':<20}{money}",
        f"    {'energy of chips':<20}{_span(c.kwh)} kWh, at {power}",
        f"    {'carbon':<20}{_span(c.kg_co2e)} kg CO2e, at {c.grid:,.0f} {c.grid_source}",
        f"    {'power':<20}{c.watts_source}",
        f"    {'PUE':<20}{c.pue_source}",
    ]


def figures(c: Cost) -> dict[str, Any]:
    """A Cost as plain values for JSON; every range is [low, high]."""
    return c._asdict()


def _span(values: Range) -> str:
    return " to ".join(f"{x:,.0f}" if x >= 100 else f"{x:,.3g}" for x in values)
