"""Where each of our parameters is in a checkpoint, and how it lies there."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lightnet.pretrained.architecture import Architecture
from lightnet.typing import Array


class Entry(NamedTuple):
    """One parameter and its tensors.

    Attributes:
        path: of the parameter.
        keys: names of the tensors; of several, one is behind the other along axis 1 of the parameter.
        stored: shape of each tensor.
        shape: of what each becomes: its axes are reversed, as kernels are the other way round, and then split.
            None leaves it as it is.

    Example:
        >>> entry = Entry(("kernel",), ("weight",), stored=(2, 3), shape=(3, 2))
        >>> entry.join([np.arange(6).reshape(2, 3)]).tolist()
        [[0, 3], [1, 4], [2, 5]]
    """

    path: tuple[str, ...]
    keys: tuple[str, ...]
    stored: tuple[int, ...]
    shape: tuple[int, ...] | None = None

    def join(self, tensors: list[np.ndarray]) -> np.ndarray:
        """The parameter."""
        if self.shape is not None:
            tensors = [tensor.T.reshape(self.shape) for tensor in tensors]
        return np.stack(tensors, axis=1) if len(tensors) > 1 else tensors[0]

    def split(self, parameter: Array | np.ndarray) -> dict[str, np.ndarray]:
        """The tensors.

        Raises:
            ValueError: the parameter has another shape than it should.
        """
        part = self.stored if self.shape is None else self.shape
        expected = (part[0], len(self.keys), *part[1:]) if len(self.keys) > 1 else part
        if parameter.shape != expected:
            raise ValueError(f"{'/'.join(self.path)}: got shape {list(parameter.shape)}, expected {list(expected)}")
        whole = np.asarray(parameter)
        parts = list(np.moveaxis(whole, 1, 0)) if len(self.keys) > 1 else [whole]
        if self.shape is not None:
            parts = [part.reshape(self.stored[::-1]).T for part in parts]
        # safetensors writes the memory of an array as it lies there.
        return {key: np.ascontiguousarray(part) for key, part in zip(self.keys, parts, strict=True)}

    def load(self, files: Mapping[str, Any], dtype: Any) -> Array:
        """The parameter, from open files.

        Args:
            files: see `lightnet.pretrained.files.open_files`.
            dtype: to cast to; None keeps what is stored.

        Raises:
            ValueError: a tensor has another shape than it should, or does not hold floating point numbers, or numbers
                that JAX is not set to keep.
        """
        tensors = [files[key].get_tensor(key) for key in self.keys]
        for key, tensor in zip(self.keys, tensors, strict=True):
            if tensor.shape != self.stored or not jnp.issubdtype(tensor.dtype, jnp.floating):
                got = f"{tensor.dtype}{list(tensor.shape)}"
                raise ValueError(f"{key}: got {got}, expected floating point numbers {list(self.stored)}")
        joined = self.join(tensors)
        parameter = jnp.asarray(joined, dtype)
        if dtype is None and parameter.dtype != joined.dtype:
            raise ValueError(f"{self.keys[0]}: got {joined.dtype}, which needs jax_enable_x64, or a dtype to cast to")
        return parameter


def entries_of(architecture: Architecture) -> list[Entry]:
    """All parameters of a model.

    Args:
        architecture: of the model.

    Returns:
        One entry for each parameter.

    Example:
        >>> a = Architecture(vocab_size=7, width=8, num_layers=1, num_heads=2, hidden=16, gate_rank=4)
        >>> entries_of(a)[0].keys
        ('model.embeddings.weight',)
    """
    a = architecture
    whole = (a.vocab_size, a.width)
    entries = [
        Entry(("embedding",), ("model.embeddings.weight",), whole),
        Entry(("backbone", "final_norm", "scale"), ("model.norm.weight",), (a.width,)),
    ]
    if not a.tied:
        entries.append(Entry(("head",), ("lm_head.weight",), whole))
    for layer in range(a.num_layers):
        for path, names, *shapes in _block(a):
            keys = tuple(f"model.layers.{layer}.{name}.weight" for name in names.split())
            entries.append(Entry(("backbone", f"blocks_{layer}", *path.split("/")), keys, *shapes))
    return entries


def _block(a: Architecture) -> list[tuple]:
    """Path, names, shape stored and shape here of the tensors of each block."""
    width, heads = a.width, (a.num_heads, a.head_size)

    def dense(path: str, name: str, size_in: int, size_out: int) -> tuple:
        return f"{path}/kernel", name, (size_out, size_in), (size_in, size_out)

    projections = " ".join(f"attn.{part}_proj" for part in "qkv")
    convolutions = " ".join(f"attn.{part}_conv1d" for part in "qkv")
    conv = ("mix/conv", convolutions, (width, 1, a.conv_width), (a.conv_width, *heads))
    return [
        ("mix_norm/scale", "attn_norm", (width,)),
        ("mix/qkv/kernel", projections, (width, width), (width, *heads)),
        *([conv] if a.conv_width else []),
        dense("mix/output/gate_down", "attn.g_proj.0", width, a.gate_rank),
        dense("mix/output/gate_up", "attn.g_proj.1", a.gate_rank, width),
        *([("mix/output/norm_over_heads/scale", "attn.g_norm", (width,))] if a.gated_norm_scale else []),
        ("mix/output/out/kernel", "attn.o_proj", (width, width), (*heads, width)),
        ("mlp_norm/scale", "mlp_norm", (width,)),
        dense("feed_forward/gate", "mlp.gate_proj", width, a.hidden),
        dense("feed_forward/up", "mlp.up_proj", width, a.hidden),
        dense("feed_forward/down", "mlp.down_proj", a.hidden, width),
    ]
