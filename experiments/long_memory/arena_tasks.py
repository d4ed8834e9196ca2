"""The six tasks of the Long Range Arena (arXiv 2011.04006): what is read, how long it is, and what is known of it.

Lengths are those of the released code, but for reviews: its base settings cut them at 1,000, S4's at 4,096, and the
paper's 4,000 is from memory. Accuracies are those that the code's README lists for eleven transformers.

Importing this module imports no JAX.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.sources.listops import SYMBOLS

BYTES = 256


@dataclass(frozen=True)
class ArenaTask:
    """A task.

    Attributes:
        name: of the task.
        length: tokens of a sequence; what is shorter is filled up.
        classes: answers there are, all about as frequent.
        vocabulary: ids of tokens; 0 where tokens are pixels.
        transformer: published accuracy of a plain transformer, %.
        best_transformer: the best of the eleven.
        texts: sequences that are read for one answer.
        dt_min: smallest initial step of S4, S4D and S5, as S4's released settings have it.
    """

    name: str
    length: int
    classes: int
    vocabulary: int
    transformer: float
    best_transformer: float
    texts: int = 1
    dt_min: float = 1e-3

    @property
    def padded(self) -> bool:
        """Whether sequences are of different lengths."""
        return self.vocabulary > 0

    @property
    def chance(self) -> float:
        """Share of the answers that are right without reading.

        Example:
            >>> TASKS["image"].chance
            0.1
        """
        return 1 / self.classes

    def tokens(self, longest: int) -> int:
        """Tokens that a sequence is cut or filled up to.

        Args:
            longest: most tokens of an expression or text; pictures are never cut.

        Returns:
            Their number.

        Example:
            >>> TASKS["text"].tokens(100), TASKS["text"].tokens(9999), TASKS["path_x"].tokens(100)
            (100, 4000, 16384)
        """
        return min(self.length, longest) if self.padded else self.length


LISTOPS, TEXT, RETRIEVAL, IMAGE, PATHFINDER, PATH_X = "listops", "text", "retrieval", "image", "pathfinder", "path_x"
# What the README says FAIL of on Path-X is counted as chance.
TASKS = {
    task.name: task
    for task in (
        ArenaTask(LISTOPS, 2000, 10, len(SYMBOLS) - 1, 36.37, 37.27),
        ArenaTask(TEXT, 4000, 2, BYTES, 64.27, 65.90),
        ArenaTask(RETRIEVAL, 4000, 2, BYTES, 57.46, 59.59, texts=2),
        ArenaTask(IMAGE, 32 * 32, 10, 0, 42.44, 44.24),
        ArenaTask(PATHFINDER, 32 * 32, 2, 0, 71.40, 77.05),
        ArenaTask(PATH_X, 128 * 128, 2, 0, 50.0, 50.0, dt_min=1e-4),
    )
}
