"""Where each of our parameters is in a checkpoint of Mamba or Mamba-2, and how it lies there.

Both layouts have the same names but for the embedding: `embeddings` on Hugging Face and `embedding` in `mamba_ssm`.
"""

from lightnet.backbone.tensors import Entry
from ssm.mamba import Mamba
from ssm.mamba2 import Mamba2
from ssm.models import Architecture

EMBEDDING = {"huggingface": "backbone.embeddings.weight", "original": "backbone.embedding.weight"}
HEAD = "lm_head.weight"
# Small, and what the recurrence and the norms compute with in float32 at least.
FLOAT32_AT_LEAST = {"A_log", "D", "dt_bias", "scale"}


def entries_of(architecture: Architecture, layout: str) -> list[Entry]:
    """All parameters of a model.

    Args:
        architecture: of the model.
        layout: one of EMBEDDING.

    Returns:
        One entry for each parameter. The head of a tied model is none.

    Example:
        >>> a = Architecture(Mamba(width=8), vocab_size=7, num_layers=1)
        >>> entries_of(a, "original")[0].keys
        ('backbone.embedding.weight',)
    """
    a, width = architecture, architecture.mixer.width
    entries = [
        Entry(("embedding",), (EMBEDDING[layout],), (a.vocab_size, width)),
        Entry(("backbone", "final_norm", "scale"), ("backbone.norm_f.weight",), (width,)),
    ]
    if not a.tied:
        entries.append(Entry(("head",), (HEAD,), (a.vocab_size, width)))
    mixer = _mamba(a.mixer) if isinstance(a.mixer, Mamba) else _mamba2(a.mixer)
    for layer in range(a.num_layers):
        for path, name, *shapes in [("mix_norm/scale", "norm.weight", (width,)), *mixer]:
            keys = (f"backbone.layers.{layer}.{name}",)
            entries.append(Entry(("backbone", f"blocks_{layer}", *path.split("/")), keys, *shapes))
    return entries


def _mamba(m: Mamba) -> list[tuple]:
    """Path, name, shape stored and shape here of the tensors of each mixer."""
    inner, rank, states = m.inner, m.rank, m.state_size
    selected = rank + 2 * states
    biases = [
        ("mix/in_proj/bias", "mixer.in_proj.bias", (2 * inner,), (2, inner)),
        ("mix/out_proj/bias", "mixer.out_proj.bias", (m.width,)),
    ]
    return [
        ("mix/in_proj/kernel", "mixer.in_proj.weight", (2 * inner, m.width), (m.width, 2, inner)),
        ("mix/conv1d/kernel", "mixer.conv1d.weight", (inner, 1, m.conv_width), (m.conv_width, inner)),
        *([("mix/conv1d/bias", "mixer.conv1d.bias", (inner,))] if m.conv_bias else []),
        ("mix/x_proj/kernel", "mixer.x_proj.weight", (selected, inner), (inner, selected)),
        ("mix/dt_proj/kernel", "mixer.dt_proj.weight", (inner, rank), (rank, inner)),
        ("mix/dt_bias", "mixer.dt_proj.bias", (inner,)),
        ("mix/A_log", "mixer.A_log", (inner, states)),
        ("mix/D", "mixer.D", (inner,)),
        ("mix/out_proj/kernel", "mixer.out_proj.weight", (m.width, inner), (inner, m.width)),
        *(biases if m.use_bias else []),
    ]


def _mamba2(m: Mamba2) -> list[tuple]:
    """Path, name, shape stored, shape here and rows of the tensors of each mixer."""
    inner, selected, heads = m.inner, m.num_groups * m.state_size, m.num_heads
    into, convolved = 2 * inner + 2 * selected + heads, inner + 2 * selected
    z_x, b_c, dt = (0, 2 * inner), (2 * inner, into - heads), (into - heads, into)
    x, bc = (0, inner), (inner, convolved)
    projection, convolution = (
        ("mixer.in_proj.weight", (into, m.width)),
        ("mixer.conv1d.weight", (convolved, 1, m.conv_width)),
    )
    projection_bias, convolution_bias = ("mixer.in_proj.bias", (into,)), ("mixer.conv1d.bias", (convolved,))
    conv_biases = [
        ("mix/conv1d/bias", *convolution_bias, None, x),
        ("mix/conv1d_bc/bias", *convolution_bias, None, bc),
    ]
    biases = [
        ("mix/in_proj/bias", *projection_bias, (2, inner), z_x),
        ("mix/bc_proj/bias", *projection_bias, (2, selected), b_c),
        ("mix/dt_proj/bias", *projection_bias, None, dt),
        ("mix/out_proj/bias", "mixer.out_proj.bias", (m.width,)),
    ]
    return [
        ("mix/in_proj/kernel", *projection, (m.width, 2, inner), z_x),
        ("mix/bc_proj/kernel", *projection, (m.width, 2, selected), b_c),
        ("mix/dt_proj/kernel", *projection, (m.width, heads), dt),
        ("mix/conv1d/kernel", *convolution, (m.conv_width, inner), x),
        ("mix/conv1d_bc/kernel", *convolution, (m.conv_width, 2 * selected), bc),
        *(conv_biases if m.conv_bias else []),
        ("mix/dt_bias", "mixer.dt_bias", (heads,)),
        ("mix/A_log", "mixer.A_log", (heads,)),
        ("mix/D", "mixer.D", (heads,)),
        ("mix/norm/scale", "mixer.norm.weight", (inner,)),
        ("mix/out_proj/kernel", "mixer.out_proj.weight", (m.width, inner), (inner, m.width)),
        *(biases if m.use_bias else []),
    ]
