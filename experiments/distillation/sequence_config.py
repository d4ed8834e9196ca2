"""Settings of the distillation of language models. Importing this module imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from experiments.training.config import require


@dataclass(frozen=True)
class SequenceDistillation:
    """What a student learns from its teacher, and on whose text."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"] = "forward_kl"
    """Of the teacher's and the student's next token, see `kd`."""
    beta: float = 0.5
    """The teacher's part of the mixture, for jsd."""
    alpha: float = 0.1
    """Of the skew divergences."""
    temperature: float = 1.0
    """Divides the logits of both."""
    label_weight: float = 0.0
    """Of the cross-entropy of the text; the divergence has the rest."""
    on_policy_fraction: float = 0.0
    """Part of each batch whose rows the student continues itself; times the rows of a batch a whole number."""
    prompt: int = 16
    """Tokens of the text that such a row begins with."""
    sampling_temperature: float = 1.0
    """Of the student's samples."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("label_weight", "on_policy_fraction", "beta", "alpha"):
            require(name, getattr(self, name), 0, 1)
        require("prompt", self.prompt, 1)
        require("sampling_temperature", self.sampling_temperature, 0)
        if self.temperature <= 0:
            raise ValueError(f"temperature: got {self.temperature}, expected above 0")
        if self.label_weight == 1 and self.on_policy_fraction == 1:
            raise ValueError("label_weight: got 1 where all rows are the student's own, which have no labels")

    def options(self) -> dict[str, Any]:
        """Arguments of the divergence."""
        if self.divergence == "jsd":
            return {"beta": self.beta}
        return {"alpha": self.alpha} if self.divergence.startswith("skew") else {}

    def own_rows(self, batch_size: int) -> int:
        """Rows of a batch that the student continues.

        Example:
            >>> SequenceDistillation(on_policy_fraction=0.25).own_rows(8)
            2
        """
        return round(self.on_policy_fraction * batch_size)

    def check_rows(self, batch_size: int, length: int) -> None:
        """Refuse what does not fit the batches.

        Args:
            batch_size: rows.
            length: tokens of a row.

        Raises:
            ValueError: the fraction of the batch is no number of rows, or a prompt leaves nothing to draw.

        Example:
            >>> SequenceDistillation(on_policy_fraction=0.3).check_rows(8, 128)
            Traceback (most recent call last):
            ValueError: on_policy_fraction: got 0.3 of 8 rows, expected a whole number of rows
        """
        rows = self.on_policy_fraction * batch_size
        if abs(rows - round(rows)) > 1e-6:
            raise ValueError(
                f"on_policy_fraction: got {self.on_policy_fraction} of {batch_size} rows, "
                "expected a whole number of rows"
            )
        if rows and self.prompt >= length:
            raise ValueError(f"prompt: got {self.prompt} tokens, expected fewer than the {length} of a row")
