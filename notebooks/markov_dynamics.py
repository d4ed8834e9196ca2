# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How small models learn Markov chains
#
# Four papers watch small transformers learn the simplest data that has a past: Makkuva et al. (arXiv 2402.04161
# and 2406.03072) on one fixed chain, Edelman et al. (2402.11004) and Rajaraman et al. (2407.17686) on chains that
# differ from sequence to sequence, and Reddy (2312.03002) on items and labels. What they share is a plateau, a
# solution that ignores part of the past, and a sudden way out of it.
#
# Everything below is read from stored results; each claim has its verdict, also those that do not hold.

# %%
from experiments import plain_text, results
from experiments.markov_dynamics import (
    abrupt_transition,
    constant_depth,
    doubly_stochastic,
    in_context_predictors,
    induction_phases,
    landscape,
    memory_mask,
    three_logit_transition,
    weight_tying,
)

# %% [markdown]
# ## A trap that can be drawn
#
# A single layer with tied weights on a binary chain comes down to two numbers, in which the loss has a closed
# form. On the line $e = 0$ the model predicts the stationary law, for good or until it escapes, depending on the
# sign of $p + q - 1$ and on an energy that gradient flow conserves.

# %%
plane = results.load("markov_dynamics/landscape")
landscape.plot(plane)

# %%
print(plain_text.claims_table(plane.claims))

# %% [markdown]
# In a whole transformer the trap is a plateau. How long it lasts depends on whether the output kernel is the
# embedding, on the depth, and on how far attention sees.

# %%
tying = results.load("markov_dynamics/weight_tying")
weight_tying.plot(tying)

# %%
mask = results.load("markov_dynamics/memory_mask")
memory_mask.plot(mask)

# %%
print(plain_text.claims_table(tying.claims + mask.claims))

# %% [markdown]
# ## Chains in context
#
# Every sequence has a chain of its own, so that nothing can be known before it is read. What can be reached by
# counting is the reference for everything that is trained.

# %%
counts = results.load("markov_dynamics/in_context_predictors")
in_context_predictors.plot(counts)

# %%
print(plain_text.claims_table(counts.claims))

# %% [markdown]
# The model counts symbols first, and pairs later, when its first layer has found the previous token.

# %%
phases = results.load("markov_dynamics/induction_phases")
induction_phases.plot(phases)

# %%
print(plain_text.claims_table(phases.claims))

# %% [markdown]
# Is counting symbols a step on the way, or a stumbling block? Chains for which it is no use, with and without
# some for which it is all there is:

# %%
blocks = results.load("markov_dynamics/doubly_stochastic")
doubly_stochastic.plot(blocks)

# %%
print(plain_text.claims_table(blocks.claims))

# %% [markdown]
# Chains of order 2, with one head in each of two layers:

# %%
depth = results.load("markov_dynamics/constant_depth")
constant_depth.plot(depth)

# %%
print(plain_text.claims_table(depth.claims))

# %% [markdown]
# ## Items and labels
#
# The same two steps where the data are no chains: first any label of the context, then suddenly the right one.
# Three numbers are enough to show it.

# %%
labels = results.load("markov_dynamics/abrupt_transition")
abrupt_transition.plot(labels)

# %%
logits = results.load("markov_dynamics/three_logit_transition")
three_logit_transition.plot(logits)

# %%
print(plain_text.claims_table(labels.claims + logits.claims))

# %% [markdown]
# What each claim measures:

# %%
for stored in (plane, tying, mask, counts, phases, blocks, depth, labels, logits):
    for claim in stored.claims:
        print(f"{claim['claim']}: {claim['quantity']}")
