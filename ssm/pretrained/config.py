"""config.json, in either layout."""

from collections.abc import Mapping
from typing import Any

from ssm.models import Architecture
from ssm.pretrained import huggingface, original

LAYOUTS = {"huggingface": huggingface, "original": original}


def read_config(options: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json describes, in either layout.

    Args:
        options: the file's content.

    Returns:
        The architecture.

    Raises:
        ValueError: an option is unknown, or this package has no model for its value.

    Example:
        >>> read_config({"model_type": "mamba", "num_hidden_layers": 24}).mixer.inner
        1536
        >>> read_config({"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}}).vocab_size
        50280
    """
    if "model_type" not in options and "d_model" in options:
        return original.read(options)
    return huggingface.read(options)


def write_config(architecture: Architecture, layout: str) -> dict[str, Any]:
    """The content of a config.json that `read_config` reads as the architecture.

    Args:
        architecture: of the model.
        layout: one of LAYOUTS.

    Returns:
        The options.

    Raises:
        ValueError: the layout is unknown, or cannot say something of this architecture.

    Example:
        >>> from ssm.mamba import Mamba
        >>> a = Architecture(Mamba(width=8, dt_rank=3), vocab_size=7, num_layers=1)
        >>> [read_config(write_config(a, layout)) == a for layout in LAYOUTS]
        [True, True]
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: got {layout!r}, expected {' or '.join(LAYOUTS)}")
    return LAYOUTS[layout].write(architecture)
