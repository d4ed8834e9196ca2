"""Settings of the training loop, as frozen dataclasses that the command line turns into flags."""

import math
from dataclasses import dataclass, field
from typing import Literal


def require(name: str, value: float, low: float, high: float = math.inf, *, below: float = math.inf) -> None:
    """Raise a ValueError that names the field unless it is finite, low <= value <= high and value < below.

    Args:
        name: of the field, as on the command line.
        value: what was given.
        low: smallest accepted value.
        high: largest accepted value.
        below: first value that is too large.

    Raises:
        ValueError: in one line, with what was given and what is expected.

    Example:
        >>> require("steps", -1, 0)
        Traceback (most recent call last):
        ValueError: steps: got -1, expected at least 0
    """
    if math.isfinite(value) and low <= value <= high and value < below:
        return
    expected = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
    if below < math.inf:
        expected = f"at least {low:g} and below {below:g}"
    raise ValueError(f"{name}: got {value}, expected {expected}")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; at most one axis is -1 and takes what is left."""

    data: int = -1
    """Copies of the model, each with a part of the batch."""
    fsdp: int = 1
    """Devices that share one copy's parameters and also split the batch."""
    tensor: int = 1
    """Devices that split heads, hidden units and vocabulary."""
    sequence: int = 1
    """Devices that split the length of a sequence; only 1 so far: no recurrence here can be split yet."""

    def __post_init__(self) -> None:
        """Check that sizes are positive, with at most one -1."""
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor, "sequence": self.sequence}
        for name, size in sizes.items():
            if size != -1:
                require(f"mesh.{name}", size, 1, 1 if name == "sequence" else math.inf)
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"mesh: got {sizes}, expected at most one -1")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate schedule."""

    learning_rate: float = 2e-3
    """Peak learning rate."""
    schedule: Literal["constant", "onecycle"] = "onecycle"
    """onecycle: cosine from peak / 100 up to the peak and down to peak / 5."""
    warmup: float = 0.02
    """Fraction of the steps until the peak (onecycle)."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.95
    """Decay of the second moment."""
    weight_decay: float = 1e-3
    """Applied to the kernels of dense layers only."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("optimizer.learning_rate", self.learning_rate, 0)
        require("optimizer.warmup", self.warmup, 0, 1)
        require("optimizer.b1", self.b1, 0, below=1)
        require("optimizer.b2", self.b2, 0, below=1)
        require("optimizer.weight_decay", self.weight_decay, 0)
        require("optimizer.clip_norm", self.clip_norm, 0)


@dataclass(frozen=True)
class TrainConfig:
    """One training: how long, how large a batch, and when to look, save and stop."""

    steps: int = 200
    """Optimizer updates."""
    batch_size: int = 16
    """Examples per update, over all devices."""
    eval_every: int = 10
    """Evaluate each so many updates, before the first and after the last; 0 never."""
    save_every: int = 100
    """Save a checkpoint each so many updates; 0 saves the last state only."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices along each mesh axis."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("train.steps", self.steps, 1)
        require("train.batch_size", self.batch_size, 1)
        require("train.eval_every", self.eval_every, 0)
        require("train.save_every", self.save_every, 0)
