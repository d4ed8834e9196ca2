"""The objectives that are compared, by name: (student, teacher, labels, temperature) -> loss.

Weights are the published defaults where there are any, and none is tuned here; the temperature is the one thing that is
chosen for each objective, from one grid. Where an objective would be another one at each temperature without the factor
tau^2, it has it: AB and the plain divergences, as Hinton's loss does.

Importing this module imports no JAX, so that a configuration can check its names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

    from experiments.distillation.networks import Outputs

CE_WEIGHT, KD_WEIGHT = 0.1, 0.9
TRANSPORT_WEIGHT = 0.8
KEPT = 5
RKD_WEIGHT, CRD_WEIGHT, NEGATIVES = 25.0, 0.8, 16
SMOOTHING = 0.1
ALPHA, BETA = 0.2, 0.7
DIVERGENCES = (
    "reverse_kl",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
    "squared_hellinger",
    "chi2_pq",
    "chi2_qp",
    "l2",
)

Loss = Callable[["Outputs", "Outputs", "jax.Array", Any], "jax.Array"]


@dataclass(frozen=True)
class Objective:
    """How a student learns.

    Attributes:
        loss: (student's outputs, teacher's outputs, labels, temperature) -> scalar.
        formula: the loss in a line.
        tempered: whether there is a temperature to choose.
        teacher: "cross-entropy", or "mcmi" for one that is fine-tuned for its students.
        joint: whether the teacher learns too: `loss` then has a gradient into its outputs.
        projected: whether the student has a linear projection into the width of the teacher's features.
    """

    loss: Loss
    formula: str
    tempered: bool = True
    teacher: str = "cross-entropy"
    joint: bool = False
    projected: bool = False


def labels_only(s: Outputs, t: Outputs, y: jax.Array, temperature: Any, *, smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of labels, of which some probability may be spread over all classes."""
    import jax
    import optax

    targets = optax.smooth_labels(jax.nn.one_hot(y, s.logits.shape[1]), smoothing)
    return optax.softmax_cross_entropy(s.logits, targets).mean()


def of_logits(s: Outputs, t: Outputs, y: jax.Array, temperature: Any, *, name: str, **arguments: Any) -> jax.Array:
    """An objective of `kd` that takes logits, labels and a temperature."""
    import kd

    return getattr(kd, name)(s.logits, t.logits, y, temperature=temperature, **arguments)


def plain(s: Outputs, t: Outputs, y: jax.Array, temperature: Any, *, kind: str) -> jax.Array:
    """Hinton's loss with another divergence of the registry."""
    import kd

    soft = kd.token_divergence(kind, s.logits, t.logits, temperature=temperature, tau_squared=True)
    return CE_WEIGHT * labels_only(s, t, y, temperature) + KD_WEIGHT * soft.mean()


def transported(s: Outputs, t: Outputs, y: jax.Array, temperature: Any, *, weight: float = TRANSPORT_WEIGHT) -> Any:
    """Hinton's loss and SinKD's transport, a mean over the batch instead of the released sum times 0.001."""
    import kd

    hinton = of_logits(s, t, y, temperature, name="hinton")
    return hinton + weight * kd.sinkd(s.logits, t.logits) / len(y)


def balanced(s: Outputs, t: Outputs, y: jax.Array, temperature: Any, *, delta: float = 3.0) -> jax.Array:
    """BD-KD's student with a teacher that stays as it is, its two weights scaled to sum to 2."""
    import kd

    return kd.bd_kd(s.logits, t.logits, y, delta=delta, temperature=temperature, kd_weight=2 / (1 + delta)).student


def balanced_both(s: Outputs, t: Outputs, y: jax.Array, temperature: Any, *, delta: float = 3.0) -> jax.Array:
    """BD-KD online: the sum of both losses, each without gradient into the other network."""
    import kd

    both = kd.bd_kd(s.logits, t.logits, y, delta=delta, temperature=temperature, kd_weight=2 / (1 + delta))
    return both.student + both.teacher


def mutual(s: Outputs, t: Outputs, y: jax.Array, temperature: Any) -> jax.Array:
    """Deep mutual learning (arXiv 1706.00384): labels, and the KL of the other network to each, for both."""
    import kd

    def one(own: Outputs, other: Outputs) -> jax.Array:
        kl = kd.token_divergence("forward_kl", own.logits, other.logits, temperature=temperature, tau_squared=True)
        return labels_only(own, other, y, temperature) + kl.mean()

    return one(s, t) + one(t, s)


def largest_logits(s: Outputs, t: Outputs, y: jax.Array, temperature: Any) -> jax.Array:
    """Hinton's loss with the KL of the teacher's five largest logits."""
    import kd

    soft = kd.kl_top(s.logits / temperature, t.logits / temperature, k=KEPT) * temperature**2
    return CE_WEIGHT * labels_only(s, t, y, temperature) + KD_WEIGHT * soft


def list_mle(s: Outputs, t: Outputs, y: jax.Array, temperature: Any) -> jax.Array:
    """PLD's limit of equal weights: ListMLE in the teacher's order behind the label."""
    import kd

    return s.logits.shape[1] * kd.pld(s.logits, t.logits, y, temperature=1e6)


def distances(s: Outputs, t: Outputs, y: jax.Array, temperature: Any) -> jax.Array:
    """Labels and the distances between features (RKD-D)."""
    import kd

    return labels_only(s, t, y, temperature) + RKD_WEIGHT * kd.rkd_distance(s.features, t.features)


def contrasted(s: Outputs, t: Outputs, y: jax.Array, temperature: Any, *, images: int = 100) -> jax.Array:
    """Labels and CRD, whose negatives are the images next in the batch, whatever their class."""
    import jax.numpy as jnp

    import kd

    if s.projected is None:
        raise ValueError("s: got no projection, expected a network with one")
    after = (jnp.arange(len(y))[:, None] + jnp.arange(1, NEGATIVES + 1)[None]) % len(y)
    loss = kd.crd(s.projected, t.features, t.features[after], samples=images)
    return labels_only(s, t, y, temperature) + CRD_WEIGHT * loss


_HINTON = partial(of_logits, name="hinton")
OBJECTIVES: Mapping[str, Objective] = {
    "ce": Objective(labels_only, "CE", tempered=False),
    "smoothed": Objective(partial(labels_only, smoothing=SMOOTHING), "CE, labels smoothed by 0.1", tempered=False),
    "hinton": Objective(_HINTON, "0.1 CE + 0.9 T^2 KL(p, q)"),
    "dkd": Objective(partial(of_logits, name="dkd"), "CE + T^2 (TCKD + 8 NCKD)"),
    "dist": Objective(partial(of_logits, name="dist"), "CE + inter + intra"),
    "sinkd": Objective(transported, "hinton + 0.8 transport / B"),
    "bd_kd": Objective(balanced, "CE + T^2 (w KL(p, q) + w' KL(q, p)), delta 3, frozen teacher"),
    "pld": Objective(partial(of_logits, name="pld"), "Plackett-Luce, weights of the teacher at T"),
    "list_mle": Objective(list_mle, "Plackett-Luce, equal weights", tempered=False),
    "mcmi": Objective(_HINTON, "hinton, teacher fine-tuned by MCMI", teacher="mcmi"),
    "ab": Objective(
        partial(of_logits, name="abkd", tau_squared=True, alpha=ALPHA, beta=BETA),
        "0.1 CE + 0.9 T^2 AB, alpha 0.2, beta 0.7",
    ),
    "kl_top": Objective(largest_logits, "0.1 CE + 0.9 T^2 KL of the 5 largest of 10 logits"),
    "rkd": Objective(distances, "CE + 25 RKD-D", tempered=False),
    "crd": Objective(contrasted, "CE + 0.8 CRD", tempered=False, projected=True),
    **{kind: Objective(partial(plain, kind=kind), f"0.1 CE + 0.9 T^2 {kind}") for kind in DIVERGENCES},
    "mutual": Objective(mutual, "CE + T^2 KL(p, q) and CE + T^2 KL(q, p), both networks trained", joint=True),
    "bd_kd_online": Objective(balanced_both, "BD-KD, both networks trained", joint=True),
}


def objective(name: str, field: str = "objective") -> Objective:
    """The objective of a name.

    Args:
        name: see `OBJECTIVES`.
        field: for the error message.

    Returns:
        It.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> objective("hinton").formula
        '0.1 CE + 0.9 T^2 KL(p, q)'
    """
    if name not in OBJECTIVES:
        raise ValueError(f"{field}: got {name!r}, expected one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
