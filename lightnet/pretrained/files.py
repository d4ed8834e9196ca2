"""The files of a checkpoint: config.json, and tensors in one file or in several with an index."""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
NAMES_SHOWN = 8


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


def open_files(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """The open file that holds each tensor.

    Args:
        folder: with model.safetensors, or the index and the files that it names.
        stack: closes the files.

    Returns:
        Name of the tensor -> file with `get_tensor`.

    Raises:
        ValueError: a file is missing or damaged, or the index is not that of the files.
    """
    from safetensors import SafetensorError, safe_open

    index = None if (folder / WEIGHTS).is_file() else _read_index(folder)
    found: dict[str, Any] = {}
    for name in [WEIGHTS] if index is None else sorted(set(index.values())):
        try:
            file = stack.enter_context(safe_open(folder / name, framework="np"))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{name}: cannot be read: {error}") from None
        keys = file.keys()
        if index is not None:
            same_names(f"tensors in {name}", keys, [key for key, place in index.items() if place == name])
        found |= dict.fromkeys(keys, file)
    return found


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
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")


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
        raise ValueError(f"path: got {str(folder)!r}, expected {WEIGHTS} or {INDEX} in it")
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise ValueError(f"{INDEX}: expected a weight_map of tensors to files")
    for name in index.values():
        if Path(name).name != name:
            raise ValueError(f"{INDEX}: got the file {name!r}, expected a name in the same folder")
    return index
