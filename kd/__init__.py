"""Distillation objectives as pure functions of logits, of hidden states and of features.

Conventions: t and p = softmax(t / tau) are the teacher's, s and q = softmax(s / tau) the student's; both are divided by
an explicit `temperature`, and `tau_squared` says whether the result is multiplied by its square. Losses of a batch are
means over it, losses of sequences means over the tokens that count, over an explicit `denominator` where the batch
comes in parts. No gradient goes into the teacher unless a function trains it. Labels are the caller's to shift. All is
computed in float32 at least.
"""

from kd.chunked import chunked_cross_entropy, chunked_divergence
from kd.divergences import DIVERGENCES, divergence, reduce_tokens, token_divergence
from kd.generators import GENERATORS, Generator
from kd.sparse import sparse_divergence

__all__ = [
    "DIVERGENCES",
    "GENERATORS",
    "Generator",
    "chunked_cross_entropy",
    "chunked_divergence",
    "divergence",
    "reduce_tokens",
    "sparse_divergence",
    "token_divergence",
]
