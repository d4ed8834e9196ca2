"""Where each of our parameters is in a checkpoint, and how it lies there."""

from lightnet.backbone.tensors import Entry
from lightnet.pretrained.architecture import Architecture


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
