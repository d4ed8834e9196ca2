"""The switches of a causal LightNet model that `causal_switches` compares, and the best of each together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from experiments import language
from experiments.language import BYTES, ModelConfig

if TYPE_CHECKING:
    from experiments.language_models import LanguageModel


@dataclass(frozen=True)
class Variant:
    """A model as it differs from LightNet with both encodings.

    Attributes:
        switch: what is changed; empty where the best setting does not take it over.
        mixer: see `experiments.mixers`.
        positions: see `experiments.mixers`.
        mixer_options: see `LanguageModel`.
        position_options: see `LanguageModel`.
    """

    switch: str = ""
    mixer: str = "lightnet"
    positions: str = "both"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    position_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


BASE, COMBINED = "LightNet", "all switches at their best"


def _tpe(rank: int) -> Variant:
    return Variant("TPE rank", position_options={"input_positions": {"rank": rank}})


def _lrpe(kind: str) -> Variant:
    return Variant("LRPE", position_options={"relative": {"kind": kind}})


VARIANTS: Mapping[str, Variant] = {
    BASE: Variant(),
    "vector decay": Variant("decay", mixer_options={"decay": "vector"}),
    "vector decay, keys not normalised": Variant("decay", mixer_options={"decay": "vector", "normalised": False}),
    "scalar decay": Variant("decay", mixer_options={"decay": "scalar"}),
    "scalar decay, keys not normalised": Variant("decay", mixer_options={"decay": "scalar", "normalised": False}),
    "short convolution of 4": Variant("convolution", mixer_options={"conv_width": 4}),
    "phantom logit 0": Variant("phantom", mixer_options={"phantom_logit": 0.0}),
    "gate after the norm": Variant("gate", mixer_options={"gate_position": "after"}),
    "SiLU gate": Variant("gate", mixer_options={"gate_activation": "silu"}),
    "SiLU gate after the norm": Variant("gate", mixer_options={"gate_position": "after", "gate_activation": "silu"}),
    "TPE of rank 4": _tpe(4),
    "TPE of rank 16": _tpe(16),
    "LRPE, low frequencies": _lrpe("low"),
    "LRPE, geometric": _lrpe("geometric"),
    "rotary only": Variant(positions="rotary"),
    "multiplicative": Variant(mixer="multiplicative"),
    "multiplicative, no positions": Variant(mixer="multiplicative", positions="none"),
    "multiplicative, rotary only": Variant(mixer="multiplicative", positions="rotary"),
}


def described(size: ModelConfig, variant: Variant) -> LanguageModel:
    """A variant as a model with as many parameters as LightNet with both encodings.

    Args:
        size: of LightNet.
        variant: what is different.

    Returns:
        The description.
    """
    from experiments.language_models import LanguageModel

    base = LanguageModel(
        BYTES, num_layers=size.num_layers, width=size.width, num_heads=size.num_heads, hidden=size.hidden
    )
    changed = replace(
        base,
        mixer=variant.mixer,
        positions=variant.positions,
        mixer_options=variant.mixer_options,
        position_options=variant.position_options,
    )
    return language.at_equal_size(changed, language.count_parameters(base.build()))


def combined(variants: Mapping[str, Variant], validation: Mapping[str, float]) -> Variant:
    """LightNet with the setting of each switch that has the smallest validation loss, its own where none is better.

    Args:
        variants: by name, LightNet among them.
        validation: mean validation loss of each.

    Returns:
        The combination.

    Example:
        >>> losses = {BASE: 2.0, "phantom logit 0": 2.1, "TPE of rank 4": 1.9, "TPE of rank 16": 1.8}
        >>> combined({name: VARIANTS[name] for name in losses}, losses).position_options
        {'input_positions': {'rank': 16}}
    """
    mixer_options: dict[str, Any] = {}
    position_options: dict[str, dict[str, Any]] = {}
    for switch in dict.fromkeys(variant.switch for variant in variants.values() if variant.switch):
        names = [BASE, *(name for name, variant in variants.items() if variant.switch == switch)]
        best = variants[min(names, key=lambda name: validation[name])]
        mixer_options |= best.mixer_options
        for argument, options in best.position_options.items():
            position_options[argument] = {**position_options.get(argument, {}), **options}
    return Variant(mixer_options=mixer_options, position_options=position_options)
