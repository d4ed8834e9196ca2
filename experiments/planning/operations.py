"""How many operations the matrix products of a program take, from its jaxpr.

XLA's own count takes the body of a loop once, and knows nothing of kernels. Here a body counts as often as it runs:
`scan` says so, a loop from a start to an end that are known numbers can be asked, and a kernel runs its body once for
each step of its grid. Two operations for each product of two numbers and its sum; nothing else is counted.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import lax
from jax.extend import core

_ONE_BODY = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Operations(NamedTuple):
    """Of a program, over all devices.

    Attributes:
        products: operations in products of matrices and in convolutions.
        passes: the same, each as many times as it takes longer than one of bfloat16. A TPU does products of float32 in
            one pass of bfloat16, at high precision in three and at highest in six; a GPU takes TensorFloat-32 at half
            the rate, and its cores for float32 at highest.
        repeated: those of `products` that rematerialisation does again.
        endless: loops with products in them whose number of turns is not known; each counts once.
    """

    products: float = 0.0
    passes: float = 0.0
    repeated: float = 0.0
    endless: int = 0

    def __add__(self, other: "Operations") -> "Operations":  # type: ignore[override]
        """Of one program and another."""
        return Operations(*map(operator.add, self, other))

    def times(self, turns: float) -> "Operations":
        """Of so many turns."""
        return Operations(turns * self.products, turns * self.passes, turns * self.repeated, self.endless)


NOTHING = Operations()
_REPEATED = "rematted_computation"  # what JAX calls equations of the forward pass in a backward pass
_HIGH, _HIGHEST = lax.Precision.HIGH, lax.Precision.HIGHEST
# Of an H100: 989 TFLOP/s in bfloat16, 495 in TensorFloat-32, 67 in float32.
_PASSES = {"tpu": {_HIGHEST: 6.0, _HIGH: 3.0, None: 1.0}, "cuda": {_HIGHEST: 989 / 67, _HIGH: 2.0, None: 2.0}}


def count(program: core.ClosedJaxpr, platform: str) -> Operations:
    """Count a program.

    Args:
        program: from `jax.make_jaxpr`, or the jaxpr of a trace.
        platform: "tpu", "cuda" or "cpu": decides between the branches of `jax.lax.platform_dependent`.

    Returns:
        Operations over all devices.

    Example:
        >>> import jax
        >>> x = jax.ShapeDtypeStruct((3, 3), "float32")
        >>> count(jax.make_jaxpr(lambda x: jax.lax.scan(lambda y, _: (y @ x, None), x, length=5)[0])(x), "cpu")
        Operations(products=270.0, passes=270.0, repeated=0.0, endless=0)
    """
    return _of(program.jaxpr, dict(zip(program.jaxpr.constvars, program.consts, strict=True)), platform)


def _of(jaxpr: core.Jaxpr, known: Mapping[Any, Any], platform: str) -> Operations:
    """Of a jaxpr, some of whose variables have known values."""
    values = {var: value for var, value in known.items() if np.ndim(value) == 0}
    total = NOTHING
    for equation in jaxpr.eqns:
        given = [x.val if isinstance(x, core.Literal) else values.get(x) for x in equation.invars]
        found = _equation(equation, given, platform)
        again = _REPEATED in str(equation.source_info.name_stack)
        total += found._replace(repeated=found.products) if again else found
        _follow(equation, given, values, platform)
    return total


def _equation(equation: Any, given: list[Any], platform: str) -> Operations:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _at_its_precision(equation, _dot(equation), platform)
    if name == "conv_general_dilated":
        return _at_its_precision(equation, _convolution(equation), platform)
    if name == "scan":
        body = params["jaxpr"].jaxpr
        return _of(body, _known(body, given[: params["num_consts"]]), platform).times(params["length"])
    if name == "while":
        return _loop(params, given, platform)
    if name == "cond":
        bodies = [branch.jaxpr for branch in params["branches"]]
        branches = [_of(body, _known(body, given[1:]), platform) for body in bodies]
        return branches[int(given[0])] if given[0] is not None else max(branches)
    if name == "pallas_call":
        grid = [size for size in params["grid_mapping"].grid if isinstance(size, int)]
        return _of(params["jaxpr"], {}, platform).times(math.prod(grid))
    for key in _ONE_BODY:
        if key in params:
            body = getattr(params[key], "jaxpr", params[key])
            return _of(body, _known(body, given), platform).times(_copies(params))
    return NOTHING


def _known(body: core.Jaxpr, given: Sequence[Any]) -> dict[Any, Any]:
    """The first arguments of a body that are known."""
    return {var: value for var, value in zip(body.invars, given, strict=False) if value is not None}


def _copies(params: Mapping[str, Any]) -> int:
    """Devices that each do what is written for one: those of a `shard_map`."""
    # Which of the two names it is depends on the version of JAX.
    axes = params.get("newly_manual_axes", params.get("manual_axes", ()))
    return math.prod(params["mesh"].shape[axis] for axis in axes)


def _at_its_precision(equation: Any, products: float, platform: str) -> Operations:
    """A product, which takes one pass of numbers with 16 bits."""
    asked = equation.params["precision"]
    wide = all(np.dtype(x.aval.dtype).itemsize >= 4 for x in equation.invars)
    passes = _PASSES.get(platform, _PASSES["tpu"])
    lowest = passes[None]
    taken = passes.get(asked[0] if isinstance(asked, tuple) else asked, lowest) if wide else 1.0
    return Operations(products, products * taken)


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    """Each output sums over the kernel's positions and its group of input channels."""
    kernel = equation.invars[1].aval.shape
    out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / out_channels


def _loop(params: Mapping[str, Any], given: list[Any], platform: str) -> Operations:
    """`fori_loop` between known numbers: its carry begins with the counter and the end."""
    inner, of_condition = params["body_jaxpr"].jaxpr, params["cond_nconsts"]
    of_body = params["body_nconsts"]
    body = _of(inner, _known(inner, given[of_condition : of_condition + of_body]), platform)
    if not body.products:
        return body
    start, *rest = given[of_condition + of_body :]
    names = [equation.primitive.name for equation in params["cond_jaxpr"].jaxpr.eqns]
    ends = [x.val for x in params["cond_jaxpr"].jaxpr.eqns[0].invars if isinstance(x, core.Literal)] if names else []
    end = ends[0] if ends else rest[0] if rest else None
    if names == ["lt"] and start is not None and end is not None:
        return body.times(max(0, int(end) - int(start)))
    return body._replace(endless=body.endless + 1)


def _follow(equation: Any, given: list[Any], values: dict[Any, Any], platform: str) -> None:
    """What is known of the outputs: enough for the choice between platforms."""
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":
        found = [i for i, names in enumerate(params["platforms"]) if names is None or platform in names]
        values[equation.outvars[0]] = found[0] if found else len(params["platforms"]) - 1
    elif name in ("convert_element_type", "copy") and given[0] is not None:
        values[equation.outvars[0]] = given[0]
    elif name == "clamp" and given[1] is not None:
        values[equation.outvars[0]] = given[1]
