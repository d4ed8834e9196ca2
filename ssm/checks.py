"""What every mixer of this package checks of its arguments."""

from typing import Any

import jax
import jax.numpy as jnp

from lightnet.backbone import Mixer
from lightnet.scan.checks import check_array, check_per_token, got
from lightnet.typing import Array


def check_sequence(
    mixer: Mixer, x: Array, state: Any = None, segment_ids: Array | None = None, mask: Array | None = None
) -> None:
    """Refuse what is no sequence for a mixer, by the name of the argument.

    Args:
        mixer: with a `width` D.
        x: expected to be float (B, L, D), without an axis of size 0.
        state: expected to be like `mixer.init_state(B)`, in any precision; or None.
        segment_ids: expected to be integer (B, L), or None.
        mask: expected to be boolean (B, L), or None.

    Raises:
        ValueError: with what was given and what is expected.

    Example:
        >>> from ssm import S4
        >>> check_sequence(S4(width=4), jnp.zeros((2, 3, 1)))
        Traceback (most recent call last):
        ValueError: x: got float32[2, 3, 1], expected a float array (B, L, D) = (2, 3, 4)
    """
    sizes = _checked_sizes(mixer, x, "B L D")
    check_per_token(sizes, segment_ids, mask)
    if state is not None:
        _check_state(mixer, state, sizes["B"])


def check_token(mixer: Mixer, x: Array, state: Any) -> None:
    """Refuse what is no step for a mixer, by the name of the argument.

    Args:
        mixer: with a `width` D.
        x: expected to be float (B, D), without an axis of size 0.
        state: expected to be like `mixer.init_state(B)`, in any precision.

    Raises:
        ValueError: with what was given and what is expected.

    Example:
        >>> from ssm import S4
        >>> check_token(S4(width=4, state_size=6), jnp.zeros((2, 4)), jnp.zeros((1, 4, 3), jnp.complex64))
        Traceback (most recent call last):
        ValueError: state: got complex64[1, 4, 3], expected complex64[2, 4, 3]
    """
    _check_state(mixer, state, _checked_sizes(mixer, x, "B D")["B"])


def _checked_sizes(mixer: Any, x: Array, axes: str) -> dict[str, int]:
    sizes = {"D": mixer.width}
    check_array("x", x, axes, sizes)
    return sizes


def _check_state(mixer: Mixer, state: Any, batch: int) -> None:
    """Refuse a state of other fields, shapes or kinds than the empty one."""
    empty = jax.eval_shape(lambda: mixer.init_state(batch))
    expected, given = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (empty, state)
    )
    if given.keys() != expected.keys():
        raise ValueError(f"state: got {got(state)}, expected what init_state({batch}) gives")
    for path, leaf in expected.items():
        kind = jnp.complexfloating if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else jnp.floating
        if getattr(given[path], "shape", None) != leaf.shape or not jnp.issubdtype(given[path].dtype, kind):
            raise ValueError(f"state{path}: got {got(given[path])}, expected {got(leaf)}")
