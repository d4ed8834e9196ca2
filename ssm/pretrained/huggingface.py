"""config.json of `transformers`, whose configurations are `MambaConfig` and `Mamba2Config`."""

import math
from collections.abc import Mapping
from typing import Any

from lightnet.backbone.files import CONFIG, check_positive, check_sizes, known_options
from ssm.mamba import Mamba
from ssm.mamba2 import Mamba2
from ssm.models import Architecture
from ssm.pretrained.options import GENERAL, mamba2_mixer, step_rank

SHARED_DEFAULTS: Mapping[str, Any] = {
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": True,
    # Other names of the same sizes, which the published files of Mamba have too.
    **dict.fromkeys(("intermediate_size", "d_inner", "d_model", "n_layer")),
}
# What a configuration of Hugging Face may leave out, by its model type.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mamba": {
        **SHARED_DEFAULTS,
        "vocab_size": 50280,
        "hidden_size": 768,
        "num_hidden_layers": 32,
        "state_size": 16,
        "time_step_rank": "auto",
        "tie_word_embeddings": True,
    },
    "mamba2": {
        **SHARED_DEFAULTS,
        "vocab_size": 32768,
        "hidden_size": 4096,
        "num_hidden_layers": 64,
        "state_size": 128,
        "num_heads": 128,
        "head_dim": 64,
        "n_groups": 8,
        "time_step_limit": (0.0, math.inf),
        "tie_word_embeddings": False,
    },
}
SIZES = {"vocab_size", "hidden_size", "num_hidden_layers", "state_size", "expand", "conv_kernel"}
# Options with the one value that this package has a model for.
ONLY: Mapping[str, Any] = {"hidden_act": "silu", "ssm_cfg": {}, "rms_norm": True, "quantization_config": None}
# Options that do not change what the model computes: kernels, chunks, losses and initial values,
WITHOUT_EFFECT = {"chunk_size", "fused_add_norm", "initializer_range", "rescale_prenorm_residual", "use_cache"}
WITHOUT_EFFECT |= {"use_mambapy", "use_associative_scan", "time_step_min", "time_step_max", "time_step_floor"}
WITHOUT_EFFECT |= {"time_step_init_scheme", "time_step_scale"}
# one that `transformers` reads and does not use (the gate is always before the norm), and one that is in the sizes,
WITHOUT_EFFECT |= {"norm_before_gate", "pad_vocab_size_multiple"}
WITHOUT_EFFECT |= {"model_type", *GENERAL}
IGNORED: Mapping[str, set[str]] = {"mamba": set(), "mamba2": {"time_step_rank"}}


def read(options: Mapping[str, Any]) -> Architecture:
    """The architecture that the options describe; see `ssm.pretrained.config.read_config`."""
    kind = str(options.get("model_type"))
    if kind not in DEFAULTS:
        given, known = options.get("model_type"), " and ".join(map(repr, DEFAULTS))
        raise ValueError(f"{CONFIG}: model_type {given!r} is not supported, only {known}")
    if options.get("hidden_act") == "swish":  # its other name
        options = {**options, "hidden_act": "silu"}
    o = known_options(options, DEFAULTS[kind], ONLY, WITHOUT_EFFECT | IGNORED[kind])
    check_sizes(o, SIZES)
    check_positive(o, "layer_norm_epsilon")
    for name, size in (("d_model", o["hidden_size"]), ("n_layer", o["num_hidden_layers"])):
        _check_same(o, name, size)
    for name in ("intermediate_size", "d_inner"):
        _check_same(o, name, o["expand"] * o["hidden_size"])
    return Architecture(
        mixer=_mixer(kind, o),
        vocab_size=o["vocab_size"],
        num_layers=o["num_hidden_layers"],
        norm_eps=o["layer_norm_epsilon"],
        float32_residual=o["residual_in_fp32"],
        tied=o["tie_word_embeddings"],
    )


def write(architecture: Architecture) -> dict[str, Any]:
    """The options that `read` reads as the architecture; see `ssm.pretrained.config.write_config`."""
    a, m = architecture, architecture.mixer
    own: dict[str, Any]
    if isinstance(m, Mamba):
        kind, name, own = "mamba", "MambaForCausalLM", {"time_step_rank": m.rank}
    else:
        kind, name, own = "mamba2", "Mamba2ForCausalLM", {"time_step_limit": list(m.dt_limit)}
        own |= {"num_heads": m.num_heads, "head_dim": m.head_size, "n_groups": m.num_groups}
        if m.norm_eps != a.norm_eps:
            only = f"that of the norms, {a.norm_eps}, only"
            raise ValueError(f"model: mixer.norm_eps is {m.norm_eps}, this layout has {only}")
    return {
        "model_type": kind,
        "architectures": [name],
        **own,
        "vocab_size": a.vocab_size,
        "hidden_size": m.width,
        "num_hidden_layers": a.num_layers,
        "state_size": m.state_size,
        "expand": m.expand,
        "conv_kernel": m.conv_width,
        "use_bias": m.use_bias,
        "use_conv_bias": m.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": a.norm_eps,
        "residual_in_fp32": a.float32_residual,
        "tie_word_embeddings": a.tied,
        # Their defaults are the ids of another vocabulary.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }


def _mixer(kind: str, options: Mapping[str, Any]) -> Mamba | Mamba2:
    o = options
    shared = {
        "width": o["hidden_size"],
        "state_size": o["state_size"],
        "expand": o["expand"],
        "conv_width": o["conv_kernel"],
        "use_bias": o["use_bias"],
        "conv_bias": o["use_conv_bias"],
    }
    if kind == "mamba":
        return Mamba(**shared, dt_rank=step_rank(o, "time_step_rank", o["hidden_size"]))
    check_sizes(o, ("num_heads", "head_dim", "n_groups"))
    heads, size, inner = o["num_heads"], o["head_dim"], o["expand"] * o["hidden_size"]
    if heads * size != inner:
        given = f"num_heads {heads} with head_dim {size}"
        raise ValueError(f"{CONFIG}: {given} is not supported, only expand * hidden_size = {inner} in all")
    return mamba2_mixer(shared, o, ("head_dim", "n_groups", "time_step_limit"), o["layer_norm_epsilon"])


def _check_same(options: Mapping[str, Any], name: str, size: int) -> None:
    if options[name] not in (None, size):
        raise ValueError(f"{CONFIG}: {name} is {options[name]!r}, expected {size} as the other sizes say")
