"""config.json, between the names of flash-linear-attention and ours."""

from collections.abc import Mapping
from typing import Any

from lightnet.backbone.files import CONFIG, check_positive, check_sizes, known_options
from lightnet.pretrained.architecture import Architecture

# What a configuration may leave out.
DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_heads": None,
    "expand_ratio": 128,
    "use_short_conv": False,
    "conv_size": 4,
    "hidden_ratio": 4,
    "intermediate_size": None,
    "gate_low_rank_dim": 128,
    "elementwise_affine": True,
    "norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
SIZES = {"hidden_size", "num_hidden_layers", "conv_size", "gate_low_rank_dim", "vocab_size"}
SIZES_OR_NULL = {"num_heads", "expand_ratio", "hidden_ratio", "intermediate_size"}
# Options with the one value that this package has a model for.
ONLY: Mapping[str, Any] = {
    "model_type": "lightnet",
    "hidden_act": "swish",
    "attn": None,
    "attnres_block_size": None,
    "quantization_config": None,
}
# Options that do not change what the model computes: kernels, losses and initial values,
WITHOUT_EFFECT = {"attn_mode", "fuse_cross_entropy", "fuse_linear_cross_entropy", "fuse_norm", "fuse_swiglu"}
WITHOUT_EFFECT |= {"initializer_range", "max_position_embeddings", "use_cache", "use_l2warp"}
# and what Hugging Face adds to each configuration.
WITHOUT_EFFECT |= {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}
WITHOUT_EFFECT |= {"bos_token_id", "eos_token_id", "pad_token_id"}


def read_config(options: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json describes.

    Args:
        options: the file's content.

    Returns:
        The architecture.

    Raises:
        ValueError: an option is unknown, or this package has no model for its value.

    Example:
        >>> read_config({"model_type": "lightnet", "hidden_size": 256, "vocab_size": 50}).hidden
        768
    """
    if "model_type" not in options:  # it could be of any model
        options = {**options, "model_type": None}
    o = known_options(options, DEFAULTS, ONLY, WITHOUT_EFFECT)
    check_sizes(o, SIZES | {name for name in SIZES_OR_NULL if o[name] is not None})
    check_positive(o, "norm_eps")
    return Architecture(
        vocab_size=o["vocab_size"],
        width=o["hidden_size"],
        num_layers=o["num_hidden_layers"],
        num_heads=_num_heads(o),
        hidden=o["intermediate_size"] or _mlp_width(o),
        gate_rank=o["gate_low_rank_dim"],
        conv_width=o["conv_size"] if o["use_short_conv"] else 0,
        gated_norm_scale=o["elementwise_affine"],
        norm_eps=o["norm_eps"],
        tied=o["tie_word_embeddings"],
    )


def write_config(architecture: Architecture) -> dict[str, Any]:
    """The content of a config.json that `read_config` reads as the architecture.

    Example:
        >>> a = Architecture(vocab_size=7, width=8, num_layers=1, num_heads=2, hidden=16, gate_rank=4, conv_width=3)
        >>> read_config(write_config(a)) == a
        True
    """
    a = architecture
    short_conv = {"use_short_conv": True, "conv_size": a.conv_width} if a.conv_width else {"use_short_conv": False}
    return {
        "architectures": ["LightNetForCausalLM"],
        "model_type": "lightnet",
        "vocab_size": a.vocab_size,
        "hidden_size": a.width,
        "num_hidden_layers": a.num_layers,
        "num_heads": a.num_heads,
        "expand_ratio": a.head_size,
        **short_conv,
        "intermediate_size": a.hidden,
        "hidden_act": "swish",
        "gate_low_rank_dim": a.gate_rank,
        "elementwise_affine": a.gated_norm_scale,
        "norm_eps": a.norm_eps,
        "tie_word_embeddings": a.tied,
        # Their defaults are the ids of another vocabulary.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }


def _mlp_width(options: Mapping[str, Any]) -> int:
    ratio = DEFAULTS["hidden_ratio"] if options["hidden_ratio"] is None else options["hidden_ratio"]
    return -(-int(options["hidden_size"] * ratio * 2 / 3) // 256) * 256


def _num_heads(options: Mapping[str, Any]) -> int:
    width, heads, size = (options[name] for name in ("hidden_size", "num_heads", "expand_ratio"))
    if heads is None and size is None:
        raise ValueError(f"{CONFIG}: got neither num_heads nor expand_ratio")
    heads = width // size if heads is None else heads
    size = width // heads if size is None else size
    if heads * size != width:
        raise ValueError(
            f"{CONFIG}: num_heads {heads} with expand_ratio {size} is not supported, only hidden_size {width} in all"
        )
    return heads
