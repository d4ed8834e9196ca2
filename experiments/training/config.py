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
    """Devices that split the length of a sequence, which is best a multiple of them."""

    def __post_init__(self) -> None:
        """Check that sizes are positive, with at most one -1."""
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor, "sequence": self.sequence}
        for name, size in sizes.items():
            if size != -1:
                require(f"mesh.{name}", size, 1)
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"mesh: got {sizes}, expected at most one -1")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate schedule."""

    learning_rate: float = 2e-3
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine", "rsqrt", "onecycle"] = "onecycle"
    """linear, cosine: up from 0, then down to 0; rsqrt: up from 0, then down as one over the square root of the step;
    onecycle: cosine from peak / 100 to the peak, down to peak / 5."""
    warmup: float = 0.02
    """Fraction of the steps until the peak; constant has none."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.95
    """Decay of the second moment."""
    weight_decay: float = 1e-3
    """Applied to the group "decay" only: kernels of dense layers and output heads."""
    ssm_rate: float = 1.0
    """Learning rate of the group "ssm" over that of the others."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("optimizer.learning_rate", self.learning_rate, 0)
        require("optimizer.warmup", self.warmup, 0, 1)
        require("optimizer.b1", self.b1, 0, below=1)
        require("optimizer.b2", self.b2, 0, below=1)
        require("optimizer.weight_decay", self.weight_decay, 0)
        require("optimizer.ssm_rate", self.ssm_rate, 0)
        require("optimizer.clip_norm", self.clip_norm, 0)


@dataclass(frozen=True)
class MomentumConfig:
    """Gradient descent with momentum, at a learning rate that falls in steps; all parameters are decayed."""

    learning_rate: float = 0.05
    """At the start."""
    momentum: float = 0.9
    """Decay per update of the sum of gradients that is followed."""
    weight_decay: float = 5e-4
    """Added to the gradient, times the parameter; of every parameter, norms and biases among them."""
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    """Fractions of the steps, ascending, from which on the rate is smaller."""
    factor: float = 0.1
    """By which the rate is multiplied at each of them."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("learning_rate", "weight_decay"):
            require(f"optimizer.{name}", getattr(self, name), 0)
        require("optimizer.momentum", self.momentum, 0, below=1)
        require("optimizer.factor", self.factor, 0, 1)
        if sorted({0.0, *self.milestones, 1.0}) != [0.0, *self.milestones, 1.0]:
            raise ValueError(
                f"optimizer.milestones: got {self.milestones}, expected ascending fractions between 0 and 1"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """Which states are saved, and which of them are kept; the last state of a training always is."""

    every: int = 100
    """Save each so many updates; 0 saves the last state only."""
    keep: int = 2
    """Newest checkpoints to keep; the second is what a damaged first one falls back to."""
    permanent_every: int = 0
    """Keep for good the checkpoints of steps that are multiples of this; 0 keeps none."""
    best: str = ""
    """Evaluation metric, smaller is better, whose best state is saved and kept; empty: none."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("checkpoint.every", self.every, 0)
        require("checkpoint.keep", self.keep, 1)
        require("checkpoint.permanent_every", self.permanent_every, 0)
        if self.permanent_every and (not self.every or self.permanent_every % self.every):
            raise ValueError(
                f"checkpoint.permanent_every: got {self.permanent_every}, expected a multiple of "
                f"checkpoint.every, {self.every}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """One training: how long, how large a batch, in which precision, and when to look, save and stop."""

    steps: int = 200
    """Optimizer updates."""
    batch_size: int = 16
    """Examples per update, over all devices and processes."""
    device_batch: int = 0
    """Most examples that a device takes at once; larger batches are accumulated. 0: any number."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters that the loss sees; they are kept and updated in float32, and the group "ssm" stays in it."""
    remat: Literal["none", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable"] = "none"
    """What the backward pass finds stored of each block; a policy of `jax.checkpoint_policies`, or none for all."""
    ema_decay: float = 0.0
    """Decay per update of the averaged parameters, which are then the ones evaluated; 0: no average."""
    max_skipped: int = 10
    """Updates in a row that may be skipped for a value that is not finite; one more ends the training."""
    eval_every: int = 10
    """Evaluate each so many updates, before the first and after the last; 0 never."""
    stop_metric: str = ""
    """Evaluation metric, smaller is better, whose stagnation ends the training; empty: none."""
    patience: int = 5
    """Evaluations in a row without a better `stop_metric` that end the training."""
    stop_at: float | None = None
    """Value of `stop_metric` that is good enough: reaching it ends the training; None: no value is."""
    workers: int = 0
    """Processes that read data; 0 reads in threads of this one."""
    optimizer: OptimizerConfig | MomentumConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule; a preset has one of the two, and the command line sets the fields of that one."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What is saved and kept."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices along each mesh axis."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("train.steps", self.steps, 1)
        require("train.batch_size", self.batch_size, 1)
        require("train.device_batch", self.device_batch, 0)
        require("train.ema_decay", self.ema_decay, 0, below=1)
        require("train.max_skipped", self.max_skipped, 0)
        require("train.eval_every", self.eval_every, 0)
        require("train.patience", self.patience, 1)
        require("train.workers", self.workers, 0)
        if self.stop_at is not None and not self.stop_metric:
            raise ValueError(
                f"train.stop_at: got {self.stop_at} without train.stop_metric, expected a metric to reach it"
            )
        for name, metric in (("stop_metric", self.stop_metric), ("checkpoint.best", self.checkpoint.best)):
            if metric and not self.eval_every:
                raise ValueError(f"train.{name}: got {metric!r} with eval_every 0, expected evaluations to look at")
