"""Trips of loops, read from compiled programs and from texts in which the compiler states none."""

from __future__ import annotations

import itertools
import operator
import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from llm_jax.plan.hlo import collectives, summed
from llm_jax.plan.loops import Runs, count, runs
from llm_jax.plan.program import read_program

MESH = jax.make_mesh(
    (4,), ("fsdp",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,)
)
HOLDS = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}


def compiled(body) -> str:
    """The text of ``body`` for one array, compiled for four devices."""
    mapped = jax.shard_map(
        body, mesh=MESH, in_specs=jax.P("fsdp"), out_specs=jax.P("fsdp"), check_vma=False
    )
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct((8, 4), jnp.float32)).compile().as_text()


def summed_sines(x):
    """What the loops here do: a sum over devices."""
    return lax.psum(jnp.sin(x), "fsdp")


def loop(first, goes_on, following):
    """A loop whose counter, of the type of ``first``, is compared and changed as given."""

    def trip(carried):
        counter, x = carried
        return following(counter), summed_sines(x)

    return lambda x: lax.while_loop(lambda carried: goes_on(carried[0]), trip, (first, x))[1]


def unstated(text: str) -> str:
    """``text`` without what the compiler says of its loops."""
    return re.sub(r', backend_config=\{[^\n]*"known_trip_count"[^\n]*', "", text)


def read(text: str) -> tuple[int, int]:
    """Sums over devices in a step: how many, and how many in one trip of loops of unknown
    length.
    """
    found = [c for c in collectives(text, {"fsdp": 4}) if c.kind == "all-reduce"]
    known = sum(c.count for c in found if c.trips_known)
    return known, sum(c.count for c in found) - known


i8, i32, u32 = jnp.int8, jnp.int32, jnp.uint32
FIVE_TRIPS = {
    "by 1": loop(i32(0), lambda i: i < 5, lambda i: i + 1),
    "by 2": loop(i32(0), lambda i: i < 10, lambda i: i + 2),
    "by 2, to an odd bound": loop(i32(0), lambda i: i < 9, lambda i: i + 2),
    "by 4": loop(i32(0), lambda i: i < 18, lambda i: i + 4),
    "by 4 from 3, the bound included": loop(i32(3), lambda i: i <= 19, lambda i: 4 + i),
    "from below 0": loop(i32(-7), lambda i: i < 6, lambda i: i + 3),
    "until equal": loop(i32(1), lambda i: i != 21, lambda i: i + 4),
    "down by 1": loop(i32(9), lambda i: i > 4, lambda i: i - 1),
    "down by 2, 0 included": loop(i32(8), lambda i: i >= 0, lambda i: i - 2),
    "down, until equal": loop(i32(20), lambda i: i != 5, lambda i: i - 3),
    "the bound on the left": loop(i32(9), lambda i: lax.lt(i32(4), i), lambda i: i - 1),
    "what is left": loop(i32(0), lambda i: 10 - i > 0, lambda i: i + 2),
    "a multiple": loop(i32(0), lambda i: 3 * i + 1 < 28, lambda i: i + 2),
    "not at the end": loop(i32(0), lambda i: ~(i >= 10), lambda i: i + 2),
    "unsigned": loop(u32(0), lambda i: i < 10, lambda i: i + u32(2)),
    "unsigned, down, until equal": loop(u32(10), lambda i: i != 0, lambda i: i - u32(2)),
    "of 8 bits": loop(i8(100), lambda i: i < 110, lambda i: i + i8(2)),
    "widened": loop(i8(100), lambda i: i.astype(i32) < 110, lambda i: i + i8(2)),
    "fori_loop": lambda x: lax.fori_loop(2, 7, lambda i, y: summed_sines(y * i), x),
    "scan": lambda x: lax.scan(lambda y, i: (summed_sines(y * i), None), x, jnp.arange(5.0))[0],
}


@pytest.mark.parametrize("name", FIVE_TRIPS)
def test_trips_of_a_compiled_loop(name):
    """As the compiler states them, and as they follow from the text where it does not."""
    text = compiled(FIVE_TRIPS[name])
    assert "while(" in text
    assert read(text) == read(unstated(text)) == (5, 0)


def test_a_wrong_statement_of_the_compiler_is_not_believed():
    """Minus 1 of an unsigned counter is the largest number added: jaxlib 0.10 states one trip for
    this loop of five.
    """
    text = compiled(loop(u32(9), lambda i: i > 4, lambda i: i - u32(1)))
    assert read(unstated(text)) == (5, 0)
    assert read(text) in ((5, 0), (0, 1))


def repeated(first, last):
    """A loop by 1 between bounds that are made of the data."""
    return lambda x: lax.fori_loop(first(x), last(x), lambda i, y: summed_sines(y), x)


UNKNOWN_TRIPS = {
    "a counter of fractions": loop(jnp.float32(0), lambda i: i < 10, lambda i: i + 1),
    "doubled": loop(i32(1), lambda i: i < 100, lambda i: i * 2),
    "wrapped around": loop(i8(100), lambda i: i < 125, lambda i: i + i8(10)),
    "an unsigned number down to 0": loop(u32(9), lambda i: i >= 0, lambda i: i - u32(1)),
    "of two conditions": loop(i32(0), lambda i: (i < 10) & (i * i < 50), lambda i: i + 1),
    "a bound from the data": repeated(lambda x: 0, lambda x: i32(x[0, 0])),
    "a start from the data": repeated(lambda x: i32(x[0, 0]), lambda x: 9),
    "a condition on the data": lambda x: lax.while_loop(lambda y: y[0, 0] < 9, summed_sines, x),
}


@pytest.mark.parametrize("name", UNKNOWN_TRIPS)
def test_a_loop_that_cannot_be_read_has_unknown_trips(name):
    assert read(unstated(compiled(UNKNOWN_TRIPS[name]))) == (0, 1)


def test_loops_in_loops():
    """3 trips of 5 by 1, of 5 by 2, and of an unknown number of which each is 5."""

    def outer(i, x):
        by_two = FIVE_TRIPS["by 2"](FIVE_TRIPS["fori_loop"](x))
        return lax.while_loop(lambda y: y[0, 0] < 9, FIVE_TRIPS["by 1"], by_two)

    text = compiled(lambda x: lax.fori_loop(0, 3, outer, x))
    assert read(text) == read(unstated(text)) == (3 * 5 + 3 * 5, 3 * 5)


def test_a_loop_as_long_as_the_outer_one_has_run_is_unknown():
    def outer(i, x):
        return lax.fori_loop(0, i, lambda j, y: summed_sines(y), x)

    assert read(unstated(compiled(lambda x: lax.fori_loop(0, 5, outer, x)))) == (0, 5)


def test_a_sum_in_a_condition_runs_once_more_than_the_body():
    def body(x):
        return lax.while_loop(lambda y: lax.psum(y, "fsdp")[0, 0] < 9, lambda y: y + 1, x)

    assert read(compiled(body)) == (0, 1)
    assert runs(read_program(TPU))["cond"] == Runs(known=3)


def test_a_branch_may_not_be_taken():
    text = compiled(lambda x: lax.cond(x[0, 0] > 0, lambda y: lax.psum(y, "fsdp"), lambda y: y, x))
    assert "conditional(" in text
    assert read(text) == (0, 1)


def test_unknown_numbers_are_not_summed():
    text = compiled(lambda x: UNKNOWN_TRIPS["a condition on the data"](lax.psum(x, "fsdp")))
    assert read(text) == (1, 1)
    with pytest.raises(ValueError, match="all-reduce over fsdp: how often the loop around it runs"):
        summed(collectives(text, {"fsdp": 4}))


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no computation marked ENTRY"):
        read_program("HloModule nothing\n")


# As a TPU's compiler writes a gather that goes on beside a product: unrolled once, with the counter
# last.
TPU = """HloModule windowed, is_scheduled=true
%sum (a: u32[], b: u32[]) -> u32[] {
  %a = u32[]{:T(128)} parameter(0)
  %b = u32[]{:T(128)S(6)} parameter(1)
  ROOT %s = u32[]{:T(128)} add(%a, %b)
}
%less (a.1: u32[], b.1: u32[]) -> pred[] {
  %b.1 = u32[]{:T(128)} parameter(1)
  %a.1 = u32[]{:T(128)} parameter(0)
  ROOT %l = pred[]{:T(512)} compare(%a.1, %b.1), direction=LT
}
%body (p: (f32[8], u32[], u32[])) -> (f32[8], u32[], u32[]) {
  %p = (f32[8]{0:T(8,128)}, u32[]{:T(128)}, /*index=2*/u32[]{:T(128)}) parameter(0)
  %part = f32[8]{0:T(8,128)} get-tuple-element(%p), index=0
  %bound = u32[]{:T(128)} get-tuple-element(%p), index=1
  %counter = u32[]{:T(128)} get-tuple-element(%p), index=2
  %two = u32[]{:T(128)} constant(2)
  %one = u32[]{:T(128)} constant(1)
  %next = u32[]{:T(128)} add(%counter, %one)
  %there = f32[8]{0:T(8,128)} collective-permute(%part), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %start = (u32[]{:T(128)S(6)}, u32[]{:T(128)}, u32[]) copy-start(%two)
  %done = u32[]{:T(128)S(6)} copy-done(%start)
  %more = u32[]{:T(128)} fusion(%counter, %done), kind=kLoop, calls=%sum
  %kept = u32[]{:T(128)} copy(%bound)
  ROOT %out = (f32[8]{0:T(8,128)}, u32[]{:T(128)}, /*index=2*/u32[]{:T(128)}) tuple(%there, %kept, %more)
}
%cond (q: (f32[8], u32[], u32[])) -> pred[] {
  %q = (f32[8]{0:T(8,128)}, u32[]{:T(128)}, /*index=2*/u32[]{:T(128)}) parameter(0)
  %counter.1 = u32[]{:T(128)} get-tuple-element(%q), index=2
  %bound.1 = u32[]{:T(128)} get-tuple-element(%q), index=1
  ROOT %compare.1 = pred[]{:T(512)} fusion(%counter.1, %bound.1), kind=kLoop, calls=%less
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(8,128)} parameter(0)
  %zero = u32[]{:T(128)} constant(0)
  %four = u32[]{:T(128)} constant(4)
  %given = (f32[8]{0:T(8,128)}, u32[]{:T(128)}, /*index=2*/u32[]{:T(128)}) tuple(%x, %four, %zero)
  %while = (f32[8]{0:T(8,128)}, u32[]{:T(128)}, /*index=2*/u32[]{:T(128)}) while(%given), condition=%cond, body=%body
  ROOT %result = f32[8]{0:T(8,128)} get-tuple-element(%while), index=0
}
"""


@pytest.mark.parametrize(
    ("changed", "to", "trips"),
    [
        ("", "", 2),
        ("%two = u32[]{:T(128)} constant(2)", "%two = u32[]{:T(128)} constant(1)", 4),
        ("%two = u32[]{:T(128)} constant(2)", "%two = u32[]{:T(128)} constant(4)", 1),
        ("%two = u32[]{:T(128)} constant(2)", "%two = u32[]{:T(128)} partition-id()", None),
        ("%two = u32[]{:T(128)} constant(2)", "%two = u32[]{:T(128)} constant(0)", None),
        ("%zero = u32[]{:T(128)} constant(0)", "%zero = u32[]{:T(128)} constant(1)", 2),
        ("%zero = u32[]{:T(128)} constant(0)", "%zero = u32[]{:T(128)} constant(4)", 0),
        ("%zero = u32[]{:T(128)} constant(0)", "%zero = u32[]{:T(128)} replica-id()", None),
        ("%kept = u32[]{:T(128)} copy(%bound)", "%kept = u32[]{:T(128)} add(%bound, %one)", None),
        ("tuple(%there, %kept, %more)", "tuple(%there, %kept, %next)", 4),
        ("tuple(%there, %kept, %more)", "tuple(%there, %more, %kept)", None),
        ("%two = u32[]{:T(128)} constant(2)", "%two = u32[]{:T(128)} constant(4294967295)", None),
        ("direction=LT", "direction=NE", 2),
        ("direction=LT", "direction=LE", 3),
        ("direction=LT", "direction=GT", 0),
        ("direction=LT", "direction=EQ", 0),
    ],
)
def test_a_window_that_goes_on_beside_a_product(changed, to, trips):
    text = TPU.replace(changed, to)
    assert text != TPU or not changed
    expected = Runs(of_a_trip=1) if trips is None else Runs(known=trips)
    assert runs(read_program(text))["body"] == expected
    found = collectives(text, {"fsdp": 4})
    assert sum(c.count for c in found if c.trips_known) == expected.known
    assert sum(c.moved for c in found) == (expected.known + expected.of_a_trip) * 8 * 4


@given(
    st.integers(-20, 20), st.integers(-5, 5), st.sampled_from(sorted(HOLDS)), st.integers(-20, 20)
)
def test_trips_are_those_of_the_loop_written_out(first, change, direction, bound):
    values = itertools.islice(itertools.count(first, change), 100)
    trips = sum(1 for _ in itertools.takewhile(lambda n: HOLDS[direction](n, bound), values))
    assert count(first, change, direction, bound) == (None if trips == 100 else trips)
