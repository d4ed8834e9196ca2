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
# # What a student learns from a teacher
#
# A teacher says how likely each class or token is, $p = \mathrm{softmax}(t / \tau)$, and a student $q =
# \mathrm{softmax}(s / \tau)$ shall say the same. Papers differ in what "the same" means: a divergence between $p$ and
# $q$, an order of the classes, correlations, a transport between whole batches, a teacher that was trained for it.
#
# This notebook first looks at objectives where everything can be computed, then at students on digits. All is read from
# stored results; each claim has its verdict, also those that do not hold.

# %%
import jax.numpy as jnp

from experiments import plain_text, results
from experiments.distillation import (
    alpha_beta_plane,
    bayes_estimation,
    capacity_gap,
    digits_table,
    eigen_cam,
    jensen_shannon_family,
    kl_estimators,
    kl_top_calibration,
    long_tail,
    loss_terms,
    mcmi_students,
    mode_behaviour,
    online,
    pld_landscape,
    pld_temperature,
    sinkhorn_entropy,
    sinkhorn_speed,
    skew_gradient,
    sparse_teachers,
    transport,
    vocabulary_memory,
)
from kd import DIVERGENCES, token_divergence

# %% [markdown]
# ## One registry
#
# Every separable divergence is a row $\varphi(p, q)$ with $a = q\, \partial\varphi/\partial q$, and the gradient of its
# sum with respect to the student's logits is $(a - q \sum_v a_v) / \tau$. So dense logits, chunks of tokens, tiles of
# the vocabulary and sharded heads share one definition.

# %%
teacher, student = jnp.array([3.0, 1.0, 0.0, -2.0]), jnp.array([1.0, 2.0, 0.0, -1.0])
for kind in DIVERGENCES:
    if kind != "f_divergence":
        print(f"{kind:18} {float(token_divergence(kind, student, teacher)):.4f}")

# %% [markdown]
# Where does each of them push? Forward KL covers, reverse KL seeks; the AB plane moves the gradient between the
# entries that mismatch most and those the student is surest of.

# %%
plane = results.load("distillation/alpha_beta_plane")
alpha_beta_plane.plot(plane)

# %%
print(plain_text.claims_table(plane.claims))

# %%
family = results.load("distillation/jensen_shannon_family")
jensen_shannon_family.plot(family)

# %%
skew = results.load("distillation/skew_gradient")
skew_gradient.plot(skew)

# %%
print(plain_text.claims_table([*family.claims, *skew.claims]))

# %% [markdown]
# From samples alone there are three estimators of the same KL. As values and as losses they are different things: the
# gradient of $k_1$ is no gradient of any KL.

# %%
estimators = results.load("distillation/kl_estimators")
kl_estimators.plot(estimators)

# %%
print(plain_text.claims_table(estimators.claims))

# %% [markdown]
# ## Transport between modes
#
# SinKD's argument is a picture: a teacher with two modes, and a student that a KL would let average them or lose one.
# What transport does give is one basin and a gradient that does not vanish without overlap. Averaging is a matter of
# what the student can express.

# %%
modes = results.load("distillation/mode_behaviour")
mode_behaviour.plot(modes)

# %%
entropy = results.load("distillation/sinkhorn_entropy")
sinkhorn_entropy.plot(entropy)

# %%
print(plain_text.claims_table([*modes.claims, *entropy.claims]))

# %% [markdown]
# ## The landscape of PLD
#
# A Plackett-Luce loss in the teacher's order is convex in the student's logits, and minimal nowhere: scaled up, a right
# order only gets better. That makes its temperature a thing to choose relative to the teacher's gap between logits.

# %%
landscape = results.load("distillation/pld_landscape")
pld_landscape.plot(landscape)

# %%
temperature = results.load("distillation/pld_temperature")
pld_temperature.plot(temperature)

# %%
print(plain_text.claims_table([*landscape.claims, *temperature.claims]))

# %% [markdown]
# ## Is a teacher a better estimate of the Bayes probabilities?
#
# MCMI trains the teacher to say more about its inputs. Where the true probabilities are known, one can ask how far
# it is from them, before and after a temperature, and beside a teacher whose entropy is simply raised.

# %%
bayes = results.load("distillation/bayes_estimation")
bayes_estimation.plot(bayes)

# %%
print(plain_text.claims_table(bayes.claims))

# %% [markdown]
# ## Stored and truncated teachers
#
# Four conventions are in use for a teacher of whom only the largest probabilities are stored, and they are not the same
# objective.

# %%
sparse = results.load("distillation/sparse_teachers")
sparse_teachers.plot(sparse)

# %%
four_bits = results.load("distillation/kl_top_calibration")
kl_top_calibration.plot(four_bits)

# %%
print(plain_text.claims_table([*sparse.claims, *four_bits.claims]))

# %% [markdown]
# ## Any vocabulary
#
# Logits of 2,048 tokens and 151,936 entries are gigabytes. From hidden states and head weights, with the gradient
# accumulated in the forward pass, a chunk of tokens is enough at a time.

# %%
memory = results.load("distillation/vocabulary_memory")
vocabulary_memory.plot(memory)

# %%
speed = results.load("distillation/sinkhorn_speed")
sinkhorn_speed.plot(speed)

# %%
print(plain_text.claims_table([*memory.claims, *speed.claims]))

# %% [markdown]
# ## Students on digits
#
# One teacher per seed, a student of sixteen hidden units, a hundred labelled images, and for each objective the
# temperature of one grid that other seeds and other images choose.

# %%
table = results.load("distillation/digits_table")
digits_table.plot(table)

# %%
print(plain_text.claims_table(table.claims))

# %% [markdown]
# What the parts of the objectives do, and what a larger teacher does to a student of the same size:

# %%
terms = results.load("distillation/loss_terms")
loss_terms.plot(terms)

# %%
gap = results.load("distillation/capacity_gap")
capacity_gap.plot(gap)

# %%
batches = results.load("distillation/transport")
transport.plot(batches)

# %%
print(plain_text.claims_table([*terms.claims, *gap.claims, *batches.claims]))

# %% [markdown]
# Teachers made for their students, teachers that learn beside them, and a long tail of classes with three experts:

# %%
made = results.load("distillation/mcmi_students")
mcmi_students.plot(made)

# %%
beside = results.load("distillation/online")
online.plot(beside)

# %%
tail = results.load("distillation/long_tail")
long_tail.plot(tail)

# %%
print(plain_text.claims_table([*made.claims, *beside.claims, *tail.claims]))

# %% [markdown]
# Where a network looks, by the first principal component of its last feature map (Eigen-CAM):

# %%
maps = results.load("distillation/eigen_cam")
eigen_cam.plot(maps)

# %%
print(plain_text.claims_table(maps.claims))
