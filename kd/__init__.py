"""Distillation objectives as pure functions of logits, of hidden states and of features.

Conventions: t and p = softmax(t / tau) are the teacher's, s and q = softmax(s / tau) the student's; both are divided by
an explicit `temperature`, and `tau_squared` says whether the result is multiplied by its square. Losses of a batch are
means over it, losses of sequences means over the tokens that count, over an explicit `denominator` where the batch
comes in parts. No gradient goes into the teacher unless a function trains it. Labels are the caller's to shift. All is
computed in float32 at least.
"""

from kd.adaptive import TAIDState, akl, taid, taid_start, taid_update
from kd.chunked import chunked_cross_entropy, chunked_divergence
from kd.classification import (
    BothLosses,
    abkd,
    bd_kd,
    bd_weights,
    class_centroids,
    conditional_information,
    dist,
    dkd,
    dkd_terms,
    hinton,
    kl_top,
    mcmi_teacher,
    mdcs_consistency,
    mdcs_diversity,
    pld,
    sinkd,
    sinkd_sample_wise,
    sinkhorn,
)
from kd.divergences import DIVERGENCES, divergence, reduce_tokens, token_divergence
from kd.features import attention_transfer, crd, rkd_angle, rkd_distance
from kd.fusion import fuse_logits, solve_alpha
from kd.generators import GENERATORS, Generator
from kd.sampled import f_dpg_loss, f_dpo_loss
from kd.schedules import dkd_warmup, mdcs_weight, temperature_anneal
from kd.sparse import sparse_divergence

__all__ = [
    "DIVERGENCES",
    "GENERATORS",
    "BothLosses",
    "Generator",
    "TAIDState",
    "abkd",
    "akl",
    "attention_transfer",
    "bd_kd",
    "bd_weights",
    "chunked_cross_entropy",
    "chunked_divergence",
    "class_centroids",
    "conditional_information",
    "crd",
    "dist",
    "divergence",
    "dkd",
    "dkd_terms",
    "dkd_warmup",
    "f_dpg_loss",
    "f_dpo_loss",
    "fuse_logits",
    "hinton",
    "kl_top",
    "mcmi_teacher",
    "mdcs_consistency",
    "mdcs_diversity",
    "mdcs_weight",
    "pld",
    "reduce_tokens",
    "rkd_angle",
    "rkd_distance",
    "sinkd",
    "sinkd_sample_wise",
    "sinkhorn",
    "solve_alpha",
    "sparse_divergence",
    "taid",
    "taid_start",
    "taid_update",
    "temperature_anneal",
    "token_divergence",
]
