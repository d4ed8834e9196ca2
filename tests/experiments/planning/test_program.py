"""What is read from the text of a compiled program, against counts by hand."""

import pytest

from experiments.planning.collectives import Collective, _group, collectives
from experiments.planning.hlo import parse
from experiments.planning.traffic import memory_traffic

# Eight chips, in four slices of two or one of eight; a loop of six turns with a sum over all in it.
TEXT = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%layer (param_0: f32[6,16], param_1: s32[]) -> f32[16] {
  %param_0 = f32[6,16]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,16]{1,0} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={1,16}
  ROOT %row = f32[16]{0} bitcast(%cut)
}

%scattered (param_0.1: f32[64]) -> f32[8] {
  %param_0.1 = f32[64]{0} parameter(0)
  %i = s32[] constant(0)
  %sum.1 = f32[64]{0} all-reduce(%param_0.1), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %part = f32[8]{0} dynamic-slice(%sum.1, %i), dynamic_slice_sizes={8}
}

%condition (c: (s32[], f32[16], f32[6,16])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[16]{0}, f32[6,16]{1,0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%c), index=0
  %six = s32[]{:T(128)} constant(6)
  ROOT %less = pred[]{:T(512)} compare(%n, %six), direction=LT
}

%body (p: (s32[], f32[16], f32[6,16])) -> (s32[], f32[16], f32[6,16]) {
  %p = (s32[], f32[16]{0}, f32[6,16]{1,0}) parameter(0)
  %k = s32[] get-tuple-element(%p), index=0
  %h = f32[16]{0} get-tuple-element(%p), index=1
  %w = f32[6,16]{1,0} get-tuple-element(%p), index=2
  %fusion = f32[16]{0} fusion(%w, %k), kind=kLoop, calls=%layer
  %sum = f32[16]{0} all-reduce(%fusion), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add
  %one = s32[] constant(1)
  %next = s32[] add(%k, %one)
  ROOT %t = (s32[], f32[16]{0}, f32[6,16]{1,0}) tuple(%next, %sum, %w)
}

ENTRY %main (x: f32[16], w0: f32[6,16], y: f32[64]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %w0 = f32[6,16]{1,0} parameter(1)
  %y = f32[64]{0} parameter(2)
  %start = s32[] constant(0)
  %init = (s32[], f32[16]{0}, f32[6,16]{1,0}) tuple(%start, %x, %w0)
  %loop = (s32[], f32[16]{0}, f32[6,16]{1,0}) while(%init), condition=%condition, body=%body
  %gather-start = (f32[64]{0}, f32[256]{0:S(1)}) all-gather-start(%y), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %gather-done = f32[256]{0:S(1)} all-gather-done(%gather-start)
  %less-of-it = f32[8]{0} fusion(%y), kind=kCustom, calls=%scattered
  %sent = f32[16]{0} collective-permute(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
  ROOT %out = f32[16]{0} get-tuple-element(%loop), index=1
}
"""


def rows(slices):
    return {row.kind: row for row in collectives(parse(TEXT), slices)}


def test_bytes_of_collectives_within_a_slice():
    found = rows([0] * 8)
    assert found == {
        "all-reduce": Collective("all-reduce", 2, 1, 6.0, 6 * 2 * 0.5 * 64.0, 0.0),
        "all-gather": Collective("all-gather", 4, 1, 1.0, 0.75 * 1024.0, 0.0),
        "reduce-scatter": Collective("reduce-scatter", 8, 1, 1.0, 0.875 * 256.0, 0.0),
        "collective-permute": Collective("collective-permute", 2, 1, 1.0, 64.0, 0.0),
    }
    assert next(row.kind for row in collectives(parse(TEXT), [0] * 8)) == "all-gather"


def test_between_slices_only_what_is_left_is_sent():
    # The gather takes chips 0, 2, 4 and 6, of four slices; the sum over two stays within one.
    found = rows([0, 0, 1, 1, 2, 2, 3, 3])
    assert found["all-reduce"].outside == 0
    assert found["all-gather"][2:] == (4, 1.0, 0.0, 0.75 * 1024.0)
    assert found["reduce-scatter"][2:] == (4, 1.0, 0.5 * 256.0, 0.75 * 256.0 / 2)


@pytest.mark.parametrize(
    ("written", "members"),
    [
        ("{{1,5},{0,4}}", [1, 5]),
        ("[4,2]<=[8]", [0, 1]),
        ("[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6]),
        ("mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
        ("mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        # The axes of the mesh in another order than devices are numbered.
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", [0, 1, 2, 3]),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [0, 4]),
        ("mesh['a'=1,'b'=2,'c'=4], device_ids=([8]) {'a','c'}", [0, 1, 2, 3]),
        ("{}", list(range(8))),
    ],
)
def test_groups_are_read_as_they_are_written(written, members):
    assert _group(f"%x), channel_id=1, replica_groups={written}, dimensions={{0}}, to_apply=%add", 8) == members


def test_groups_that_are_written_in_an_unknown_way_are_not_guessed():
    with pytest.raises(ValueError, match="as was not known"):
        _group("%x), replica_groups=torus{0}, dimensions={0}", 8)


def test_a_collective_of_which_several_fusions_do_a_part_counts_once():
    more = "  %more = f32[8]{0} fusion(%y), kind=kCustom, calls=%scattered\n  %sent ="
    found = {row.kind: row for row in collectives(parse(TEXT.replace("  %sent =", more)), [0] * 8)}
    assert found["reduce-scatter"] == rows([0] * 8)["reduce-scatter"]
    other = TEXT.replace("  %sent =", "  %other = f32[16]{0} all-reduce(%x), channel_id=1, to_apply=%add\n  %sent =")
    assert sum(row.calls for row in collectives(parse(other), [0] * 8) if row.kind == "all-reduce") == 7


def test_a_sum_of_several_arrays_of_which_each_chip_keeps_parts_is_a_reduce_scatter():
    one = "  %sum.1 = f32[64]{0} all-reduce(%param_0.1), channel_id=9, "
    several = one.replace("f32[64]{0} all", "(f32[64]{0}, f32[32]{0}) all").replace("%sum.1 =", "%sums =")
    text = TEXT.replace(one, several).replace(
        "  ROOT %part = ",
        "  %sum.1 = f32[64]{0} get-tuple-element(%sums), index=0\n"
        "  %sum.2 = f32[32]{0} get-tuple-element(%sums), index=1\n"
        "  %part.2 = f32[4]{0} dynamic-slice(%sum.2, %i), dynamic_slice_sizes={4}\n"
        "  ROOT %part = ",
    )
    found = {row.kind: row for row in collectives(parse(text), [0] * 8)}
    assert found["reduce-scatter"].bytes == 0.875 * (256 + 128)
    whole = text.replace("dynamic-slice(%sum.2, %i), dynamic_slice_sizes={4}", "slice(%sum.2)")
    assert "reduce-scatter" not in {row.kind for row in collectives(parse(whole), [0] * 8)}


def test_what_is_handed_to_the_host_goes_to_other_slices():
    handed = "%handed = (f32[32,8]{1,0}, u32[], token[]) send(%x, %token), channel_id=15, is_host_transfer=true, "
    handed += 'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
    text = TEXT.replace("  %sent =", f"  {handed}\n  %sent =")
    found = collectives(parse(text), [0, 0, 0, 0, 1, 1, 1, 1])
    assert Collective("all-reduce", 2, 2, 1.0, 0.0, 2 * 0.5 * 1024.0) in found


def test_memory_counts_parts_that_are_cut_out_and_nothing_that_lies_beside_the_cores():
    loop = 6 * ((64 + 4 + 64) + (64 + 64) + (4 + 4 + 4))  # a row and the counter to a row; the sum; the counter
    gathered = 256  # read; what comes out lies beside the cores
    scattered, sent = 256 + 32, 64 + 64
    assert memory_traffic(parse(TEXT)) == pytest.approx(loop + gathered + scattered + sent)


def test_a_trip_count_that_the_compiler_knows_is_taken():
    told = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"4"}}')
    assert next(row for row in collectives(parse(told), [0] * 8) if row.kind == "all-reduce").calls == 4
