"""Bytes that a program moves, counted by hand."""

from llm_jax.plan.hbm import Moved, moved_by_instruction, moved_bytes

# A weight that is read whole, a cache that is sliced and updated in place, an array on the chip, a
# loop of three trips, and a branch.
TEXT = """HloModule m

%fused.slice (p.0: f32[8,100], p.1: s32[]) -> f32[1,100] {
  %p.0 = f32[8,100]{1,0} parameter(0)
  %b.0 = f32[8,100]{1,0} bitcast(%p.0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %d.0 = f32[1,100]{1,0} dynamic-slice(%b.0, %p.1, %zero), dynamic_slice_sizes={1,100}
}

%only.names (p.2: f32[8,100]) -> f32[800] {
  %p.2 = f32[8,100]{1,0} parameter(0)
  ROOT %b.1 = f32[800]{0} bitcast(%p.2)
}

%fused.whole (p.3: f32[8,100]) -> f32[800] {
  %p.3 = f32[8,100]{1,0} parameter(0)
  %inner = f32[800]{0} fusion(%p.3), kind=kLoop, calls=%only.names
  ROOT %n.0 = f32[800]{0:S(1)} negate(%inner)
}

%fused.update (p.4: f32[8,100], p.5: f32[1,100], p.6: s32[]) -> f32[8,100] {
  %p.4 = f32[8,100]{1,0} parameter(0)
  %p.5 = f32[1,100]{1,0} parameter(1)
  %p.6 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %u.0 = f32[8,100]{1,0} dynamic-update-slice(%p.4, %p.5, %p.6, %zero.1)
}

%body (s.0: (s32[], f32[8,100])) -> (s32[], f32[8,100]) {
  %s.0 = (s32[], f32[8,100]{1,0}) parameter(0)
  %i.0 = s32[] get-tuple-element(%s.0), index=0
  %x.0 = f32[8,100]{1,0} get-tuple-element(%s.0), index=1
  %one = s32[] constant(1)
  %i.1 = s32[]{:S(6)} add(%i.0, %one)
  %row = f32[1,100]{1,0} fusion(%x.0, %i.0), kind=kLoop, calls=%fused.slice
  %x.1 = f32[8,100]{1,0} fusion(%x.0, %row, %i.0), kind=kLoop, calls=%fused.update
  ROOT %s.1 = (s32[], f32[8,100]{1,0}) tuple(%i.1, %x.1)
}

%condition (s.2: (s32[], f32[8,100])) -> pred[] {
  %s.2 = (s32[], f32[8,100]{1,0}) parameter(0)
  %i.2 = s32[]{:S(6)} get-tuple-element(%s.2), index=0
  %three = s32[]{:S(6)} constant(3)
  ROOT %c.0 = pred[]{:S(6)} compare(%i.2, %three), direction=LT
}

%yes (y.0: f32[800]) -> f32[800] {
  %y.0 = f32[800]{0} parameter(0)
  ROOT %y.1 = f32[800]{0} negate(%y.0)
}

%no (z.0: f32[800]) -> f32[800] {
  ROOT %z.0 = f32[800]{0} parameter(0)
}

ENTRY %main (w: f32[8,100], v: f32[800], t: pred[]) -> f32[800] {
  %w = f32[8,100]{1,0} parameter(0)
  %v = f32[800]{0} parameter(1)
  %t = pred[] parameter(2)
  %first = s32[]{:S(6)} constant(0)
  %chip = f32[800]{0:S(1)} fusion(%w), kind=kLoop, calls=%fused.whole
  %on = f32[800]{0:S(1)} negate(%chip)
  %copy-start = (f32[800]{0:S(1)}, f32[800]{0}, u32[]{:S(2)}) copy-start(%v)
  %copy-done = f32[800]{0:S(1)} copy-done(%copy-start)
  %in = (s32[], f32[8,100]{1,0}) tuple(%first, %w)
  %out = (s32[], f32[8,100]{1,0}) while(%in), condition=%condition, body=%body
  ROOT %r = f32[800]{0} conditional(%t, %v, %v), true_computation=%yes, false_computation=%no
}
"""


def test_every_instruction_by_hand():
    found = moved_by_instruction(TEXT)
    row, whole = 400.0, 3200.0
    assert found["main", "chip"] == Moved(whole)
    assert ("main", "on") not in found and ("main", "copy-done") not in found
    assert found["main", "copy-start"] == Moved(whole)
    # The counter's four bytes are read with the row; so is it for the update.
    assert found["body", "row"] == Moved(3 * (row + 4 + row))
    assert found["body", "x.1"] == Moved(3 * (row + 4 + row))
    assert found["yes", "y.1"] == Moved(0.0, 2 * whole)
    assert not any(name.startswith(("fused", "only")) for name, _ in found)
    known = sum(moved.known for moved in found.values())
    assert moved_bytes(TEXT) == Moved(known, 2 * whole)
