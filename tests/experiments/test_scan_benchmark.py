"""The benchmark refuses what is not exact, measures what it says and tells what is missing; no test knows a time."""

import dataclasses
import itertools
import json
import math
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.commands import bench
from experiments.commands.bench import ScanFlags
from experiments.scan_benchmark import FUNCTIONS, baselines, cases, functions, gate, growth, measure, report, speed
from experiments.scan_benchmark.machine import Rates, Work, floors
from experiments.scan_benchmark.measure import (
    BOTH,
    FORWARD,
    Program,
    Timing,
    cotangents_of,
    jax_program,
    no_compilation_cache,
    relative_error,
    take_turns,
)

RATES = Rates(1e9, 1e9, 1e9, 1e9)
STEPS = {
    functions.LINEAR: baselines.LINEAR,
    functions.CONSTANT: None,
    functions.DIAGONAL: baselines.DIAGONAL,
    functions.SELECTIVE: baselines.SELECTIVE,
    functions.MAMBA: baselines.MAMBA,
    functions.GATED: baselines.GATED,
    functions.PER_HEAD: baselines.GATED,
    functions.ADDITIVE: baselines.ADDITIVE,
}


def drawn(function, length=9):
    batch, _, *rest = gate.SIZES[function]
    shape = (batch, length, *(min(n, 4) for n in rest))
    operands = function.draw(shape, function.regimes[0], np.random.default_rng(0))
    return functions.rounded(operands, function, np.float32)


def linear_cases():
    return [case for case in cases.cases(tiny=True) if case.group == "linear"]


@pytest.mark.parametrize(
    "wrong", ["value", "state gradient", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gradient", "nan"))]
)
def test_a_wrong_implementation_is_not_timed(wrong, call, monkeypatch, tmp_path):
    right = functions.linear_scan

    def broken(a, b, state, implementation=None):
        if implementation == "reference":
            return right(a, b, state, implementation=implementation)
        if wrong == "gradient":
            b = b + 0.01 * (b - jax.lax.stop_gradient(b))
        if wrong == "state gradient":
            state = jax.lax.stop_gradient(state)
        h, final = right(a, b, state)
        return {"value": 1.000005 * h, "nan": jnp.where(a == 0, jnp.nan, h)}.get(wrong, h), final

    monkeypatch.setattr(functions, "linear_scan", broken)
    monkeypatch.setitem(gate.GROUPS, "linear", (functions.LINEAR,))
    monkeypatch.delitem(gate.BOUNDS, "bfloat16")
    status, out, err = call("bench", "scan", "--preset", "smoke", "--only", "linear", "--out", tmp_path)
    assert (status, err) == (1, "")
    assert "FAILED: linear_scan, resets, float32" in out and "nothing is timed" in out
    told = json.loads((tmp_path / "result.json").read_text())
    kinds = {check["kind"] for check in told["checks"] if not check["passed"]}
    assert kinds == ({"value"} if wrong == "value" else {"gradient"} if "gradient" in wrong else {"value", "gradient"})
    assert told["rows"] == told["verdicts"] == told["points"] == []


@pytest.mark.slow
def test_everything_is_in_the_report(call, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.scan_benchmark.command.check", lambda chosen: [])
    monkeypatch.setattr("experiments.scan_benchmark.command.cases", lambda tiny: linear_cases()[1:2])
    command = (
        "bench",
        "scan",
        "--preset",
        "smoke",
        "--only",
        "linear",
        "--repeats",
        "1",
        "--out",
        tmp_path / "a" / "b",
    )
    status, out, err = call(*command)
    assert (status, err) == (0, "")
    told = json.loads((tmp_path / "a" / "b" / "result.json").read_text())
    assert set(told) == {"settings", "rates", "checks", "rows", "points", "verdicts", "environment"}
    assert told["settings"] == {"only": ["linear"], "repeats": 1, "tiny": True}
    assert {(row["phase"], row["program"]) for row in told["rows"]} == {
        (phase, program) for phase in (FORWARD, BOTH) for program in ("ours", "the same, a (B, L, D)")
    }
    for row in told["rows"]:
        assert row["timing"]["cpu_ms"] > 0 and row["timing"]["wall_ms"] > 0 and row["compile_seconds"] > 0
        assert row["temporaries"] >= 0 and row["difference"] < 1e-5
    assert {point["length"] for point in told["points"]} == {*growth.TINY_LENGTHS, growth.TINY_LONGEST}
    assert {verdict["verdict"] for verdict in told["verdicts"]} <= {"too small", "reached", "not reached"}
    assert told["environment"]["cpus"] > 0 and "jax" in told["environment"]["versions"]
    assert (tmp_path / "a" / "b" / "time_per_token.png").read_bytes().startswith(b"\x89PNG")
    assert "linear_scan, constant decay (2, 20, 8), forward + backward" in out
    assert max(map(len, out.splitlines())) <= 110


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    for name in ("torch", "transformers", "transformers.models.mamba.modeling_mamba"):
        monkeypatch.setitem(sys.modules, name, None)
    mamba = next(case for case in cases.cases() if case.function is functions.MAMBA)
    transformers = next(peer for peer in mamba.peers if peer.name == "transformers")
    case = linear_cases()[0]
    peers = (transformers, *(peer for peer in case.peers if "loop" in peer.name))
    rows, verdicts = speed.measure_case(dataclasses.replace(case, peers=peers), RATES, repeats=1, tiny=False)
    missing = "torch is not installed"
    assert {(row.program, row.note) for row in rows if row.phase == BOTH} == {
        ("ours", ""),
        ("transformers", missing),
        ("NumPy loop", "no gradients in NumPy"),
        ("torch loop", missing),
    }
    assert next(verdict for verdict in verdicts if verdict.peer == "transformers").word == "no peer"
    table = report.case_table(rows, verdicts, repeats=1)
    assert table.count(missing) == 4


@pytest.mark.slow
@pytest.mark.parametrize("function", [f for f, step in STEPS.items() if step], ids=lambda f: f.name)
def test_every_way_to_drive_a_step_is_the_function(function):
    operands, step = drawn(function), STEPS[function]
    expected = function.run(*operands)
    for run in (baselines.scanned(step), baselines.mapped(step)):
        for found, true in zip(run(*operands), expected, strict=True):
            assert relative_error(found, true) < 2e-6
    for found, true in zip(baselines.looped(step, np)(*map(np.asarray, operands)), expected, strict=True):
        assert relative_error(found, true) < 2e-6


@pytest.mark.parametrize(
    ("function", "run"),
    [
        (functions.LINEAR, baselines.linear_associative),
        (functions.CONSTANT, baselines.linear_associative),
        (functions.DIAGONAL, baselines.diagonal_associative),
        (functions.SELECTIVE, baselines.selective_associative),
        (functions.GATED, baselines.gated_associative),
        (functions.PER_HEAD, baselines.gated_associative),
    ],
)
@pytest.mark.slow
def test_associative_scans_are_the_functions(function, run):
    operands = drawn(function)
    for found, true in zip(run(*operands), function.run(*operands), strict=True):
        assert relative_error(found, true) < 2e-6


@pytest.mark.slow
def test_convolutions_are_the_function():
    operands = drawn(functions.CONV)
    expected = functions.CONV.run(*operands)
    for run in (baselines.convolved, lambda *x: baselines.shifted(*map(np.asarray, x))):
        for found, true in zip(run(*operands), expected, strict=True):
            assert relative_error(found, true) < 2e-6


@pytest.mark.slow
def test_gates_of_additive_give_its_outputs():
    operands = drawn(functions.ADDITIVE)
    found, final = jax.jit(lambda *x: functions.GATED.run(*baselines.gates_of(*x)))(*operands)
    o, _, total, state = jax.jit(functions.ADDITIVE.run)(*operands)
    assert relative_error(found, o) < 2e-6
    assert relative_error(final, state / total[..., None]) < 2e-6


def test_a_program_takes_all_cotangents_and_gives_all_gradients():
    operands = drawn(functions.LINEAR)
    cotangents = cotangents_of(functions.LINEAR.run, operands)
    assert [x.shape for x in cotangents] == [operands[1].shape, operands[2].shape]
    outputs, gradients = jax_program(functions.LINEAR.run, operands, cotangents).call()
    assert [x.shape for x in gradients] == [x.shape for x in operands]
    assert len(outputs) == 2 and all(bool(jnp.any(x != 0)) for x in gradients)
    without = jax_program(functions.LINEAR.run, operands, (cotangents[0], 0 * cotangents[1])).call()[1]
    assert relative_error(without[2], gradients[2]) > 1e-3


@pytest.fixture
def compiled(tmp_path):
    """Files of compiled programs, of which JAX keeps all that it compiles."""
    settings = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield lambda: [path for path in tmp_path.glob("compiled/*") if not path.name.endswith("-atime")]
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_compile_anew_each_time(compiled):
    def function(x):
        return (x + 1,)

    operands = (jnp.ones(3),)

    def kept():
        for path in compiled():
            path.unlink()
        jax_program(function, operands)
        return len(compiled())

    # What was found in memory would leave no file the second time.
    assert kept() == kept() == 1
    with no_compilation_cache():
        assert kept() == 0
    assert kept() == 1


def test_turns_and_medians(monkeypatch):
    now, order = SimpleNamespace(cpu=0.0, wall=0.0), []
    clock = SimpleNamespace(process_time=lambda: now.cpu, perf_counter=lambda: now.wall)
    monkeypatch.setattr(measure, "time", clock)

    def program(name, walls):
        def run():
            order.append(name)
            wall = next(walls)
            now.cpu, now.wall = now.cpu + wall / 4, now.wall + wall

        return run

    timings = take_turns(
        [program("a", itertools.count(1 / 64, 1 / 64)), program("b", itertools.repeat(2.0))], repeats=7
    )
    assert "".join(order) == "ab" + 3 * "aaabb" + "aab"  # first calls; then one that is not measured if it is short
    # Of a: first call 1, not measured 2, 5, 8 and 11; the median of 3, 4, 6, 7, 9, 10 and 12 sixty-fourths.
    assert timings == [Timing(250 * 7 / 64, 1000 * 7 / 64, 250 * 3 / 64, 7), Timing(500.0, 2000.0, 500.0, 7)]
    patience = measure.FEWEST * 10.0 + 1
    monkeypatch.setattr(measure, "PATIENCE", patience)
    firsts = [measure.Seconds(1.0, wall) for wall in (0.1, 10.0, 11.0)]
    called = take_turns([lambda: None] * 3, 8, firsts)
    assert [timing.calls for timing in called] == [8, 3, 1] and called[2].cpu_ms == 1000


OURS = speed.Row("case", FORWARD, "ours", Timing(2.0, 2.0, 2.0, 20), 400, 1.0, 1.0)


def verdicts_of(ours=OURS, tiny=False, **other):
    """Of a peer that should be 3 times slower and have twice the temporaries, where operands have 1000 bytes."""
    peer = cases.Peer("peer", lambda *_: Program(lambda: None), {FORWARD: 3.0}, {FORWARD: 0.5})
    row = dataclasses.replace(OURS, program="peer", **{"temporaries": 780, "ratio": 3.0, "difference": 1e-6} | other)
    case = dataclasses.replace(linear_cases()[0], peers=(peer,))
    found = speed._verdicts(case, FORWARD, [ours, row], 1000, {"copy": 1.0}, tiny)
    return [verdict.word for verdict in found], report.case_table([ours, row], found, 20), report.verdict_table(found)


def test_verdicts_by_hand():
    assert verdicts_of()[0] == ["reached"] * 2
    assert verdicts_of(ratio=2.9, temporaries=779)[0] == ["not reached"] * 2
    small = dataclasses.replace(OURS, temporaries=10)  # a hundredth of the operands
    assert verdicts_of(small, temporaries=0)[0] == ["reached"] * 2
    assert verdicts_of(tiny=True)[0] == ["too small"] * 2
    slow = dataclasses.replace(OURS, phase=BOTH, compile_seconds=5.1)
    found = speed._verdicts(dataclasses.replace(linear_cases()[0], peers=()), BOTH, [slow], 1000, {}, tiny=False)
    assert [(v.quantity, v.word) for v in found] == [("CPU seconds to compile", "not reached")]


def test_a_peer_that_computes_something_else_is_not_beaten():
    for difference in (2e-4, math.nan):
        words, table, _ = verdicts_of(difference=difference)
        assert words == ["computes something else"] * 2 and "computes something else" in table
    words, table, _ = verdicts_of(difference=5e-5)
    assert words == ["reached"] * 2 and "5e-05" in table
    assert verdicts_of(difference=None)[0] == ["reached"] * 2  # another function, and meant to be


def test_temporaries_that_nobody_knows_are_unknown_and_not_a_missing_peer():
    for found in (verdicts_of(temporaries=None), verdicts_of(dataclasses.replace(OURS, temporaries=None))):
        assert found[0] == ["reached", "unknown"] and "unknown" in found[2]
    assert verdicts_of(timing=None, ratio=None, temporaries=None)[0] == ["no peer"] * 2


@pytest.mark.parametrize("case", cases.cases(tiny=True), ids=lambda case: case.title)
def test_the_bytes_of_a_floor_are_those_of_the_arrays_over_time(case):
    operands = functions.rounded(
        case.function.draw(case.shape, case.function.regimes[0], np.random.default_rng(0)), case.function, np.float32
    )
    outputs = jax.eval_shape(case.function.run, *operands)
    arrays = [x for x in (*operands, *outputs) if x.ndim > 1 and x.shape[1] == case.shape[1]]
    forward, both = case.work(case.shape, False), case.work(case.shape, True)
    assert forward.bytes == sum(4 * x.size for x in arrays)
    assert both.bytes == 2 * forward.bytes and both.exponentials == forward.exponentials


def test_products_and_exponentials_of_a_floor_by_hand():
    batch, length, size, heads = 3, 7, 5, 2
    shapes = {len(shape): shape for shape in ((batch, length, size), (batch, length, heads, size))}
    tokens = batch * length
    expected = {  # exponentials; multiply-adds forward, and with the backward pass
        functions.LINEAR: (0, tokens * size, 3 * tokens * size),
        functions.SELECTIVE: (tokens * heads * size, 4 * tokens * heads * size, 13 * tokens * heads * size),
        functions.MAMBA: (tokens * heads * (size + 1), 4 * tokens * heads * size, 13 * tokens * heads * size),
        functions.PER_HEAD: (tokens * heads, 2 * tokens * heads * size**2, 6 * tokens * heads * size**2),
        functions.GATED: (tokens * heads * size, 2 * tokens * heads * size**2, 6 * tokens * heads * size**2),
    }
    for function, numbers in expected.items():
        case = next(case for case in cases.cases() if case.function is function)
        forward, both = (case.work(shapes[len(case.shape)], backward) for backward in (False, True))
        assert (forward.exponentials, forward.multiply_adds, both.multiply_adds) == numbers


def test_a_figure_of_another_report_does_not_stay(tmp_path):
    points = [growth.Point("f", FORWARD, 1, length, 1.0, 1.0) for length in (8, 16)]
    assert len(report.write(report.Report({}, points=points), tmp_path)) == 2
    assert [path.name for path in report.write(report.Report({}), tmp_path)] == ["result.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_floors_by_hand():
    found = floors(Work(2e9, 3e9, 5e8), RATES)
    assert found == {"copy": 2000.0, "triad": 2000.0, "exponentials": 3000.0, "multiply_adds": 500.0}


def test_growth_holds_the_tokens_constant_and_repeats_a_period(monkeypatch):
    q, k, v, log_decay, state = growth._operands(functions.GATED, 2, 1 << 13, (1, 3))
    assert {x.shape for x in (q, k, v, log_decay)} == {(2, 1 << 13, 1, 3)} and state.shape == (2, 1, 3, 3)
    assert (q[0, : 1 << 12] == q[1, 1 << 12 :]).all() and (state[0] != state[1]).all()
    seen = []

    def points(function, phase, shapes, size, repeats):
        seen.append((phase, shapes))
        return [growth.Point("f", phase, batch, length, length / 1000, 1.0) for batch, length in shapes]

    monkeypatch.setattr(growth, "_points", points)
    _, verdicts = growth.measure_growth("linear", 1, tiny=False)
    assert {batch * length for _, shapes in seen for batch, length in shapes if length < 1 << 20} == {1 << 18}
    assert [phase for phase, shapes in seen if (1, 1 << 20) in shapes] == [FORWARD]
    assert [verdict.word for verdict in verdicts] == ["not reached"] * 2
    assert [verdict.measured for verdict in verdicts] == [256, 64]
    assert ["262144 tokens" in v.case and "1048576 by themselves" in v.case for v in verdicts] == [True, False]


def test_the_groups_are_those_of_the_command_and_each_is_gated():
    assert tuple(gate.GROUPS) == FUNCTIONS
    assert {function for group in gate.GROUPS.values() for function in group} == set(gate.SIZES)
    assert {case.function for case in cases.cases()} == set(gate.SIZES)
    for tiny in (False, True):
        assert {case.group for case in cases.cases(tiny)} == set(FUNCTIONS)
    titles = [case.title for case in cases.cases(tiny=True)]
    assert len(titles) == len(set(titles)) and set(growth.SIZES) <= set(FUNCTIONS)


def test_the_first_word_is_the_benchmark_and_groups_keep_their_order(call, refused, monkeypatch):
    for name, flags in (("scan", "--preset smoke --out loop"), ("loop", "--pairs 1")):
        called = []
        monkeypatch.setitem(bench.BENCHMARKS, name, ("", lambda words, called=called: called.append(words) or 0))
        assert call("bench", *flags.split(), name)[0] == call("bench", name, *flags.split())[0] == 0
        assert called == [flags.split()] * 2
    assert "benchmark is missing" in refused(call("bench", "--out", "loop"))
    assert "unknown benchmark" in refused(call("bench", "--out=loop", "sca"))
    assert ScanFlags(only="gated,linear, gated").groups == ["linear", "gated"]


def test_mistakes_are_one_line(call, refused):
    assert refused(call("bench", "scan", "--repeats", 0)).startswith("--repeats: got 0")
    assert "nearest: linear" in refused(call("bench", "scan", "--only", "linar"))
    assert "there is: loop, scan" in refused(call("bench"))
    assert "unexpected argument" in refused(call("bench", "scan", "more"))
    status, out, _ = call("bench", "--help")
    assert status == 0 and "loop" in out and "scan" in out


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_case_runs(call, tmp_path):
    status, out, _ = call("bench", "scan", "--preset", "smoke", "--repeats", "1", "--out", tmp_path)
    assert status == 0, out
    told = json.loads((tmp_path / "result.json").read_text())
    assert {row["case"] for row in told["rows"]} == {case.title for case in cases.cases(tiny=True)}
    assert {point["function"] for point in told["points"]} == {function.name for function, _ in growth.SIZES.values()}
    assert all(row["difference"] is None or row["difference"] < 1e-5 for row in told["rows"])
