"""The models of all memory tasks: one stack around each mixer, of equal size.

Importing this module imports no JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from experiments import mixers
from experiments.training.config import require

if TYPE_CHECKING:
    from lightnet.backbone import CausalLM

TIME_INVARIANT = "mamba-time-invariant+none"
DT_MAX = 0.1  # the largest initial step of all of them
# LightNet's two encodings for all that knows no order by itself, so that only the mixing differs.
MODELS = (
    "s4d+none",
    "s5+none",
    "mamba+none",
    "mamba2+none",
    "lightnet+both",
    "linear+both",
    "softmax+both",
)
_COLOURS = ("#E69F00", "#56B4E9", "#0072B2", "#009E73", "#D55E00", "#999999", "black", "#CC79A7")


def colour(name: str) -> str:
    """The colour of a model in all figures.

    Example:
        >>> colour("softmax+both"), colour("linear+none")
        ('black', '#555555')
    """
    names = (*MODELS, TIME_INVARIANT)
    return _COLOURS[names.index(name)] if name in names else "#555555"


@dataclass(frozen=True)
class ModelConfig:
    """Size of the models: a mixer and a GLU in each block; the GLU has the width that makes the sizes equal."""

    num_layers: int = 2
    """Blocks."""
    width: int = 32
    """Channels."""
    num_heads: int = 2
    """Heads of the mixers that have any."""
    parameters: int = 40_000
    """Parameters of each model, about."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_layers", "width", "num_heads", "parameters"):
            require(f"model.{name}", getattr(self, name), 1)
        if self.width % self.num_heads:
            raise ValueError(f"model.num_heads: got {self.num_heads}, expected a divisor of the width {self.width}")

    def mixer(self, kind: str) -> Callable[..., Any]:
        """Constructor of a mixer."""
        return _mixer(kind)


@dataclass(frozen=True)
class SlowModelConfig(ModelConfig):
    """One block for long sequences that ask at their last token only, with smaller initial steps for longer memory.

    What softmax attention gives at other tokens is not computed: nothing reads it in a model of one block.
    """

    num_layers: int = 1
    """Blocks."""

    dt_min: float = 1e-4
    """Smallest initial step of state space models; elsewhere it is 1e-3."""
    mamba2_states: int = 16
    """States of each of Mamba-2's heads, as many as Mamba's channels have; elsewhere they are 128."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("model.mamba2_states", self.mamba2_states, 1)
        require("model.num_layers", self.num_layers, 1, 1)
        if not 0 < self.dt_min <= DT_MAX:
            raise ValueError(f"model.dt_min: got {self.dt_min}, expected a number above 0 and up to {DT_MAX}")

    def mixer(self, kind: str) -> Callable[..., Any]:
        """Constructor of a mixer."""
        if kind == "softmax":
            from experiments.long_memory.last_query import LastQueryAttention

            return LastQueryAttention
        if kind not in mixers.STATE_SPACES and f"{kind}+none" != TIME_INVARIANT:
            return _mixer(kind)
        states = {"state_size": self.mamba2_states} if kind == "mamba2" else {}
        return _mixer(kind, dt_min=self.dt_min, **states)


def check_models(names: tuple[str, ...]) -> None:
    """Refuse models that do not exist, or one twice.

    Args:
        names: mixer and positions of each, or TIME_INVARIANT.

    Raises:
        ValueError: a name that does not exist or is not for these tasks, none at all, or one twice.

    Example:
        >>> check_models(("mamba+none", "mamba+none"))
        Traceback (most recent call last):
        ...
        ValueError: models: expected at least one, each of them once
    """
    if len(set(names)) < len(names) or not names:
        raise ValueError("models: expected at least one, each of them once")
    for name in names:
        if name == TIME_INVARIANT:
            continue
        _, encoding = mixers.read_model(name, "models", "causal text")
        if encoding == "learned":
            raise ValueError(
                f"models: got {name!r}, but a table of learned positions has one length, and tasks have several"
            )


def network(config: ModelConfig, name: str, vocabulary: int, *, remat: str = "none") -> tuple[CausalLM, int]:
    """A model of about `config.parameters` parameters.

    Args:
        config: its size.
        name: mixer and positions, or TIME_INVARIANT.
        vocabulary: tokens.
        remat: see `lightnet.backbone.Backbone`.

    Returns:
        The model, called with tokens (B, L), and the width of its GLU.

    Example:
        >>> model, hidden = network(ModelConfig(1, 8, 2, 3000), "mamba+none", 16)
        >>> model.vocab_size, hidden
        (16, 59)
    """
    import numpy as np

    from experiments.equal_size import count_parameters, hidden_for

    tokens = np.zeros((1, 4), np.int32)
    build = partial(_built, config, name, vocabulary, remat)
    hidden = hidden_for(lambda width: count_parameters(build(width), tokens), config.parameters)
    return build(hidden), hidden


def _built(config: ModelConfig, name: str, vocabulary: int, remat: str, hidden: int) -> CausalLM:
    from lightnet.models import Size, causal_lm

    size = Size(config.num_layers, config.width, config.num_heads, "ours", hidden=hidden)
    kind, _, encoding = name.partition("+")
    # What is read and what is told need not be alike: the output has a kernel of its own.
    return causal_lm(size, vocabulary, mixer=config.mixer(kind), tied=False, remat=remat, **mixers.positions(encoding))


def _mixer(kind: str, **options: Any) -> Callable[..., Any]:
    if f"{kind}+none" != TIME_INVARIANT:
        return mixers.mixer(kind, causal=True, **options)
    from experiments.long_memory.time_invariant import TimeInvariantMamba

    def without_heads(*, num_heads: int, relative: Any = None, **given: Any) -> TimeInvariantMamba:
        del num_heads, relative
        return TimeInvariantMamba(**options, **given)

    return without_heads
