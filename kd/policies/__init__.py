"""Objectives of policies: estimators of a KL, rewards, anchors and closed forms, from log probabilities of samples."""

from kd.policies.baseline import BaselineState, baseline_start, baseline_update, baseline_value
from kd.policies.didi import didi_discriminator_loss, didi_loss, didi_reward
from kd.policies.dph import dph_anchor
from kd.policies.estimators import importance_weights, kl_surrogate, kl_value, log_normalizer
from kd.policies.f_distill import balance_over_time, f_distill_loss, f_distill_weights
from kd.policies.f_sft import f_sft_loss
from kd.policies.grpo import clipped_policy_loss, grpo_advantage, guided_mask, mastered, whiten
from kd.policies.kdrl import kdrl_beta, kdrl_loss
from kd.policies.tilting import best_of_n, best_of_n_bound, regularised_reward, tilted_optimum, tilted_value

__all__ = [
    "BaselineState",
    "balance_over_time",
    "baseline_start",
    "baseline_update",
    "baseline_value",
    "best_of_n",
    "best_of_n_bound",
    "clipped_policy_loss",
    "didi_discriminator_loss",
    "didi_loss",
    "didi_reward",
    "dph_anchor",
    "f_distill_loss",
    "f_distill_weights",
    "f_sft_loss",
    "grpo_advantage",
    "guided_mask",
    "importance_weights",
    "kdrl_beta",
    "kdrl_loss",
    "kl_surrogate",
    "kl_value",
    "log_normalizer",
    "mastered",
    "regularised_reward",
    "tilted_optimum",
    "tilted_value",
    "whiten",
]
