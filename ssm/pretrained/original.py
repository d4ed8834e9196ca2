"""config.json of `mamba_ssm`."""

import math
from collections.abc import Mapping
from typing import Any

from lightnet.backbone.files import CONFIG, check_sizes, known_options
from ssm.mamba import Mamba
from ssm.mamba2 import Mamba2
from ssm.models import Architecture
from ssm.pretrained.options import GENERAL, mamba2_mixer, step_rank

EPS = 1e-5  # of all norms; a configuration cannot say another
DEFAULTS: Mapping[str, Any] = {
    "d_model": 2560,
    "n_layer": 64,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "residual_in_fp32": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}
ONLY: Mapping[str, Any] = {"d_intermediate": 0, "attn_layer_idx": [], "rms_norm": True}
WITHOUT_EFFECT = {"attn_cfg", "fused_add_norm", *GENERAL}
# The options in `ssm_cfg`, by its `layer`.
LAYER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "Mamba1": {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "bias": False, "conv_bias": True},
    "Mamba2": {
        "d_state": 128,
        "d_conv": 4,
        "expand": 2,
        "headdim": 64,
        "ngroups": 1,
        "dt_limit": (0.0, math.inf),
        "bias": False,
        "conv_bias": True,
    },
}
LAYER_ONLY: Mapping[str, Mapping[str, Any]] = {
    "Mamba1": {},
    "Mamba2": {"d_ssm": None, "D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False, "process_group": None},
}
LAYER_WITHOUT_EFFECT = {
    "Mamba1": {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"},
    "Mamba2": {"dt_min", "dt_max", "dt_init_floor", "conv_init", "A_init_range", "chunk_size", "use_mem_eff_path"}
    | {"sequence_parallel"},
}


def read(options: Mapping[str, Any]) -> Architecture:
    """The architecture that the options describe; see `ssm.pretrained.config.read_config`."""
    o = known_options(options, DEFAULTS, ONLY, WITHOUT_EFFECT)
    check_sizes(o, ("d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple"))
    multiple = o["pad_vocab_size_multiple"]
    return Architecture(
        mixer=_mixer(o["d_model"], o["ssm_cfg"]),
        vocab_size=-(-o["vocab_size"] // multiple) * multiple,
        num_layers=o["n_layer"],
        norm_eps=EPS,
        float32_residual=o["residual_in_fp32"],
        tied=o["tie_embeddings"],
    )


def write(architecture: Architecture) -> dict[str, Any]:
    """The options that `read` reads as the architecture; see `ssm.pretrained.config.write_config`."""
    a, m = architecture, architecture.mixer
    for eps in (a.norm_eps, m.norm_eps if isinstance(m, Mamba2) else EPS):
        if eps != EPS:
            raise ValueError(f"model: a norm's epsilon is {eps}, the original layout has {EPS} only")
    own: dict[str, Any] = {"layer": "Mamba1", "dt_rank": m.rank} if isinstance(m, Mamba) else {"layer": "Mamba2"}
    if isinstance(m, Mamba2):
        own |= {"headdim": m.head_size, "ngroups": m.num_groups, "dt_limit": list(m.dt_limit)}
    own |= {"d_state": m.state_size, "d_conv": m.conv_width, "expand": m.expand}
    return {
        "d_model": m.width,
        "d_intermediate": 0,
        "n_layer": a.num_layers,
        "vocab_size": a.vocab_size,
        "ssm_cfg": {**own, "bias": m.use_bias, "conv_bias": m.conv_bias},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": a.float32_residual,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": a.tied,
    }


def _mixer(width: int, options: Any) -> Mamba | Mamba2:
    place = f"{CONFIG}: ssm_cfg"
    if not isinstance(options, Mapping):
        raise ValueError(f"{place} is {options!r}, expected an object")
    kind = options.get("layer", "Mamba1")
    if kind not in LAYER_DEFAULTS:
        raise ValueError(f"{place}: layer {kind!r} is not supported, only {' and '.join(map(repr, LAYER_DEFAULTS))}")
    ignored = {"layer", *LAYER_WITHOUT_EFFECT[kind]}
    o = known_options(options, LAYER_DEFAULTS[kind], LAYER_ONLY[kind], ignored, place)
    check_sizes(o, ("d_state", "d_conv", "expand"), place)
    shared = {
        "width": width,
        "state_size": o["d_state"],
        "expand": o["expand"],
        "conv_width": o["d_conv"],
        "use_bias": o["bias"],
        "conv_bias": o["conv_bias"],
    }
    if kind == "Mamba1":
        return Mamba(**shared, dt_rank=step_rank(o, "dt_rank", width, place))
    check_sizes(o, ("headdim", "ngroups"), place)
    return mamba2_mixer(shared, o, ("headdim", "ngroups", "dt_limit"), EPS, place)
