"""Language models in each scenario of the input-output matrix, all of the same size, and one training of them.

| variant | input-output matrix | skip D starts from | output projection starts from |
|---|---|---|---|
| free | S_B and S_C of their own, as in Mamba | 1 | W |
| positive | symmetric, N positive eigenvalues | 1 | W |
| mixed | symmetric, N / 2 of each sign | 1 | W |
| negative | symmetric, N negative eigenvalues | 1 | W |
| control | as negative | -1 | -W |

`negative` with (D, W_out) is `positive` with (-D, -W_out). AdamW treats both signs of a parameter alike, so that the
control and `positive` are the same training written in two ways: they have the same losses, up to rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.registry import unknown

if TYPE_CHECKING:
    from experiments.token_dynamics.text_models import SizeConfig
    from experiments.training.config import TrainConfig
    from experiments.training.loop import Outcome

CONTROL = "control"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "free": {},
    "positive": {"scenario": "positive"},
    "mixed": {"scenario": "mixed"},
    "negative": {"scenario": "negative"},
    CONTROL: {"scenario": "negative", "skip_init": -1.0},
}
COLOURS = {"free": "#000000", "positive": "#0072B2", "mixed": "#009E73", "negative": "#D55E00", CONTROL: "#56B4E9"}


def check_variants(variants: tuple[str, ...], known: Collection[str] = tuple(VARIANTS)) -> None:
    """Refuse names that do not exist, and names given twice.

    Args:
        variants: of a config.
        known: those that exist.

    Raises:
        ValueError: there is one.

    Example:
        >>> check_variants(("free", "positiv"))
        Traceback (most recent call last):
        ...
        ValueError: variants: unknown variant 'positiv'; nearest: positive
    """
    for name in variants:
        if name not in known:
            raise ValueError(f"variants: {unknown('variant', name, known)}")
    if len(set(variants)) < len(variants) or not variants:
        raise ValueError("variants: expected at least one, each of them once")


def initial_values(variables: Any, variant: str, embedding: float = 0.0) -> Any:
    """Initial values of a variant: the published ones, but for the embedding and, in the control, for signs.

    Args:
        variables: as the model makes them.
        variant: one of VARIANTS; the control begins with the output projections turned.
        embedding: standard deviation of the embedding; 0 is width^-1/2, as 0.02 is meant for models much wider.

    Returns:
        Others of the same structure.
    """
    import jax

    def scaled(path: tuple, leaf: Any) -> Any:
        names = [entry.key for entry in path if hasattr(entry, "key")]
        if names[-1] == "embedding":
            return leaf * ((embedding or leaf.shape[-1] ** -0.5) / 0.02)
        return -leaf if variant == CONTROL and "out_proj" in names else leaf

    return jax.tree_util.tree_map_with_path(scaled, variables)


def train_variant(
    config: TrainConfig,
    variant: str,
    size: SizeConfig,
    rows: Mapping[str, Any],
    held_out: Mapping[str, Mapping[str, Any]],
    lengths: Any,
    folder: Path,
    *,
    seed: int,
    embedding: float = 0.0,
    scan_layers: bool = False,
) -> Outcome:
    """Train a variant from initial values that depend on the seed alone, but for what makes the variant.

    Args:
        config: of the training.
        variant: one of VARIANTS.
        size: of the model.
        rows: "tokens" (n, L + 1).
        held_out: sets of rows to evaluate on.
        lengths: (V,) what a token counts as, bytes for example.
        folder: of the training; its name is the label.
        seed: of the initial values and the order.
        embedding: see `initial_values`.
        scan_layers: see `lightnet.backbone.Backbone`.

    Returns:
        The outcome; its metrics are nats per unit of `lengths`.
    """
    from experiments.language import next_token_task
    from experiments.token_dynamics.text_models import build
    from experiments.training.loop import train

    model = build(size, len(lengths), remat=config.remat, scan_layers=scan_layers, **VARIANTS[variant])
    task = next_token_task(model, held_out, lengths, 4 * (config.device_batch or config.batch_size))
    created = task.init
    task = replace(task, init=lambda key: initial_values(created(key), variant, embedding))
    return train(config, task, rows, folder, seed=seed, label=folder.name)
