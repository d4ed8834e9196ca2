"""The benchmark on an accelerator, from the gate to the verdicts, within a time.

This process computes on the host only. Each row is saved as soon as it is known.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from experiments import environment
from experiments.errors import UserError
from experiments.scan_benchmark.device import report
from experiments.scan_benchmark.device.cases import PEERS, SCANS, DeviceCase, cases, moved, multiply_adds, targets
from experiments.scan_benchmark.device.gate import DeviceCheck, check_function, chosen
from experiments.scan_benchmark.device.programs import ASSOCIATIVE
from experiments.scan_benchmark.device.record import OURS, DeviceRow, Record, earlier_rows, verdict_of, write
from experiments.scan_benchmark.device.worker import Failed, Refused, Worker, reason
from experiments.scan_benchmark.functions import Function
from experiments.scan_benchmark.measure import BOTH, FORWARD, relative_error

PROGRAMS, TORCH = "experiments.scan_benchmark.device.programs", "experiments.scan_benchmark.device.peers"
PLATFORMS = {"gpu": "cuda,cpu", "tpu": "tpu,cpu", "cpu": "cpu"}  # what JAX calls them
GATE_WORKERS = 4  # compilers at the same time, before anything is timed
DESCRIBE_SECONDS, CEILING_SECONDS, ROW_SECONDS, PEER_SECONDS = 60.0, 90.0, 100.0, 150.0  # for one answer
COMPILING_SECONDS = 60.0  # for the peers while the gate compiles as well
LONGEST_PROFILED = 20.0  # milliseconds; beyond them there are thousands of kernels
MEASURING = 0.8  # seconds of a row's rounds
LAST = 15.0  # seconds that are kept for what is being measured when the time is over


@dataclass(frozen=True)
class Plan:
    """What the command was told.

    Attributes:
        device: "gpu" or "tpu".
        folder: for the record and the figure.
        groups: of functions.
        minutes: after which nothing more is begun.
        tiny: whether at sizes that show only that everything runs; then a CPU may stand in for the device.
        resume: whether rows that an earlier run has on such a device are taken from there.
        kernel: the form that stands for the kernels: a test has them interpreted.
    """

    device: str
    folder: Path
    groups: Sequence[str]
    minutes: float
    tiny: bool
    resume: bool
    kernel: str = "pallas"


def benchmark_device(plan: Plan) -> int:
    """Check, then time, printing each table as soon as it is known.

    Args:
        plan: what to do.

    Returns:
        0; 1 if a form is not exact or broke down, which is told and not timed while all else is.

    Raises:
        UserError: there is no such device.
    """
    jax.config.update("jax_platforms", "cpu")  # of this process; the others have their own
    run = _Run(plan)
    try:
        run.gate()
        run.time()
        return run.finish()
    finally:
        run.close()


class _Run:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.end = plan, time.monotonic() + 60 * plan.minutes
        self.ours, device = _started(plan)
        self.platform = "cpu" if device["stand_in"] else plan.device
        self.torch = Worker(TORCH, {"JAX_PLATFORMS": "cpu"})  # JAX only prepares the numbers there
        settings = {"only": list(plan.groups), "minutes": plan.minutes, "tiny": plan.tiny}
        self.record = Record(device, environment.describe(), settings)
        self.record.environment["devices"] = [f"{device['platform']}: {device['kind']}"]
        self.record.environment["peers"] = self._peers()
        self.earlier = self._earlier()
        self.profiled = self.platform == "gpu"
        self.truth: dict[tuple[DeviceCase, str], list[Any]] = {}  # samples of XLA's forms

    def close(self) -> None:
        self.ours.close()
        self.torch.close()

    def gate(self) -> None:
        """All forms of all functions; several processes compile at the same time, and none of it is timed."""
        more = GATE_WORKERS - 1 if self.platform == "gpu" else 0  # a TPU has one process
        workers = [self.ours, *(Worker(PROGRAMS, _environment(self.platform)) for _ in range(more))]
        idle, compiling = list(workers), self._peers_compiling()

        def check(function: Function) -> list[DeviceCheck]:
            worker = idle.pop()
            try:
                return list(check_function(function, ["xla", self.plan.kernel], worker.ask, self.plan.tiny))
            except Exception as error:
                return [DeviceCheck(function.name, name, "", "", note=reason(error)) for name in OURS]
            finally:
                idle.append(worker)

        try:
            with ThreadPoolExecutor(len(workers)) as pool:
                for found in pool.map(check, chosen(list(self.plan.groups))):
                    self.record.checks += [replace(c, implementation=self._name(c.implementation)) for c in found]
        finally:
            compiling()
            for worker in workers[1:]:
                worker.close()
        print(report.gate_table(self.record.checks), flush=True)
        self._save()

    def _peers_compiling(self) -> Callable[[], None]:
        """Have the peers that numbers are asked of compile meanwhile, which takes them minutes; the result waits.

        What they compiled stays on the disk. Which of their settings is fastest they find out again when they are
        timed, alone on the device.
        """
        asked = dict.fromkeys(
            target.case for target in targets(self.plan.tiny) if target.case.group in self.plan.groups
        )
        named = [(case, name) for case in asked for name in self._peers_of(case)] if self.platform == "gpu" else []
        workers = [Worker(TORCH, {"JAX_PLATFORMS": "cpu", "FLA_CACHE_RESULTS": "0"}) for _ in named]
        pool = ThreadPoolExecutor(max(1, len(named)))
        for worker, (case, name) in zip(workers, named, strict=True):
            pool.submit(worker.ask, "timed", COMPILING_SECONDS, case, BOTH, name, "cuda", MEASURING)

        def wait() -> None:
            pool.shutdown()
            for worker in workers:
                worker.close()

        return wait

    def time(self) -> None:
        """The ceilings, then the cases, what numbers are asked for before all else; what is left is noted."""
        try:
            self.record.ceilings = self.ours.ask("ceilings", CEILING_SECONDS, self.plan.tiny, MEASURING)
        except (Refused, Failed) as error:
            self.record.troubles.append(f"ceilings: {error}")
        print("\n" + report.ceilings_line(self.record.ceilings), flush=True)
        asked = {target.case for target in targets(self.plan.tiny)}
        wanted = [case for case in cases(self.plan.tiny) if case.group in self.plan.groups]
        for part in ([c for c in wanted if c in asked], [c for c in wanted if c not in asked]):
            for case in part:
                self._measure(case, OURS)
            for case in part:
                self._measure(case, self._peers_of(case))
            for case in part:
                self._measure(case, (ASSOCIATIVE,) if case.group in SCANS else ())

    def finish(self) -> int:
        """Verdicts, the figure and what failed."""
        record, plan = self.record, self.plan
        path = self._save()
        print("\n" + report.kernel_table([c for c in cases(plan.tiny) if c.group in plan.groups], record))
        if record.verdicts:
            print("\n" + report.verdict_table(record.verdicts))
        if record.left:
            print(f"\nno time was left for {len(record.left)} programs; the same command with --resume goes on")
        for failure in record.failures:
            print(f"FAILED: {failure}")
        print(f"\n{path}", flush=True)
        try:
            print(report.write_figure(record, plan.folder) or "nothing to draw", flush=True)
        except ImportError as error:
            print(f"no figure: {error}", flush=True)
        return 1 if record.failures else 0

    def _save(self) -> Path:
        found = [target for target in targets(self.plan.tiny) if target.case.group in self.plan.groups]
        self.record.verdicts = [verdict_of(target, self.record, judged=not self.plan.tiny) for target in found]
        return write(self.record, self.plan.folder)

    def _measure(self, case: DeviceCase, programs: Sequence[str]) -> None:
        """Rows of a case, in both phases, and their table; what goes wrong here does not end the others."""
        rows = []
        try:
            rows = list(self._rows(case, programs))
        except Exception as error:
            self.record.troubles.append(f"{case.title}: {reason(error)}")
        for phase in (FORWARD, BOTH):  # of the gradients nothing is compared later
            if (case, phase) in self.truth:
                del self.truth[case, phase][1:]
        if rows:
            print(report.case_table(case.title, rows), flush=True)

    def _rows(self, case: DeviceCase, programs: Sequence[str]) -> Iterator[DeviceRow]:
        """Each is saved before it is yielded."""
        sizes, products = moved(case), multiply_adds(case)
        exact = [p for p in programs if p not in OURS or self.record.exact(case.function, case.dtype, p)]
        for phase in (FORWARD, BOTH):
            earlier = {program: self._known(case, phase, program) for program in exact}
            if exact and exact[0] in OURS and None in earlier.values() and self._seconds_left() >= LAST:
                earlier = dict.fromkeys(exact)  # what the kernel gives is compared with what XLA's form gives
            for program, row in earlier.items():
                if row is None and self._seconds_left() < LAST:
                    self.record.left.append(f"{case.title}, {phase}, {program}")
                    continue
                row = self._with_fractions(row or self._row(case, phase, program), sizes[phase], products[phase])
                self.record.rows.append(row)
                self._save()
                yield row

    def _row(self, case: DeviceCase, phase: str, program: str) -> DeviceRow:
        row = DeviceRow(case.title, phase, program, case.dtype)
        ours = program in OURS
        try:
            found = self._timed(case, phase, program)
        except Refused as refusal:
            return replace(row, note=str(refusal))
        except Failed as failure:
            return replace(row, note=str(failure), failed=ours)
        truth = self.truth.get((case, phase))
        if program == "xla":
            self.truth[case, phase] = found["sample"]
        time = found["time"]
        row = replace(row, ms=time.ms, low=time.low, high=time.high, difference=_difference(found["sample"], truth))
        row = replace(row, compile_seconds=found["compile_seconds"], temporaries=found["temporaries"])
        row = replace(row, failed=ours and not row.same)
        return row if program in PEERS.get(case.function, ()) else replace(row, kernels_ms=self._kernels_ms(row.ms))

    def _timed(self, case: DeviceCase, phase: str, program: str) -> dict[str, Any]:
        left = max(LAST, self._seconds_left() + LAST)
        if program not in PEERS.get(case.function, ()):
            form = self.plan.kernel if program == "pallas" else program
            return self.ours.ask("timed", min(ROW_SECONDS, left), case, phase, form, self.plan.tiny, MEASURING)
        before = self.record.row(case, FORWARD, program)
        if before is not None and before.ms is None:
            raise Refused(before.note)  # it would be the same
        device = "cpu" if self.platform == "cpu" else "cuda"
        return self.torch.ask("timed", min(PEER_SECONDS, left), case, phase, program, device, MEASURING)

    def _kernels_ms(self, ms: float | None) -> float | None:
        """By the profiler, as long as it works; where it does not the times are those of the queue alone."""
        if not self.profiled or ms is None or ms > LONGEST_PROFILED:
            return None
        try:
            return self.ours.ask("kernels_ms", ROW_SECONDS)
        except (Refused, Failed) as error:
            print(f"no times of single kernels: {error}", flush=True)
            self.profiled = False
            return None

    def _known(self, case: DeviceCase, phase: str, program: str) -> DeviceRow | None:
        key = (case.title, phase, program)
        return next((row for row in self.earlier if (row.case, row.phase, row.program) == key), None)

    def _with_fractions(self, row: DeviceRow, size: int, products: float) -> DeviceRow:
        if row.ms is None or not self.record.ceilings:
            return replace(row, bytes=size)
        seconds, best = 1e-3 * row.ms, self.record.ceilings
        copy, product = size / seconds / best["copy_bytes"], products / seconds / best["multiply_adds"]
        return replace(row, bytes=size, copy_fraction=copy, product_fraction=product)

    def _peers_of(self, case: DeviceCase) -> tuple[str, ...]:
        """Peers run in bfloat16, which is what they are written for; there are none for TPUs."""
        return PEERS.get(case.function, ()) if case.dtype == "bfloat16" and self.plan.device == "gpu" else ()

    def _peers(self) -> dict[str, str]:
        if self.plan.device != "gpu":
            return {}
        try:
            return self.torch.ask("versions", DESCRIBE_SECONDS)
        except (Refused, Failed) as error:
            return {"trouble": str(error)}

    def _earlier(self) -> list[DeviceRow]:
        if not self.plan.resume:
            return []
        return earlier_rows(self.plan.folder, self.record.device["kind"], self.record.environment["versions"])

    def _name(self, implementation: str) -> str:
        return "pallas" if implementation == self.plan.kernel else implementation

    def _seconds_left(self) -> float:
        return self.end - time.monotonic()


def _started(plan: Plan) -> tuple[Worker, dict[str, Any]]:
    """A process that has found the device; at tiny sizes the CPU stands in for one that is not there."""
    worker = Worker(PROGRAMS, _environment(plan.device))
    try:
        found = worker.ask("describe", DESCRIBE_SECONDS)
        if found["platform"] == plan.device:
            return worker, {**found, "stand_in": False}
        why = f"only {found['platform']}"
    except Failed as failure:
        why = str(failure)
    worker.close()
    if not plan.tiny:
        raise UserError(f"--device {plan.device}: JAX finds none here ({why})")
    print(f"no {plan.device} here: the CPU stands in, and the times mean nothing", flush=True)
    worker = Worker(PROGRAMS, _environment("cpu"))
    return worker, {**worker.ask("describe", DESCRIBE_SECONDS), "stand_in": True}


def _environment(device: str) -> dict[str, str]:
    return {
        "JAX_PLATFORMS": PLATFORMS[device],
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # or the seconds of compiling would be those of reading a file
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share the card,
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.6",  # and JAX gives nothing back that it once had
    }


def _difference(sample: list[Any], truth: list[Any] | None) -> float | None:
    """From XLA's form: the largest of the output and the gradients, as far as both have them."""
    if truth is None:
        return None
    errors = [relative_error(x, y) for x, y in zip(sample, truth, strict=False) if x is not None and y is not None]
    return max(errors, default=None, key=lambda error: (error != error, error))
