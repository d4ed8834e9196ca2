"""Recurrences as functions of arrays: no parameters, no Flax.

All of the sequence forms take `segment_ids=None`, `mask=None` and `implementation=None`:

- `segment_ids` (B, L): a segment is a maximal run of equal ids; the state restarts at each new run, `initial_state`
  enters the first, the final state is that of the last.
- `mask` (B, L), true at real tokens: a masked token leaves the state as it is, gives output 0 and gets gradient exactly
  0, whatever it contains, so that padding on either side is exact.
- `implementation`: "reference" is the definition, token by token; "xla" is fast on any platform; "pallas" and
  "pallas_interpret" are kernels, refused with the reason where there is none; None takes what is known as the best
  for the platform that the function is lowered for. `explain` says what that is and why.

States and sums are in float32 at least, whatever the precision of the inputs; all inputs and states are differentiable,
the final state's cotangent included. Errors are `ValueError`s that name the argument, what was given, what is expected.
Which function is for which model, and what each costs, is in the README beside this file.
"""

from functools import partial
from typing import Any

import jax

from lightnet.scan.additive import (
    ADDITIVE,
    ADDITIVE_GLOBAL,
    AdditiveState,
    additive_global,
    additive_recurrence,
    additive_step,
)
from lightnet.scan.conv import CONV, causal_conv, causal_conv_step
from lightnet.scan.diagonal import DIAGONAL, diagonal_ssm, diagonal_step
from lightnet.scan.dispatch import calls, choices
from lightnet.scan.gated import GATED, gated_linear_attention, gated_linear_step
from lightnet.scan.linear import LINEAR, linear_scan, linear_step
from lightnet.scan.selective import SELECTIVE, selective_scan, selective_step

__all__ = [
    "AdditiveState",
    "additive_global",
    "additive_recurrence",
    "additive_step",
    "causal_conv",
    "causal_conv_step",
    "diagonal_ssm",
    "diagonal_step",
    "explain",
    "gated_linear_attention",
    "gated_linear_step",
    "linear_scan",
    "linear_step",
    "selective_scan",
    "selective_step",
]

_RECURRENCES = {r.name: r for r in (LINEAR, DIAGONAL, SELECTIVE, GATED, ADDITIVE, ADDITIVE_GLOBAL, CONV)}


def explain(function: str, *arguments: Any, **named: Any) -> str:
    """What `implementation=None` runs on each platform and why, and how the call is split over the mesh that is set.

    Args:
        function: name of a sequence form of this package.
        *arguments: what it would be called with: arrays or `jax.ShapeDtypeStruct`s. Without any, the general answer.
        **named: its arguments by name.

    Returns:
        One line per platform, and one for the mesh where there is one.

    Raises:
        ValueError: there is no such function, or it does not accept these arguments.

    Example:
        >>> print(explain("linear_scan"))
        linear_scan on cpu: xla (there is no kernel for this platform)
        linear_scan on cuda: xla (the kernel, which implementation='pallas' runs, has not been timed on this platform)
        linear_scan on tpu: pallas (a kernel for this platform)
    """
    if function not in _RECURRENCES:
        raise ValueError(f"function: got {function!r}, expected one of {', '.join(_RECURRENCES)}")
    call = None
    if arguments or named:
        with calls() as found:
            arrays = {name: x for name, x in named.items() if hasattr(x, "shape")}
            others = {name: x for name, x in named.items() if name not in arrays}
            jax.eval_shape(partial(globals()[function], **others), *arguments, **arrays)
        call = found[-1]
    answers = choices(_RECURRENCES[function], call)
    lines = [f"{function} on {platform}: {name} ({why})" for platform, (name, why) in answers.items()]
    return "\n".join([*lines, *([f"{function} on this mesh: {call.placed}"] if call and call.placed else [])])
