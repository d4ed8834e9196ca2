"""The files of a checkpoint: config.json, and tensors in one file or in several with an index."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
NAMES_SHOWN = 8
# A pickle can run any program when it is read, so it is left to the user to trust one.
CONVERSION = (
    "pytorch_model.bin is a pickle and never read; to convert a trusted one, in its folder: "
    "python -c \"import torch; from safetensors.torch import save_file; tensors = torch.load('pytorch_model.bin', "
    "weights_only=True); save_file({k: v.contiguous().clone() for k, v in tensors.items()}, 'model.safetensors')\""
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: got {type(content).__name__}, expected an object")
    return content


def known_options(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    only: Mapping[str, Any],
    without_effect: Collection[str],
    place: str = CONFIG,
) -> dict[str, Any]:
    """The options that say what a model computes, given or by default.

    Args:
        given: of a configuration.
        defaults: values of the options that may be given.
        only: options with the one value that there is a model for.
        without_effect: options that do not change what the model computes.
        place: what the options are of, for messages.

    Returns:
        A value for each name of `defaults`.

    Raises:
        ValueError: an option is unknown, there is no model for its value, or it should be true or false and is not.

    Example:
        >>> known_options({"width": 3, "seed": 1}, {"width": 2, "depth": 5}, {"bias": False}, {"seed"})
        {'width': 3, 'depth': 5}
    """
    unknown = sorted(set(given) - set(defaults) - set(only) - set(without_effect))
    if unknown:
        raise ValueError(f"{place}: unknown options {', '.join(unknown)}")
    for name, expected in only.items():
        if (value := given.get(name, expected)) != expected:
            raise ValueError(f"{place}: {name} {value!r} is not supported, only {expected!r}")
    options = {name: given.get(name, default) for name, default in defaults.items()}
    for name, default in defaults.items():
        if isinstance(default, bool) and not isinstance(options[name], bool):
            raise ValueError(f"{place}: {name} is {options[name]!r}, expected true or false")
    return options


def check_sizes(options: Mapping[str, Any], names: Iterable[str], place: str = CONFIG) -> None:
    """Refuse options that are no integers from 1.

    Raises:
        ValueError: it names the first of them.
    """
    for name in sorted(names):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{place}: {name} is {value!r}, expected a number from 1")


def check_positive(options: Mapping[str, Any], name: str, place: str = CONFIG) -> None:
    """Refuse an option that is no positive finite number.

    Raises:
        ValueError: it is none.
    """
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{place}: {name} is {value!r}, expected a positive number")


def check_floating(dtype: Any) -> None:
    """Refuse a precision that weights cannot have.

    Args:
        dtype: what to cast to; None casts to nothing.

    Raises:
        ValueError: it is no kind of floating point numbers.

    Example:
        >>> check_floating("int8")
        Traceback (most recent call last):
        ...
        ValueError: dtype: got 'int8', expected a kind of floating point numbers or None
    """
    try:
        floating = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"dtype: got {dtype!r}, expected a kind of floating point numbers or None")


def tensor_files(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor.

    Args:
        folder: with model.safetensors, or the index and the files that it names.

    Returns:
        Name of the tensor -> file.

    Raises:
        ValueError: a file is missing or damaged, or the index is not that of the files.
    """
    from safetensors import SafetensorError, safe_open

    index = None if (folder / WEIGHTS).is_file() else _read_index(folder)
    found: dict[str, Path] = {}
    for name in [WEIGHTS] if index is None else sorted(set(index.values())):
        try:
            with safe_open(folder / name, framework="np") as file:
                keys = list(file.keys())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{name}: cannot be read: {error}") from None
        if index is not None:
            same_names(f"tensors in {name}", keys, [key for key, place in index.items() if place == name])
        found |= dict.fromkeys(keys, folder / name)
    return found


def read_tensor(file: Path, key: str, shape: tuple[int, ...], rows: tuple[int, int] | None = None) -> np.ndarray:
    """A tensor, or some of its rows, in memory of its own.

    Args:
        file: see `tensor_files`.
        key: name of the tensor.
        shape: that the whole tensor should have.
        rows: the first along axis 0 and the one behind the last; None for all.

    Returns:
        The array.

    Raises:
        ValueError: the tensor has another shape, or does not hold floating point numbers.
    """
    from safetensors import safe_open

    # The file is mapped while it is open, and what was read of it counts as memory of this process.
    with safe_open(file, framework="np") as opened:
        view = opened.get_slice(key)
        stored = tuple(view.get_shape())
        tensor = opened.get_tensor(key) if rows is None or stored != shape else view[slice(*rows)]
    if stored != shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
        got = f"{tensor.dtype}{list(stored)}"
        raise ValueError(f"{key}: got {got}, expected floating point numbers {list(shape)}")
    return tensor


def write_files(folder: Path, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> None:
    """Write model.safetensors and config.json, in place of what there is.

    Args:
        folder: made if there is none.
        tensors: name -> array, whose rows lie one behind the other.
        options: the content of config.json.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # Hugging Face reads no file that does not say which framework its tensors are for.
    new_weights, new_config = (folder / f"{name}.new" for name in (WEIGHTS, CONFIG))
    save_file(dict(tensors), new_weights, metadata={"format": "pt"})
    new_config.write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    # Both are whole before one is replaced.
    new_weights.replace(folder / WEIGHTS)
    new_config.replace(folder / CONFIG)


def same_names(what: str, given: Iterable[str], expected: Iterable[str]) -> None:
    """Refuse missing and unknown names.

    Raises:
        ValueError: the names are not the same; it names the first of them.
    """
    given, expected = set(given), set(expected)
    for kind, names in (("missing", expected - given), ("unknown", given - expected)):
        if names:
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            raise ValueError(f"{kind} {what}: {', '.join(sorted(names)[:NAMES_SHOWN])}{more}")


def _read_index(folder: Path) -> dict[str, str]:
    if not (folder / INDEX).is_file():
        raise ValueError(f"path: got {str(folder)!r}, expected {WEIGHTS} or {INDEX} in it ({CONVERSION})")
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise ValueError(f"{INDEX}: expected a weight_map of tensors to files")
    for name in index.values():
        if Path(name).name != name:
            raise ValueError(f"{INDEX}: got the file {name!r}, expected a name in the same folder")
    return index
