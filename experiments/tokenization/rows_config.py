"""How much text models over tokens are given. Importing this module imports no JAX."""

from dataclasses import dataclass

from experiments.training.config import require


@dataclass(frozen=True)
class RowsConfig:
    """How much text there is of each kind."""

    tokenizer_characters: int = 100_000
    """characters that BPE is trained on, once for all seeds"""
    pool: int = 6400
    """rows that batches are drawn from"""
    evaluation: int = 64
    """fresh rows that each seed evaluates"""
    reference: int = 1000
    """rows that the n-gram references are fitted on, and as many that they are scored on"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("rows.tokenizer_characters", self.tokenizer_characters, 20)
        for name in ("pool", "evaluation", "reference"):
            require(f"rows.{name}", getattr(self, name), 1)
