"""Peers in torch, where it is installed: the recurrence as a Python loop, and Mamba's scan in transformers on CPU.

torch is imported only when a peer is prepared. It runs in the same process on one thread: what counts is CPU time, in
which threads that wait for each other on a busy machine would cost it several times what it needs.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np

from experiments.scan_benchmark.baselines import Step, looped
from experiments.scan_benchmark.functions import Operands
from experiments.scan_benchmark.measure import Missing, Program

MIXER = "transformers.models.mamba.modeling_mamba"


def loop_program(recurrence: Step, operands: Operands, cotangents: Operands | None) -> Program:
    """A Python loop over time, and autograd through it.

    Args:
        recurrence: one token.
        operands: JAX arrays.
        cotangents: of all outputs; None for the forward pass alone.

    Returns:
        The program.

    Raises:
        Missing: torch is not installed.
    """
    torch = _module("torch")
    return _program(torch, looped(recurrence, torch), operands, cotangents)


def mamba_program(operands: Operands, cotangents: Operands | None) -> Program:
    """`mamba_selective_scan`, which `MambaMixer` calls on CPU between its projections, with D and the gate z.

    Operands are laid out as the mixer has them: x, dt and z with time last, B and C with time before the states. It
    knows no initial state; the first cotangent is that of its output, the second that of its last state.

    Args:
        operands: x, dt, A, B, C, D, z and the initial state, which must be 0.
        cotangents: of the output and the last state; None for the forward pass alone.

    Returns:
        The program.

    Raises:
        Missing: torch or transformers is not installed, or has no such function.
    """
    torch, mixer = _module("torch"), _module(MIXER)
    if not hasattr(mixer, "mamba_selective_scan"):
        raise Missing(f"transformers {_module('transformers').__version__} has no mamba_selective_scan")
    if np.any(np.asarray(operands[-1])):
        raise ValueError("initial state: got one that is not 0, expected 0: the peer knows none")

    def scan(x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any) -> Operands:
        turned = B.transpose(1, 2), C.transpose(1, 2)
        y, final = mixer.mamba_selective_scan(x, dt, A, *turned, D=D, z=z, return_last_state=True)
        return y.transpose(1, 2), final

    time_last = {0, 1, 6}
    given = tuple(x.swapaxes(1, 2) if i in time_last else x for i, x in enumerate(operands[:-1]))
    return _program(torch, scan, given, cotangents)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Missing(f"{name.partition('.')[0]} is not installed") from None


def _program(
    torch: ModuleType, function: Callable[..., Operands], operands: Operands, cotangents: Operands | None
) -> Program:
    """Call a function of tensors; with cotangents, return the gradients of all operands as well."""
    torch.set_num_threads(1)
    tensors = [torch.from_numpy(np.array(x)) for x in jax.device_get(operands)]

    def forward() -> Operands:
        with torch.no_grad():
            return function(*tensors)

    if cotangents is None:
        return Program(forward)
    for tensor in tensors:
        tensor.requires_grad_()
    weights = [torch.from_numpy(np.array(x)) for x in jax.device_get(cotangents)]

    def both() -> tuple[Operands, Operands]:
        outputs = function(*tensors)
        gradients = torch.autograd.grad(outputs, tensors, weights)
        return tuple(x.detach() for x in outputs), gradients

    return Program(both)
