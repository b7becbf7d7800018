"""What a number of tokens costs on a slice: chip-hours, money, energy, carbon. Each is an estimate,
and a range.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llm_jax.plan.topology import Slice
from llm_jax.types import ConfigError

Range = tuple[float, float]


class Price(NamedTuple):
    """USD per chip-hour on demand, when (year-month) and where it was read."""

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
# Energy of the building per energy of its machines, where these prices are paid.
PUE = {
    "tpu": (1.09, "Google's fleet in 2025, its environmental report of 2026"),
    "gpu": (1.15, "AWS's fleet in 2024, its sustainability report"),
    "cpu": (1.0, "no building counted"),
}
GRID = (458.0, "g CO2e/kWh, the world's electricity in 2025: Ember, Global Electricity Review 2026")


class Assumed(NamedTuple):
    """What a user states in place of the tables; 0 is not stated.

    price: USD per chip-hour · pue: energy of the building per energy of the chips · grid: g
    CO2e/kWh.
    """

    price: float = 0.0
    pue: float = 0.0
    grid: float = 0.0


class Cost(NamedTuple):
    """Ranges from the best time to the one with nothing overlapped; energy and carbon also from
    least to most power.

    price: None, with usd, where none is known. *_source: where the factor is from.
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
    """The cost of ``tokens`` on ``target``, at ``seconds`` (best, worst) for each
    ``tokens_per_step``.

    Energy is that of the chips and the building's share for it; hosts and network between nodes
    come on top. Raises ConfigError for a negative number of tokens or a factor that cannot be.
    """
    _check(tokens, assumed)
    known = PRICES.get(target.chip_name)
    price = assumed.price or (known.usd if known else None)
    pue, pue_source = (assumed.pue, "stated") if assumed.pue else PUE[target.chip.platform]
    grid, grid_source = (assumed.grid, "g CO2e/kWh, stated") if assumed.grid else GRID
    hours = _each(seconds, tokens / tokens_per_step * target.chips / 3600)
    kwh = tuple(h * w * pue / 1000 for h, w in zip(hours, target.chip.watts))
    return Cost(
        tokens=tokens,
        chip_hours=hours,
        price=price,
        price_source=(
            "stated" if assumed.price else f"{known.source}, {known.date}" if known else ""
        ),
        usd=_each(hours, price) if price else None,
        watts=target.chip.watts,
        watts_source=target.chip.sources["power"],
        pue=pue,
        pue_source=pue_source,
        kwh=kwh,  # type: ignore[arg-type]
        grid=grid,
        grid_source=grid_source,
        kg_co2e=_each(kwh, grid / 1000),  # type: ignore[arg-type]
    )


def _check(tokens: int, assumed: Assumed) -> None:
    if tokens < 1:
        raise ConfigError(f"tokens is {tokens}; cost is that of at least one token")
    for name, value in assumed._asdict().items():
        if value < 0 or (name == "pue" and 0 < value < 1):
            raise ConfigError(
                f"{name} is {value}; it must be {'at least 1' if name == 'pue' else 'positive'}, or"
                " 0 for the table's"
            )


def _each(values: Range, factor: float) -> Range:
    return values[0] * factor, values[1] * factor


def lines(c: Cost, unit: str = "tokens") -> list[str]:
    """A Cost for people."""
    money = (
        f"${_span(c.usd)}, at ${c.price:,.2f} a chip-hour ({c.price_source})"
        if c.usd
        else "no price known for this chip; give --price"
    )
    return [
        f"  cost of {c.tokens:,} {unit}, estimates: from all overlapped to nothing overlapped",
        f"    {'chip-hours':<20}{_span(c.chip_hours)}",
        f"    {'price':<20}{money}",
        (
            f"    {'energy of chips':<20}{_span(c.kwh)} kWh, at {c.watts[0]:,.0f} to"
            f" {c.watts[1]:,.0f} W a chip x PUE {c.pue:g}"
        ),
        f"    {'carbon':<20}{_span(c.kg_co2e)} kg CO2e, at {c.grid:,.0f} {c.grid_source}",
        f"    {'power':<20}{c.watts_source}",
        f"    {'PUE':<20}{c.pue_source}",
    ]


def figures(c: Cost) -> dict[str, Any]:
    """A Cost as plain numbers; every range is [low, high]."""
    return c._asdict()


def _span(r: Range) -> str:
    return " to ".join(f"{x:,.0f}" if x >= 100 else f"{x:,.3g}" for x in r)
