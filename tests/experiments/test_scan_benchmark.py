"""The benchmark refuses what is not exact, measures what it says and tells what is missing; no test knows a time."""

import dataclasses
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.scan_benchmark import FUNCTIONS, baselines, cases, functions, gate, growth, measure, report, speed
from experiments.scan_benchmark.machine import Rates, Work, floors
from experiments.scan_benchmark.measure import (
    BOTH,
    FORWARD,
    Program,
    Timing,
    cotangents_of,
    jax_program,
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
    return [case for case in cases.cases(full=False) if case.group == "linear"]


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


def test_everything_is_in_the_report(call, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.scan_benchmark.command.check", lambda chosen: [])
    monkeypatch.setattr("experiments.scan_benchmark.command.cases", lambda full: linear_cases()[1:2])
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
    assert told["settings"] == {"only": ["linear"], "repeats": 1, "full": False}
    assert {(row["phase"], row["program"]) for row in told["rows"]} == {
        (phase, program) for phase in (FORWARD, BOTH) for program in ("ours", "the same, a (B, L, D)")
    }
    for row in told["rows"]:
        assert row["timing"]["cpu_ms"] > 0 and row["timing"]["wall_ms"] > 0 and row["compile_seconds"] > 0
        assert row["temporaries"] >= 0 and row["difference"] < 1e-5
    assert {point["length"] for point in told["points"]} == {*growth.SMALL_LENGTHS, growth.SMALL_LONGEST}
    assert {verdict["verdict"] for verdict in told["verdicts"]} <= {"too small", "reached", "not reached"}
    assert told["environment"]["cpus"] > 0 and "jax" in told["environment"]["versions"]
    assert (tmp_path / "a" / "b" / "time_per_token.png").read_bytes().startswith(b"\x89PNG")
    assert "linear_scan, constant decay (2, 48, 8), forward + backward" in out
    assert max(map(len, out.splitlines())) <= 110


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    for name in ("torch", "transformers", "transformers.models.mamba.modeling_mamba"):
        monkeypatch.setitem(sys.modules, name, None)
    mamba = next(case for case in cases.cases() if case.function is functions.MAMBA)
    transformers = next(peer for peer in mamba.peers if peer.name == "transformers")
    case = linear_cases()[0]
    peers = (transformers, *(peer for peer in case.peers if "loop" in peer.name))
    rows, verdicts = speed.measure_case(dataclasses.replace(case, peers=peers), RATES, repeats=1, full=True)
    missing = "torch is not installed"
    assert {(row.program, row.note) for row in rows if row.phase == BOTH} == {
        ("ours", ""),
        ("transformers", missing),
        ("NumPy loop", "no gradients in NumPy"),
        ("torch loop", missing),
    }
    assert next(verdict for verdict in verdicts if "transformers" in verdict.quantity).word == "no peer"
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


def test_programs_compile_anew_each_time(monkeypatch):
    traced = []

    def function(x):
        traced.append(1)
        return (x + 1,)

    for _ in range(2):
        jax_program(function, (jnp.ones(3),))
    assert len(traced) == 2


def test_turns_and_medians(monkeypatch):
    order = []
    timings = take_turns([lambda: order.append("a"), lambda: order.append("b")], repeats=7)
    assert [timing.calls for timing in timings] == [7, 7]
    assert "".join(order) == "ab" + 3 * "aaabbb" + "aabb"  # warm-up; then one call that is not measured, and two
    slow, fast = take_turns([lambda: time.sleep(0.02), lambda: None], repeats=4)
    assert slow.wall_ms >= 20 > slow.cpu_ms and fast.wall_ms < slow.wall_ms
    patience = measure.FEWEST * 10.0 + 1
    monkeypatch.setattr(measure, "PATIENCE", patience)
    firsts = [measure.Seconds(1.0, wall) for wall in (0.1, 10.0, 11.0)]
    called = take_turns([lambda: None] * 3, 8, firsts)
    assert [timing.calls for timing in called] == [8, 3, 1] and called[2].cpu_ms == 1000


def test_verdicts_by_hand():
    peer = cases.Peer("peer", lambda *_: Program(lambda: None), {FORWARD: 3.0}, {FORWARD: 0.5})
    case = dataclasses.replace(linear_cases()[0], peers=(peer,))
    timing = Timing(2.0, 2.0, 2.0, 20)
    ours = speed.Row("case", FORWARD, "ours", timing, 400, 1.0, 1.0)
    for ratio, temporaries, words in ((3.0, 780, ["reached"] * 2), (2.9, 779, ["not reached"] * 2)):
        other = speed.Row("case", FORWARD, "peer", timing, temporaries, 1.0, ratio)
        found = speed._verdicts(case, FORWARD, [ours, other], 1000, {"copy": 1.0}, full=True)
        assert [verdict.word for verdict in found] == words
    other = dataclasses.replace(other, temporaries=0)
    small = dataclasses.replace(ours, temporaries=10)  # below a hundredth of the operands
    assert speed._verdicts(case, FORWARD, [small, other], 1000, {"copy": 1.0}, full=True)[1].word == "reached"
    assert speed._verdicts(case, FORWARD, [ours, other], 1000, {"copy": 1.0}, full=False)[1].word == "too small"
    slow = dataclasses.replace(ours, phase=BOTH, compile_seconds=5.1)
    found = speed._verdicts(dataclasses.replace(case, peers=()), BOTH, [slow], 1000, {}, full=True)
    assert [(v.quantity, v.word) for v in found] == [("CPU seconds to compile", "not reached")]


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
    _, verdicts = growth.measure_growth("linear", 1, full=True)
    assert {batch * length for _, shapes in seen for batch, length in shapes if length < 1 << 20} == {1 << 18}
    assert [phase for phase, shapes in seen if (1, 1 << 20) in shapes] == [FORWARD]
    assert [verdict.word for verdict in verdicts] == ["not reached"] * 2
    assert [verdict.measured for verdict in verdicts] == [256, 64]


def test_the_groups_are_those_of_the_command_and_each_is_gated():
    assert tuple(gate.GROUPS) == FUNCTIONS
    assert {function for group in gate.GROUPS.values() for function in group} == set(gate.SIZES)
    timed = {case.group: case.function for case in cases.cases()}
    assert all(function in gate.SIZES for function in timed.values()) and set(growth.SIZES) <= set(FUNCTIONS)


def test_mistakes_are_one_line(call, refused):
    assert refused(call("bench", "scan", "--repeats", 0)).startswith("--repeats: got 0")
    assert "nearest: linear" in refused(call("bench", "scan", "--only", "linar"))
    assert "there is: loop, scan" in refused(call("bench"))
    assert "unexpected argument" in refused(call("bench", "scan", "more"))
    status, out, _ = call("bench", "--help")
    assert status == 0 and "loop" in out and "scan" in out


@pytest.mark.slow
def test_every_case_runs(call, tmp_path):
    status, out, _ = call("bench", "scan", "--preset", "smoke", "--repeats", "1", "--out", tmp_path)
    assert status == 0, out
    told = json.loads((tmp_path / "result.json").read_text())
    assert {row["case"] for row in told["rows"]} == {case.title for case in cases.cases(full=False)}
    assert {point["function"] for point in told["points"]} == {function.name for function, _ in growth.SIZES.values()}
    assert all(row["difference"] is None or row["difference"] < 1e-5 for row in told["rows"])
