"""Checkpoints of Mamba and Mamba-2: config.json and safetensors, in Hugging Face's layout or that of `mamba_ssm`.

The layouts were read in `transformers` (`models/mamba`, `models/mamba2`) and in state-spaces/mamba
(`mamba_ssm/models`, `mamba_ssm/modules`). Logits equal those of `transformers` on random parameters, see
`tests/ssm/test_pretrained.py`; no published checkpoint was at hand. Where `transformers` contradicts itself, the
recurrence's equations hold here: it starts Mamba anew when more than one token follows a state, does not keep padding
on the right out of states, and does not clip Mamba-2's steps when it reads token by token.

A vocabulary that was padded has its padding in `vocab_size`, as the published models have it in their logits.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding

from lightnet.backbone import CausalLM
from lightnet.backbone.files import (
    CONFIG,
    check_floating,
    read_json,
    read_tensor,
    same_names,
    tensor_files,
    write_files,
)
from lightnet.backbone.tensors import Entry, Name, load_parameters, to_tensors
from ssm.models import Architecture, architecture_of, mamba_lm
from ssm.pretrained.config import LAYOUTS, read_config, write_config
from ssm.pretrained.hub import folder_of
from ssm.pretrained.tensors import EMBEDDING, FLOAT32_AT_LEAST, HEAD, entries_of

__all__ = ["LAYOUTS", "load_pretrained", "read_config", "save_pretrained", "write_config"]


def load_pretrained(
    path: str | Path,
    *,
    dtype: Any = None,
    shardings: Sharding | Mapping[str, Any] | Callable[[Any], Any] | None = None,
    revision: str | None = None,
) -> tuple[CausalLM, dict[str, Any]]:
    """Load a checkpoint of Mamba or Mamba-2.

    Tensors are read one by one, each straight to the devices that its sharding says.

    Args:
        path: folder with config.json and model.safetensors, or model.safetensors.index.json and the files it names; or,
            if there is no such folder, the id of a repository on Hugging Face's hub, "owner/name".
        dtype: of the parameters and of the computation; None keeps what is stored. A_log, D, dt_bias and the norms'
            scales, what is float32 whatever the rest is, are not cast to anything narrower.
        shardings: where parameters go: one sharding for all, a tree of shardings like the variables, or what makes such
            a tree of the abstract variables, in which each parameter is boxed with the logical names of its axes. None
            is the default device.
        revision: branch, tag or commit of the repository.

    Returns:
        The model and its variables.

    Raises:
        ValueError: there is no such folder, repository or file, the configuration has an option that this package has
            no model for, a tensor is missing, unknown or of another shape or kind than the configuration says, or the
            shardings are not those of the parameters.

    Example:
        >>> import tempfile
        >>> from ssm.mamba import Mamba
        >>> model = mamba_lm(Architecture(Mamba(width=8), vocab_size=7, num_layers=1))
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(folder, model, variables)
        ...     loaded, parameters = load_pretrained(folder)
        >>> jax.jit(loaded.apply)(parameters, jnp.array([[1, 2, 3]])).shape
        (1, 3, 7)
    """
    check_floating(dtype)
    folder = folder_of(path, revision)
    architecture = read_config(read_json(folder / CONFIG))
    files = tensor_files(folder)
    entries = _entries(architecture, files)
    places = _shardings(shardings, architecture, entries)
    params = load_parameters(entries, files, lambda name: _dtype(name, dtype), places)
    stored = params["embedding",].dtype
    # Computing in the precision of the parameters would be float32, that of some of them.
    model = mamba_lm(architecture, dtype=stored if stored.itemsize < 4 else None)
    return model, {"params": unflatten_dict(params)}


def save_pretrained(
    path: str | Path, model: CausalLM, variables: Mapping[str, Any], *, layout: str = "huggingface"
) -> None:
    """Save a model of Mamba or Mamba-2: config.json and model.safetensors.

    Args:
        path: folder, made if there is none; the two files in it are replaced.
        model: as `ssm.models.mamba_lm` makes it. What another model computes could not be said in these layouts.
        variables: its parameters, stored in the precision that they have.
        layout: "huggingface", or "original" for that of `mamba_ssm`.

    Raises:
        ValueError: a field of the model or a parameter is not what the layout can hold, there is no such layout, or the
            path is a file.

    Example:
        >>> import tempfile
        >>> from ssm.mamba import Mamba
        >>> model = mamba_lm(Architecture(Mamba(width=8), vocab_size=7, num_layers=1))
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(folder, model, variables, layout="original")
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['config.json', 'model.safetensors']
    """
    if Path(path).exists() and not Path(path).is_dir():
        raise ValueError(f"path: got {str(path)!r}, which is a file, expected a folder")
    architecture = architecture_of(model)
    options = write_config(architecture, layout)
    entries = entries_of(architecture, layout)
    if set(variables) != {"params"}:
        raise ValueError(f"variables: got the collections {sorted(variables)}, expected params alone")
    params = flatten_dict(nn.meta.unbox(variables["params"]))
    same_names("parameters", map("/".join, params), ["/".join(entry.path) for entry in entries])
    tensors = to_tensors(entries, params)
    if layout == "huggingface":
        options["torch_dtype"] = str(tensors[EMBEDDING[layout]].dtype)
    write_files(Path(path), tensors, options)


def _entries(architecture: Architecture, files: dict[str, Path]) -> list[Entry]:
    """Entries of all tensors, in the layout of the files, from which a head that is the embedding is taken off."""
    layout = "original" if EMBEDDING["original"] in files else "huggingface"
    entries = entries_of(architecture, layout)
    if architecture.tied and HEAD in files:
        _check_tied(files, entries[0])
        del files[HEAD]
    same_names("tensors", files, [key for entry in entries for key in entry.keys])
    return entries


def _dtype(name: Name, dtype: Any) -> Any:
    """What to cast a parameter to."""
    wide = dtype is not None and name[-1] in FLOAT32_AT_LEAST
    return jnp.promote_types(dtype, jnp.float32) if wide else dtype


def _check_tied(files: Mapping[str, Path], embedding: Entry) -> None:
    """Refuse a head that is stored and is not the embedding."""
    (key,), shape = embedding.keys, embedding.stored
    for start in range(0, shape[0], 4096):
        rows = (start, min(start + 4096, shape[0]))
        one, other = (read_tensor(files[name], name, shape, rows) for name in (key, HEAD))
        if one.dtype != other.dtype or not np.array_equal(one, other, equal_nan=True):
            raise ValueError(f"{HEAD}: differs from {key}, but {CONFIG} says that they are tied")


def _shardings(given: Any, architecture: Architecture, entries: list[Entry]) -> dict[Name, Sharding | None]:
    """A sharding for each parameter."""
    if given is None or isinstance(given, Sharding):
        return dict.fromkeys((entry.path for entry in entries), given)
    if callable(given):
        given = given(jax.eval_shape(mamba_lm(architecture).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    if not isinstance(given, Mapping) or set(given) != {"params"}:
        raise ValueError("shardings: expected a sharding, or a tree of them like the variables, with params alone")
    places = flatten_dict(given["params"])
    same_names("shardings", map("/".join, places), ["/".join(entry.path) for entry in entries])
    return places
