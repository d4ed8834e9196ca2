"""The contract that every mixer keeps; see `lightnet.backbone`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

State = Any


def partitioned(init: Callable, *axes: str | None) -> Callable:
    """An initializer whose parameter carries logical axis names; a training mesh maps them to its axes."""
    return nn.with_logical_partitioning(init, axes)


class Capabilities(NamedTuple):
    """What a mixer can do beyond mixing a whole sequence. Asking for the rest raises."""

    causal: bool
    state: bool
    step: bool
    segments: bool
    mask: bool


class Mixer(nn.Module):
    """Base of every mixer: the contract, and the refusal of what a mixer does not support."""

    @property
    def capabilities(self) -> Capabilities:
        """What this mixer, as configured, can do."""
        raise NotImplementedError

    def init_state(self, batch: int) -> State:
        """The state before the first token."""
        raise NotImplementedError

    def require(self, **asked: bool) -> None:
        """Raise a ValueError that names everything asked for and not supported.

        Args:
            **asked: names of `Capabilities` fields; true where the call needs that capability.
        """
        able = self.capabilities._asdict()
        missing = [name for name, needed in asked.items() if needed and not able[name]]
        if missing:
            supported = ", ".join(name for name, ok in able.items() if ok) or "nothing beyond whole sequences"
            raise ValueError(f"{type(self).__name__}: {', '.join(missing)} not supported; it supports {supported}")
