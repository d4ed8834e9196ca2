"""What others have written for the same recurrences, in torch, in a process of its own: names, calls, times.

Each peer gets the operands that ours get, made of the same numbers, in the layout that it wants, prepared before the
clock starts. `worker` calls `timed` by name; torch and the peers are imported when they are asked for.
"""

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.scan_benchmark.device.cases import SHIFT, DeviceCase, drawn, dtypes, sampled, sets_wanted
from experiments.scan_benchmark.device.clock import ROUNDS, DeviceTime, device_time, summary
from experiments.scan_benchmark.device.worker import Refused
from experiments.scan_benchmark.measure import BOTH


@dataclass(frozen=True)
class Peer:
    """One peer.

    Attributes:
        module: where it is.
        name: of the function there.
        given: our operands -> its arguments.
        named: its arguments by name.
        output: its output -> ours; None if it is the same.
    """

    module: str
    name: str
    given: Callable[..., Sequence[Any]] = lambda *x: x
    named: tuple[tuple[str, Any], ...] = (("scale", 1.0), ("output_final_state", True))
    output: Callable[[Any], Any] = lambda y: y


def _log_decay_second(a: Any, b: Any) -> Sequence[Any]:
    return b, a.float().log().to(b.dtype)


def _one_decay(q: Any, k: Any, v: Any, log_decay: Any) -> Sequence[Any]:
    return q, k, v, log_decay[..., 0].contiguous()


def _time_last(x: Any, dt: Any, A: Any, B: Any, C: Any) -> Sequence[Any]:
    turned = [y.transpose(1, 2).contiguous() for y in (x, dt, B, C)]
    return *turned[:2], A, *turned[2:]


_STATE = (("output_final_state", True),)
PEERS = {
    "fla chunk_hgrn": Peer("fla.ops.hgrn", "chunk_hgrn", _log_decay_second, _STATE),
    "fla fused_recurrent_hgrn": Peer("fla.ops.hgrn", "fused_recurrent_hgrn", _log_decay_second, _STATE),
    "fla chunk_gla": Peer("fla.ops.gla", "chunk_gla"),
    "fla chunk_simple_gla": Peer("fla.ops.simple_gla", "chunk_simple_gla", _one_decay),
    "fla chunk_lightnet": Peer("fla.ops.lightnet", "chunk_lightnet"),
    "mamba-ssm selective_scan_fn": Peer(
        "mamba_ssm.ops.selective_scan_interface",
        "selective_scan_fn",
        _time_last,
        (("return_last_state", True),),
        lambda y: y.transpose(1, 2),
    ),
}


def timed(case: DeviceCase, phase: str, name: str, device: str, seconds: float) -> dict[str, Any]:
    """Run a peer and time it.

    Args:
        case: which.
        phase: forward, or forward and backward with a cotangent of the output alone.
        name: of the peer, a key of `PEERS`.
        device: what torch calls it.
        seconds: of measuring.

    Returns:
        `time`, `compile_seconds` of the first call, and `sample` of the output as for ours.

    Raises:
        Refused: it is not installed.
    """
    torch = _module("torch")
    if device != "cpu" and not torch.cuda.is_available():
        raise Refused("torch finds no GPU")
    try:
        return _timed(torch, case, phase, PEERS[name], device, seconds)
    finally:
        if device != "cpu":
            torch.cuda.empty_cache()  # JAX, in the other process, may need it


def _timed(torch: Any, case: DeviceCase, phase: str, peer: Peer, device: str, seconds: float) -> dict[str, Any]:
    function = getattr(_module(peer.module), peer.name, None)
    if function is None:
        raise Refused(f"{peer.module} has no {peer.name}")
    sets = _argument_sets(torch, case, peer, device)
    cotangent = None
    if phase == BOTH:
        with torch.no_grad():
            like = function(*sets[0], **dict(peer.named))[0]
        generator = torch.Generator(device).manual_seed(1)
        cotangent = torch.randn(like.shape, generator=generator, device=device).to(like.dtype)

    def run(number: int) -> Any:
        arguments = sets[number % len(sets)]
        if cotangent is None:
            with torch.no_grad():
                return function(*arguments, **dict(peer.named))[0]
        output = function(*arguments, **dict(peer.named))[0]
        torch.autograd.grad(output, arguments, cotangent)
        return output

    before = time.perf_counter()
    output = run(0)
    _wait(torch, device)
    first_seconds = time.perf_counter() - before
    sample = _sample(case, peer.output(output.detach()))
    del output
    found = _clocked(torch, run, device, seconds)
    return {"time": found, "compile_seconds": first_seconds, "temporaries": None, "sample": [sample]}


def versions() -> dict[str, str]:
    """Versions of torch and of the peers, where they are installed."""
    metadata = importlib.import_module("importlib.metadata")
    found = {}
    for name in ("torch", "triton", "flash-linear-attention", "fla-core", "mamba-ssm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Refused(f"{error.name or name} is not installed") from None


def _argument_sets(torch: Any, case: DeviceCase, peer: Peer, device: str) -> list[list[Any]]:
    """So many that one finds nothing of its own in the cache."""

    def arguments(seed: int) -> list[Any]:
        arrays = drawn(case, seed)
        found = []
        for (x, over_time), name in zip(arrays, dtypes(case, [x for x, _ in arrays]), strict=True):
            tensor = torch.from_numpy(np.array(x)).to(device).to(getattr(torch, name))
            found.append(_whole(torch, tensor, *case.shape[:2]) if over_time else tensor)
        return [x.detach().requires_grad_() for x in peer.given(*found)]

    sets = [arguments(0)]
    size = sum(x.numel() * x.element_size() for x in sets[0])
    return sets + [arguments(seed) for seed in range(1, sets_wanted(size))]


def _whole(torch: Any, tile: Any, batch: int, length: int) -> Any:
    """(1, tokens, ...) -> (batch, length, ...), as for ours."""
    rows, tokens = (torch.arange(n, device=tile.device) for n in (batch, length))
    return tile[0][(tokens[None] + SHIFT * rows[:, None]) % tile.shape[1]]


def _sample(case: DeviceCase, output: Any) -> np.ndarray:
    rows, tokens = sampled(*case.shape[:2])
    return output[rows][:, tokens].float().cpu().numpy()


def _clocked(torch: Any, run: Callable[[int], Any], device: str, seconds: float) -> DeviceTime:
    """By events in the device's queue behind other work; on a CPU by the host's clock."""
    if device == "cpu":
        return device_time(run, lambda: None, lambda: None, seconds)
    buffer = torch.ones(1 << 27, device=device)

    def elapsed(calls: int) -> float:
        torch.cuda.synchronize()
        for _ in range(8):
            buffer.mul_(0.5).add_(0.5)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for number in range(calls):
            run(number)
        end.record()
        torch.cuda.synchronize()
        return 1e-3 * start.elapsed_time(end) / calls

    once = elapsed(2)
    many = max(2, min(20, round(0.04 / once)))
    rounds = max(3, min(ROUNDS, int(seconds / (many * once + 0.01))))
    return summary([elapsed(many) for _ in range(rounds)])


def _wait(torch: Any, device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
