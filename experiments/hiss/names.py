"""Names of the models, read without importing JAX, so that a config can check them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from experiments.registry import unknown

LEVELS = ("lstm", "s4", "mamba", "transformer")


class Name(NamedTuple):
    """What a name says.

    Attributes:
        high: mixer of the upper level.
        low: mixer of the lower level.
        reads: what a prediction is made from: a "chunk" by a hierarchy; a flat model at a chunk's "end" or "start".
    """

    high: str
    low: str
    reads: Literal["chunk", "end", "start"]


def read_name(name: str, field: str = "models") -> Name:
    """What a name says: "mamba over s4", "flat mamba end", "flat mamba over s4 start".

    Args:
        name: of a model.
        field: of the config, for the message.

    Returns:
        Its levels, and where it is read.

    Raises:
        ValueError: the name is of another form, or it names a level that does not exist.

    Example:
        >>> read_name("flat lstm start")
        Name(high='lstm', low='lstm', reads='start')
        >>> read_name("mamba over s5")
        Traceback (most recent call last):
        ...
        ValueError: models: got 'mamba over s5': unknown level 's5'; nearest: s4
    """
    words = name.split()
    reads: Literal["chunk", "end", "start"] = "chunk"
    if words[:1] == ["flat"] and words[-1] in ("end", "start"):
        reads = "end" if words[-1] == "end" else "start"
        words = words[1:-1]
    if reads != "chunk" and len(words) == 1:
        words = [words[0], "over", words[0]]
    if len(words) != 3 or words[1] != "over":
        raise ValueError(f"{field}: got {name!r}, expected such as 'mamba over s4' or 'flat mamba end'")
    for level in (words[0], words[2]):
        if level not in LEVELS:
            raise ValueError(f"{field}: got {name!r}: {unknown('level', level, LEVELS)}")
    return Name(words[0], words[2], reads)
