"""What the configurations of both layouts have in common."""

import math
from collections.abc import Mapping
from typing import Any

from lightnet.backbone.files import CONFIG, check_sizes
from ssm.mamba2 import Mamba2

# What Hugging Face adds to each configuration.
GENERAL = {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}
GENERAL |= {"bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"}
# And what it added to all of them in earlier versions: forms of outputs, labels, and settings of generation.
GENERAL |= {"return_dict", "output_hidden_states", "output_attentions", "torchscript", "use_bfloat16"}
GENERAL |= {"id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params", "tokenizer_class"}
GENERAL |= {"prefix", "is_decoder", "is_encoder_decoder", "tie_encoder_decoder", "_attn_implementation_autoset"}


def mamba2_mixer(
    shared: Mapping[str, Any],
    options: Mapping[str, Any],
    names: tuple[str, str, str],
    norm_eps: float,
    place: str = CONFIG,
) -> Mamba2:
    """Mamba-2's mixer, whose sizes must divide each other.

    Args:
        shared: its fields that Mamba has too.
        options: of a configuration.
        names: of the head's size, of the number of groups and of the interval of the step.
        norm_eps: of the norm.
        place: what the options are of, for messages.

    Returns:
        The mixer.

    Raises:
        ValueError: the sizes do not divide the channels, or the interval is none.
    """
    inner, (size, groups) = shared["expand"] * shared["width"], (options[name] for name in names[:2])
    if inner % size or inner // size % groups:
        given = f"{names[0]} {size} and {names[1]} {groups}"
        raise ValueError(f"{place}: {given} do not divide {inner} channels")
    limit = _interval(options, names[2], place)
    return Mamba2(**shared, head_size=size, num_groups=groups, dt_limit=limit, norm_eps=norm_eps)


def step_rank(options: Mapping[str, Any], name: str, width: int, place: str = CONFIG) -> int:
    """Rank of Mamba's step: as given, or D / 16 rounded up.

    Raises:
        ValueError: it is neither "auto" nor a number from 1.
    """
    if options[name] == "auto":
        return -(-width // 16)
    check_sizes(options, (name,), place)
    return options[name]


def _interval(options: Mapping[str, Any], name: str, place: str) -> tuple[float, float]:
    """Bounds of the step; newer files write what JSON has no number for as an object."""
    value = options[name]
    try:
        low, high = (float(bound["__float__"] if isinstance(bound, dict) else bound) for bound in value)
    except (KeyError, TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 <= low < high:
        raise ValueError(f"{place}: {name} is {value!r}, expected two numbers with 0 <= low < high")
    return low, high
