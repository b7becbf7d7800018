"""Money, energy and carbon of a number of tokens, by hand."""

from __future__ import annotations

import re

import pytest

from llm_jax.plan.cost import GRID, PRICES, PUE, Assumed, cost, lines
from llm_jax.plan.topology import parse_topology
from llm_jax.types import ConfigError

V5E = parse_topology("v5e:2x4")


def test_by_hand():
    # 1,000 steps of 2 to 3 seconds on 8 chips are 16,000 to 24,000 chip-seconds.
    c = cost(V5E, 1_000_000, 1000, (2.0, 3.0), Assumed(price=1.8, pue=1.5, grid=400))
    assert c.chip_hours == pytest.approx((16_000 / 3600, 24_000 / 3600))
    assert c.usd == pytest.approx((8.0, 12.0))
    least, most = V5E.chip.watts
    assert c.kwh == pytest.approx(
        (16_000 / 3600 * least * 1.5 / 1000, 24_000 / 3600 * most * 1.5 / 1000)
    )
    assert c.kg_co2e == pytest.approx((c.kwh[0] * 0.4, c.kwh[1] * 0.4))
    assert c.price_source == c.pue_source == "stated"


def test_what_is_not_stated_comes_from_the_tables_with_its_source_and_date():
    c = cost(V5E, 3600, 1, (1.0, 1.0))
    assert c.usd == pytest.approx((9.6, 9.6)) and c.price == PRICES["v5e"].usd == 1.2
    assert "cloud.google.com/tpu/pricing" in c.price_source and c.price_source.endswith("2025-02")
    assert (c.pue, c.grid) == (PUE["tpu"][0], GRID[0]) == (1.09, 458.0)
    shown = "\n".join(lines(c))
    assert "$9.6 to 9.6, at $1.20 a chip-hour (list price" in shown and "estimate" in shown
    assert "g CO2e/kWh, the world's electricity in 2025" in shown


def test_where_no_price_is_known_it_is_said_and_can_be_given():
    ironwood = parse_topology("v7x:2x2x1")
    c = cost(ironwood, 3600, 1, (1.0, 2.0))
    assert c.usd is None and "no price known for this chip; give --price" in "\n".join(lines(c))
    assert cost(ironwood, 3600, 1, (1.0, 2.0), Assumed(price=10.0)).usd == pytest.approx(
        (40.0, 80.0)
    )


@pytest.mark.parametrize("name", PRICES)
def test_every_price_has_a_month_and_a_source(name):
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", PRICES[name].date) and PRICES[name].source


@pytest.mark.parametrize(
    ("assumed", "message"),
    [
        (Assumed(price=-1), "price is -1; it must be positive"),
        (Assumed(pue=0.9), "pue is 0.9; it must be at least 1"),
        (Assumed(grid=-5), "grid is -5; it must be positive"),
    ],
)
def test_factors_that_cannot_be(assumed, message):
    with pytest.raises(ConfigError, match=message):
        cost(V5E, 10, 1, (1.0, 1.0), assumed)
    with pytest.raises(ConfigError, match="tokens is -3"):
        cost(V5E, -3, 1, (1.0, 1.0))
