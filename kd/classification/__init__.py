"""Objectives of classification: means over the batch, but for the transport costs, which are sums."""

from kd.classification.bd_kd import BothLosses, bd_kd, bd_weights
from kd.classification.dist import dist
from kd.classification.dkd import dkd, dkd_terms
from kd.classification.hinton import abkd, hinton
from kd.classification.kl_top import kl_top
from kd.classification.mcmi import class_centroids, conditional_information, mcmi_teacher
from kd.classification.mdcs import mdcs_consistency, mdcs_diversity
from kd.classification.pld import pld
from kd.classification.sinkd import sinkd, sinkd_sample_wise
from kd.classification.sinkhorn import sinkhorn

__all__ = [
    "BothLosses",
    "abkd",
    "bd_kd",
    "bd_weights",
    "class_centroids",
    "conditional_information",
    "dist",
    "dkd",
    "dkd_terms",
    "hinton",
    "kl_top",
    "mcmi_teacher",
    "mdcs_consistency",
    "mdcs_diversity",
    "pld",
    "sinkd",
    "sinkd_sample_wise",
    "sinkhorn",
]
