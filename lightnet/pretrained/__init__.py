"""LightNet checkpoints in the layout of flash-linear-attention on Hugging Face: config.json and model.safetensors.

What its model computes, and so what is built here, was read in the repository fla-org/flash-linear-attention: the
configuration and the model in `fla/models/lightnet`, the mixer in `fla/layers/lightnet.py`, the gated norm, the MLP,
the norms and the short convolution in `fla/modules`, the recurrences in `fla/ops/gla` and `fla/ops/lightnet`.

- The gate is a SiLU of low rank behind the norm; no layer has a bias; convolutions have no activation of their own.
- Queries are multiplied by K^-1/2 (K channels per head), which nothing but the epsilon of the norm behind them can see:
  RMSNorm(s o) with epsilon e is RMSNorm(o) with epsilon e / s^2. So our mixer, which does not scale, has K e instead.
- That e is 1e-6, whatever `norm_eps` is: the fused norm, gate and projection are called without it. `norm_eps` is that
  of the other norms.
- The MLP's width is `intermediate_size`, or 2/3 `hidden_ratio` D rounded up to a multiple of 256.

Not known: whether a checkpoint was ever published in this layout (none was at hand, and none was compared), and whether
another version passes `norm_eps` on. Options that would need another model raise. So does the other configuration that
calls itself "lightnet", the first author's, with the names of its options.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from lightnet.backbone import CausalLM
from lightnet.backbone.files import CONFIG, check_floating, read_json, same_names, tensor_files, write_files
from lightnet.backbone.tensors import load_parameters, to_tensors
from lightnet.pretrained.architecture import Architecture, architecture_of, lightnet_lm
from lightnet.pretrained.config import read_config, write_config
from lightnet.pretrained.tensors import entries_of

__all__ = [
    "Architecture",
    "architecture_of",
    "lightnet_lm",
    "load_pretrained",
    "read_config",
    "save_pretrained",
    "write_config",
]


def load_pretrained(path: str | Path, *, dtype: Any = None) -> tuple[CausalLM, dict[str, Any]]:
    """Load a LightNet checkpoint in flash-linear-attention's layout.

    Args:
        path: folder with config.json and model.safetensors, or model.safetensors.index.json and the files it names.
        dtype: to cast the tensors to; None keeps what is stored. The model computes in the precision of its parameters.

    Returns:
        The model and its variables.

    Raises:
        ValueError: there is no such folder or file, the configuration has an option that this package has no model for,
            or a tensor is missing, unknown or of another shape or kind than the configuration says.

    Example:
        >>> import jax, tempfile
        >>> import jax.numpy as jnp
        >>> model = lightnet_lm(Architecture(vocab_size=7, width=8, num_layers=1, num_heads=2, hidden=16, gate_rank=4))
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(folder, model, variables)
        ...     loaded, parameters = load_pretrained(folder)
        >>> loaded.apply(parameters, jnp.array([[1, 2, 3]])).shape
        (1, 3, 7)
    """
    check_floating(dtype)
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"path: got {str(path)!r}, expected a local folder with {CONFIG} (names on a hub are not looked up)"
        )
    architecture = read_config(read_json(folder / CONFIG))
    entries = entries_of(architecture)
    files = tensor_files(folder)
    same_names("tensors", files, [key for entry in entries for key in entry.keys])
    params = load_parameters(entries, files, lambda path: dtype, defaultdict(lambda: None))
    return lightnet_lm(architecture), {"params": unflatten_dict(params)}


def save_pretrained(path: str | Path, model: CausalLM, variables: Mapping[str, Any]) -> None:
    """Save a LightNet in flash-linear-attention's layout: config.json and model.safetensors.

    Args:
        path: folder, made if there is none; the two files in it are replaced.
        model: as `lightnet_lm` makes it. What another model computes could not be said in this layout.
        variables: its parameters, stored in the precision that they have.

    Raises:
        ValueError: a field of the model or a parameter is not what this layout can hold, or the path is a file.
    """
    if Path(path).exists() and not Path(path).is_dir():
        raise ValueError(f"path: got {str(path)!r}, which is a file, expected a folder")
    architecture = architecture_of(model)
    entries = entries_of(architecture)
    if set(variables) != {"params"}:
        raise ValueError(f"variables: got the collections {sorted(variables)}, expected params alone")
    params = flatten_dict(nn.meta.unbox(variables["params"]))
    same_names("parameters", map("/".join, params), ["/".join(entry.path) for entry in entries])
    tensors = to_tensors(entries, params)
    stored = str(tensors["model.embeddings.weight"].dtype)
    write_files(Path(path), tensors, {**write_config(architecture), "torch_dtype": stored})
