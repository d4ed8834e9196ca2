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
# # LightNet: you only scan once
#
# Qin et al. (arXiv 2405.21022) replace the multiplicative decay of linear attention by an additive one, whose
# normaliser can be made global: then one scan sees every token, in any number of dimensions and in any order. The
# paper's text and tables were not available to us, so everything below compares our own models, at small scale.
# It is read from stored results.

# %%
from experiments import plain_text, results
from experiments.lightnet import (
    causal_lm,
    causal_switches,
    classification,
    few_images,
    generation,
    latency,
    masked_lm,
    receptive_field,
    recurrent_inference,
    saturation,
    seqpe,
    three_dimensions,
    training_speed,
)

# %% [markdown]
# ## What one scan sees
#
# Norms of the Jacobian of each output with respect to each value. The order-free form is dense. One multiplicative
# scan is exactly blind to what comes later; two see everything, but fade with the distance.

# %%
field = results.load("lightnet/receptive_field")
receptive_field.plot(field)

# %%
print(plain_text.claims_table(field.claims))

# %% [markdown]
# ## What one scan costs
#
# Forward and backward pass, by themselves and inside a mixer with its projections. Softmax attention grows with the
# square of the length.

# %%
times = results.load("lightnet/latency")
latency.plot(times)

# %%
print(plain_text.claims_table(times.claims))

# %% [markdown]
# ## Images: positions decide
#
# Without an order there is no position either: without an encoding the model sees a bag of patches.

# %%
digits = results.load("lightnet/classification")
classification.plot(digits)

# %%
print(plain_text.claims_table(digits.claims))

# %% [markdown]
# With all images MD-TPE alone is as good as both encodings. Trained on 200 of them it is not.

# %%
few = results.load("lightnet/few_images")
few_images.plot(few)

# %%
print(plain_text.claims_table(few.claims))

# %% [markdown]
# SeqPE in that table is without its two auxiliary losses. They put positions that no image has in order.

# %%
positions = results.load("lightnet/seqpe")
seqpe.plot(positions)

# %%
print(plain_text.claims_table(positions.claims))

# %% [markdown]
# The same in three dimensions, on a task that a bag of voxels cannot solve. MD-LRPE alone is even in every axis and
# cannot tell a volume from its mirror image.

# %%
volumes = results.load("lightnet/three_dimensions")
three_dimensions.plot(volumes)

# %%
print(plain_text.claims_table(volumes.claims))

# %% [markdown]
# ## Image generation

# %%
pictures = results.load("lightnet/generation")
generation.plot(pictures)

# %%
print(plain_text.claims_table(pictures.claims))

# %% [markdown]
# ## Language
#
# Masked bytes at equal time, then causal models at equal parameters and tokens.

# %%
masked = results.load("lightnet/masked_lm")
masked_lm.plot(masked)

# %%
causal = results.load("lightnet/causal_lm")
causal_lm.plot(causal)

# %%
print(plain_text.claims_table(masked.claims + causal.claims))

# %% [markdown]
# What closes the gap? Each switch of the causal form by itself, and those that helped together.

# %%
switches = results.load("lightnet/causal_switches")
causal_switches.plot(switches)

# %%
table = switches.table("switches")
rows = sorted(zip(table["loss"], table["model"], table["minus_lightnet"], table["share_of_gap"], strict=True))
header = ("model", "nats per byte", "minus LightNet", "share of the gap")
print(plain_text.text_table(header, [(name, *(f"{x:.3f}" for x in (loss, *rest))) for loss, name, *rest in rows]))

# %%
print(plain_text.claims_table(switches.claims))

# %% [markdown]
# Training and decoding: tokens per second of an update against softmax attention, and 10,000 bytes from a state that
# does not grow.

# %%
speed = results.load("lightnet/training_speed")
training_speed.plot(speed)

# %%
inference = results.load("lightnet/recurrent_inference")
recurrent_inference.plot(inference)

# %%
print(plain_text.claims_table(speed.claims + inference.claims))

# %% [markdown]
# ## The weakness that reviewers named
#
# For independent logits the decay goes to one like 1/t, exactly as theory says: the state becomes a uniform average.

# %%
decays = results.load("lightnet/saturation")
saturation.plot(decays)

# %%
print(plain_text.claims_table(decays.claims))
