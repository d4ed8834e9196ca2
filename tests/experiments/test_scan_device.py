"""The benchmark on accelerators, rehearsed on a CPU: no form that is wrong is timed, nothing that breaks ends it."""

import dataclasses
import importlib
import json
import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.commands.bench import ScanFlags
from experiments.scan_benchmark import functions
from experiments.scan_benchmark.device import cases, clock, command, gate, programs, record, report, worker
from experiments.scan_benchmark.device.cases import DeviceCase
from experiments.scan_benchmark.device.record import DeviceRow, Record
from experiments.scan_benchmark.device.worker import Failed, Refused, Worker
from experiments.scan_benchmark.measure import BOTH, FORWARD, relative_error

HALF = DeviceCase("linear", "linear_scan", (2, 20, 8), "bfloat16")


class Here:
    """A worker without a process of its own, which may be told to fail."""

    broken: tuple = ()  # functions and forms that do not come back

    def __init__(self, module, environment):
        self._module = module

    def ask(self, function, seconds, *arguments):
        if function in self.broken or any(form in arguments[1:4] for form in self.broken):
            raise Failed("no answer within 1 s")
        if function == "versions":
            return {}
        return getattr(importlib.import_module(self._module), function)(*arguments)

    def close(self):
        pass


@pytest.fixture
def rehearsed(monkeypatch, tmp_path):
    """The whole command on one function at one size, in this process."""
    monkeypatch.setattr(command, "Worker", Here)
    few = dataclasses.replace(functions.LINEAR, regimes=("mild", "resets"))
    monkeypatch.setattr(command, "chosen", lambda groups: [few])
    monkeypatch.setattr(gate, "BOUNDS", {"bfloat16": gate.BOUNDS["bfloat16"]})
    monkeypatch.setattr(command, "cases", lambda tiny: [HALF])
    monkeypatch.setattr(command, "PEERS", {})
    monkeypatch.setattr(clock, "ROUNDS", 1)
    monkeypatch.setattr(gate, "TINY_LENGTH", 9)
    monkeypatch.setitem(gate.SIZES, "linear_scan", (2, 9, 128))
    monkeypatch.setattr(Here, "broken", ())

    def run(*, broken=(), minutes=5.0, resume=False):
        Here.broken = broken
        plan = command.Plan("gpu", tmp_path, ["linear"], minutes, True, resume, "pallas_interpret")
        status = command.benchmark_device(plan)
        return status, json.loads((tmp_path / "scan-cpu.json").read_text())

    return run


@pytest.mark.slow
@pytest.mark.exhaustive
def test_everything_is_in_the_record_and_a_second_run_goes_on_from_it(rehearsed, capsys, tmp_path):
    status, told = rehearsed()
    assert status == 0 and told["failures"] == told["left"] == []
    assert told["device"]["stand_in"] and told["device"]["kind"] == "cpu"
    assert {(row["program"], row["phase"]) for row in told["rows"]} == {
        (program, phase) for program in ("xla", "pallas", "lax.associative_scan") for phase in (FORWARD, BOTH)
    }
    for row in told["rows"]:
        assert row["ms"] > 0 and row["copy_fraction"] > 0 and row["compile_seconds"] > 0
        assert row["bytes"] == cases.moved(HALF)[row["phase"]]
        assert (row["difference"] is None) == (row["program"] == "xla")
    assert {check["implementation"] for check in told["checks"]} == {"xla", "pallas"}
    assert {check["regime"] for check in told["checks"]} == {"mild", "resets", gate.PACKED}
    assert [verdict["verdict"] for verdict in told["verdicts"]] == ["too small"]
    out = capsys.readouterr().out
    assert "the CPU stands in" in out and "kernel beats XLA" in out and max(map(len, out.splitlines())) <= 120
    assert (tmp_path / "scan-cpu.png").read_bytes().startswith(b"\x89PNG")
    _, again = rehearsed(minutes=1e-9, resume=True)
    assert [row["ms"] for row in again["rows"]] == [row["ms"] for row in told["rows"]] and again["left"] == []
    _, anew = rehearsed(minutes=1e-9)
    assert anew["rows"] == [] and len(anew["left"]) == 6
    told["rows"] = [row for row in told["rows"] if row["program"] == "xla"]
    (tmp_path / "scan-cpu.json").write_text(json.dumps(told))
    _, rest = rehearsed(resume=True)
    assert {row["program"] for row in rest["rows"]} == {"xla", "pallas", "lax.associative_scan"}
    assert all(row["difference"] is not None for row in rest["rows"] if row["program"] == "pallas")


@pytest.mark.slow
def test_what_breaks_is_told_and_all_else_is_timed(rehearsed, capsys):
    status, told = rehearsed(broken=("pallas_interpret", "ceilings"))
    assert status == 1 and len(told["failures"]) == 2
    assert "linear_scan, pallas, bfloat16, mild: no answer" in told["failures"][0]
    assert "ceilings: no answer" in told["failures"][1]
    assert {row["program"] for row in told["rows"]} == {"xla", "lax.associative_scan"}
    assert all(row["ms"] > 0 and row["copy_fraction"] is None for row in told["rows"])
    assert "FAILED, mild: no answer within 1 s" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.exhaustive
def test_peers_compile_while_the_gate_does_and_are_timed_alone(rehearsed, monkeypatch, capsys):
    asked, ask = [], Here.ask

    def noted(self, function, seconds, *arguments):
        asked.append((self._module.rpartition(".")[2], function))
        if asked[-1] == ("peers", "timed"):
            raise Refused("torch is not installed")
        return ask(self, function, seconds, *arguments)

    device = {"platform": "gpu", "kind": "cpu", "stand_in": False}
    monkeypatch.setattr(command, "_started", lambda plan: (Here(command.PROGRAMS, {}), device))
    monkeypatch.setattr(command, "PEERS", {"linear_scan": ("fla chunk_hgrn",)})
    monkeypatch.setattr(Here, "ask", noted)
    status, told = rehearsed()
    assert status == 0 and told["failures"] == []
    peers = [row for row in told["rows"] if row["program"] == "fla chunk_hgrn"]
    assert [(row["phase"], row["note"]) for row in peers] == [(p, "torch is not installed") for p in (FORWARD, BOTH)]
    # Once to compile, before anything is timed, and once to be timed; then it is known that it is not there.
    places = [place for place, question in enumerate(asked) if question == ("peers", "timed")]
    assert len(places) == 2 and places[0] < asked.index(("programs", "ceilings")) < places[1]
    assert asked.count(("programs", "kernels_ms")) == 1  # there is no profiler for a CPU, and it is not asked again
    assert capsys.readouterr().out.count("no times of single kernels") == 1


def checked(ask, monkeypatch):
    monkeypatch.setattr(gate, "TINY_LENGTH", 9)
    monkeypatch.setitem(gate.SIZES, "linear_scan", (2, 9, 128))
    monkeypatch.setitem(gate.SIZES, "linear_scan", (2, 9, 4))
    return {(c.dtype, c.regime): c for c in gate.check_function(functions.LINEAR, ["xla"], ask, tiny=True)}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["nothing", "output", "gradient", "masked"])
def test_the_gate_sees_what_is_wrong(wrong, monkeypatch):
    def ask(function, seconds, *arguments):
        outputs, gradients = getattr(programs, function)(*arguments)
        named = arguments[-1]
        if wrong == "output":
            outputs[0] = outputs[0] * np.float32(1.00001)
        if wrong == "gradient":
            gradients[2] = 0 * gradients[2]
        if wrong == "masked" and named:
            outputs[0] = np.where(named["mask"][..., None], outputs[0], np.nan)
        return outputs, gradients

    found = checked(ask, monkeypatch)
    assert len(found) == 2 * len(functions.GATES) + 2
    failed = {key for key, check in found.items() if check.failed}
    # A hundred-thousandth is nothing in bfloat16; where a reset cuts the state off at once its gradient is 0 anyway.
    expected = {
        "nothing": set(),
        "output": {key for key in found if key[0] == "float32"},
        "gradient": failed if len(failed) >= len(found) - 4 else None,
        "masked": {("float32", gate.PACKED), ("bfloat16", gate.PACKED)},
    }
    assert failed == expected[wrong]


def test_a_form_that_does_not_exist_is_no_failure_and_is_not_timed(monkeypatch):
    def ask(*_):
        raise Refused("there is no kernel for this platform")

    found = checked(ask, monkeypatch)
    assert set(found) == {("float32", "mild"), ("bfloat16", "mild")}
    told = Record({}, {}, {}, checks=list(found.values()))
    assert told.failures == [] and not told.exact("linear_scan", "float32", "xla")
    assert "refused: there is no kernel" in report.gate_table(told.checks)


def test_a_form_that_hangs_is_asked_once_and_not_in_the_other_precision(monkeypatch):
    def ask(*_):
        raise Failed("no answer within 75 s")

    found = checked(ask, monkeypatch)
    assert set(found) == {("float32", "mild")} and found["float32", "mild"].failed
    assert "FAILED, mild: no answer within 75 s" in report.gate_table(list(found.values()))


def test_what_scan_refuses_is_told_apart_from_what_breaks():
    for function, arrays in {
        "causal_conv": (jnp.ones((1, 3, 2)), jnp.ones((2, 2))),
        "linear_scan": (jnp.ones((1, 3, 2)), jnp.ones((1, 3, 2))),
    }.items():
        for attempt in (run := cases.call(function, "pallas"), jax.jit(run)):
            with pytest.raises(Refused, match="^there is no kernel for this platform$"):
                programs._unless_refused(partial(attempt, *arrays), function, arrays)
    assert "no kernel for these" in programs._why_not(functions.MAMBA.name, ())

    def lacking():
        raise NotImplementedError("Unimplemented primitive in Pallas GPU lowering: cumsum")

    with pytest.raises(NotImplementedError):
        programs._unless_refused(lacking, "linear_scan", ())


def test_a_process_that_is_lost_is_replaced(monkeypatch):
    one = Worker("time", {})
    try:
        assert one.ask("sleep", 30, 0) is None
        with pytest.raises(Failed, match="no answer within 0 s"):
            one.ask("sleep", 0.2, 100)
        assert one.ask("sleep", 30, 0) is None
    finally:
        one.close()
    other = Worker("os", {"SEEN_BY_THE_OTHER": "1"})
    try:
        assert other.ask("getenv", 30, "SEEN_BY_THE_OTHER") == "1"
        first = other.ask("getpid", 30)
        assert other.ask("getpid", 30) == first
        with pytest.raises(Failed, match="TypeError"):  # after an error nothing on a device can be relied on
            other.ask("getpid", 30, "too much")
        second = other.ask("getpid", 30)
        with pytest.raises(Failed, match="died, exit status 7"):
            other.ask("_exit", 30, 7)
        assert len({first, second, other.ask("getpid", 30)}) == 3
    finally:
        other.close()


def test_the_time_of_a_call_is_the_devices_and_not_the_hosts(monkeypatch):
    """A queue whose work takes 2 ms a call, into which the host puts one in 0.5 ms; both start and end take time."""
    now = SimpleNamespace(host=0.0, device=0.0)
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now.host))

    def put(seconds, cost=0.0005):
        now.host += cost
        now.device = max(now.host, now.device) + seconds

    def finish():
        now.host = max(now.host, now.device) + 0.0003

    found = clock.device_time(lambda number: put(0.002), finish, lambda: put(0.003), seconds=1.0)
    assert found.ms == pytest.approx(2.0) and found.low == pytest.approx(2.0) and found.rounds == clock.ROUNDS
    # As long as the plug lasts, the host may even be slower than the device.
    short = clock.device_time(lambda number: put(0.0001, 0.00015), finish, lambda: put(0.003), seconds=1.0)
    assert short.ms == pytest.approx(0.1)
    slow = clock.device_time(lambda number: put(0.5), finish, lambda: put(0.003), seconds=1.0)
    assert slow.rounds == 3 and slow.ms == pytest.approx(500, rel=1e-2)


def test_operands_are_the_same_in_every_process_and_differ_between_rows_and_sets():
    case = DeviceCase("selective", "selective_scan", (3, 600, 4, 2), "bfloat16")
    x, dt, A, _B, _C = programs._operands(case, 0)
    assert x.shape == (3, 600, 4) and x.dtype == dt.dtype == jnp.bfloat16 and A.dtype == jnp.float32
    tile = cases.drawn(case, 0)[0][0].astype(jnp.bfloat16)
    for row, token in ((0, 0), (1, 5), (2, 599)):
        assert (x[row, token] == tile[0, (token + cases.SHIFT * row) % cases.PERIOD]).all()
    assert not (programs._operands(case, 1)[0] == x).all()


@pytest.mark.parametrize("name", sorted(name for name in cases.PUBLIC if "conv" not in name and "global" not in name))
@pytest.mark.slow
@pytest.mark.exhaustive
def test_associative_scans_are_the_functions(name):
    case = next(case for case in cases.cases(tiny=True) if case.function == name)
    operands = programs._operands(DeviceCase(case.group, name, case.shape, "float32"), 0)
    expected = cases.call(name, "reference")(*operands)
    assert relative_error(programs._associative(case)(*operands)[0], expected[0]) < 1e-6


def test_bytes_by_hand():
    b, length, d = HALF.shape
    tokens, state = 2 * b * length * d, 4 * b * d
    assert cases.moved(HALF) == {FORWARD: 3 * tokens + state, BOTH: 6 * tokens}
    case = DeviceCase("gated", "gated_linear_attention", (2, 7, 3, 8), "bfloat16")
    tokens, state = 2 * 2 * 7 * 3 * 8, 4 * 2 * 3 * 8 * 8
    assert cases.moved(case) == {FORWARD: 5 * tokens + state, BOTH: 10 * tokens}
    assert cases.multiply_adds(case) == {FORWARD: 2 * 2 * 7 * 3 * 64, BOTH: 6 * 2 * 7 * 3 * 64}
    constant = DeviceCase("linear", "linear_scan, constant decay", (2, 7, 8), "float32")
    assert cases.moved(constant)[FORWARD] == 4 * (8 + 2 * 2 * 7 * 8 + 2 * 8)


def test_every_target_has_its_case_and_its_peer():
    found, all_cases = cases.targets(), cases.cases()
    assert len(found) == 8 and {target.case for target in found} <= set(all_cases[:6])
    assert all(target.peer is None or target.peer in cases.PEERS[target.case.function] for target in found)
    assert [(t.case.function, t.phase, t.asked) for t in found if t.peer == "fla chunk_gla"] == [
        ("gated_linear_attention", FORWARD, 3.0),
        ("gated_linear_attention", BOTH, 2.5),
    ]
    assert len({case.title for case in all_cases}) == len(all_cases)
    assert {case.function for case in all_cases} <= set(gate.SIZES) and set(cases.PUBLIC) <= set(gate.SIZES)
    peers = importlib.import_module("experiments.scan_benchmark.device.peers")
    assert {name for names in cases.PEERS.values() for name in names} == set(peers.PEERS)


def test_verdicts_and_answers_by_hand():
    target = next(t for t in cases.targets() if t.peer == "fla chunk_gla" and t.phase == FORWARD)
    copy = next(t for t in cases.targets() if t.peer is None and t.case == target.case)
    case = target.case

    def told(**times):
        names = {"peer": "fla chunk_gla"}
        rows = [
            DeviceRow(case.title, FORWARD, names.get(name, name), case.dtype, ms=ms, copy_fraction=0.9 / ms)
            for name, ms in times.items()
        ]
        return Record({}, {}, {}, rows=rows)

    def word(found, wanted=target):
        verdict = record.verdict_of(wanted, found, judged=True)
        return verdict.program, verdict.measured, verdict.verdict

    assert word(told(xla=2.0, pallas=1.0, peer=3.0)) == ("pallas", 3.0, "reached")
    assert word(told(xla=0.5, pallas=1.0, peer=1.0)) == ("xla", 2.0, "not reached")
    assert word(told(xla=2.0, pallas=2.0), copy) == ("xla", 0.45, "reached")
    assert word(told(xla=2.0))[1:] == (None, "no peer") and word(told(peer=1.0))[2] == "not measured"
    differs = told(xla=2.0, pallas=1.0, peer=3.0)
    differs.rows[1] = DeviceRow(case.title, FORWARD, "pallas", case.dtype, ms=1.0, difference=math.nan, failed=True)
    assert word(differs) == ("xla", 1.5, "not reached") and len(differs.failures) == 1

    def answer(found):
        return report.kernel_table([case], found).splitlines()[2]

    assert " yes " in answer(told(xla=2.0, pallas=1.0)) and " no " in answer(told(xla=1.01, pallas=1.0))
    assert "no kernel" in answer(told(xla=2.0)) and "failed" in answer(differs)


def test_rows_of_other_versions_or_without_a_time_are_measured_anew(tmp_path):
    rows = [DeviceRow("a", FORWARD, "xla", "float32", ms=1.0), DeviceRow("a", BOTH, "xla", "float32", note="lost")]
    record.write(Record({"kind": "A b"}, {"versions": {"jax": "1"}}, {}, rows=rows), tmp_path)
    assert record.earlier_rows(tmp_path, "A b", {"jax": "1"}) == rows[:1]
    assert record.earlier_rows(tmp_path, "A b", {"jax": "2"}) == record.earlier_rows(tmp_path, "C", {"jax": "1"}) == []


def test_the_flags_reach_the_plan_and_a_missing_device_is_one_line(call, refused, monkeypatch, tmp_path):
    plans = []
    monkeypatch.setattr(command, "benchmark_device", lambda plan: plans.append(plan) or 0)
    flags = ["--device", "gpu", "--preset", "smoke", "--only", "gated,linear", "--minutes", "2", "--resume", "--out"]
    assert call("bench", "scan", *flags, tmp_path)[0] == 0
    assert plans == [command.Plan("gpu", tmp_path, ["linear", "gated"], 2.0, True, True)]
    assert ScanFlags().device == "cpu"
    assert "--minutes: got 0" in refused(call("bench", "scan", "--device", "gpu", "--minutes", "0"))
    monkeypatch.undo()
    monkeypatch.setattr(command, "Worker", Here)
    assert "finds none here (only cpu)" in refused(call("bench", "scan", "--device", "tpu", "--out", tmp_path))


def test_a_program_is_put_into_words():
    assert worker.reason(ValueError("a\n  b")) == "ValueError: a b"
    assert len(worker.reason(ValueError("x" * 1000))) == worker.LONGEST_REASON


@pytest.mark.slow
@pytest.mark.parametrize("phase", [BOTH, FORWARD])
def test_peers_get_our_operands_in_their_layout(phase, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    peers = importlib.import_module("experiments.scan_benchmark.device.peers")

    def scanned(u, delta, A, B, C, return_last_state):  # (B, D, L), (D, N), (B, N, L), as mamba-ssm has it
        kind, (u, delta, B, C) = u.dtype, (x.float() for x in (u, delta, B, C))
        h, y = torch.zeros(u.shape[0], *A.shape), []
        for t in range(u.shape[2]):
            h = (delta[..., t, None] * A).exp() * h + (delta[..., t] * u[..., t])[..., None] * B[:, None, :, t]
            y.append((h * C[:, None, :, t]).sum(-1))
        return torch.stack(y, 2).to(kind), h

    def attended(q, k, v, g, scale, output_final_state):  # (B, L, H, K), one decay per head (B, L, H), as in fla
        kind, (q, k, v, g) = q.dtype, (x.float() for x in (q, k, v, g))
        state, o = torch.zeros(q.shape[0], *q.shape[2:], v.shape[3]), []
        for t in range(q.shape[1]):
            state = g[:, t].exp()[..., None, None] * state + k[:, t, ..., None] * v[:, t, :, None]
            o.append(scale * (q[:, t, :, None] @ state)[..., 0, :])
        return torch.stack(o, 1).to(kind), state

    modules = {
        "mamba_ssm.ops.selective_scan_interface": SimpleNamespace(selective_scan_fn=scanned),
        "fla.ops.simple_gla": SimpleNamespace(chunk_simple_gla=attended),
    }
    monkeypatch.setattr(peers, "_module", lambda name: modules.get(name, torch))
    monkeypatch.setattr(clock, "ROUNDS", 1)
    for function in (functions.SELECTIVE.name, functions.PER_HEAD.name):
        case = next(case for case in cases.cases(tiny=True) if case.function == function)
        found = peers.timed(case, phase, cases.PEERS[function][0], "cpu", 0.01)
        ours = programs.timed(case, phase, "xla", True, 0.01)
        assert found["time"].ms > 0 and relative_error(found["sample"][0], ours["sample"][0]) < 1e-2
    monkeypatch.undo()
    with pytest.raises(Refused, match="^no_such_package is not installed$"):
        peers._module("no_such_package.ops")
