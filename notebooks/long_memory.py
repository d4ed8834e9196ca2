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
# # Long memory and hierarchy
#
# What models of sequences keep of what they have read, for how long, and after how many updates: selective copying,
# induction heads, associative recall, ListOps, and a token that has to be kept for 16,384 steps. Then sensors, which a
# hierarchy of two models reads chunk by chunk. All data are generated, all models of a table have the same size. It is
# read from stored results.

# %%
import jax

from experiments import plain_text, results
from experiments.hiss import data_size, hierarchy
from experiments.long_memory import efficiency, induction, path_length, recall, selective_copying
from experiments.sources.memory import associative_recall

# %% [markdown]
# ## Four tasks, seven mixers
#
# Associative recall: keys and values in turn, then keys again, whose values are asked for.

# %%
example = associative_recall(jax.random.key(0), 1, length=20, pairs=3, alphabet=16)
print("read ", *example.tokens[0].tolist())
print("asked", *("?" if asked else "." for asked in example.asked[0].tolist()))
print("told ", *example.targets[0][example.asked[0]].tolist())

# %%
table = results.load("long_memory/recall")
recall.plot(table)

# %%
print(plain_text.claims_table(table.claims))

# %% [markdown]
# ## Selective copying
#
# Mamba against the same block whose step, input and readout no token changes. Where the data stand among the noise is
# another place in every sequence.

# %%
copying = results.load("long_memory/selective_copying")
selective_copying.plot(copying)

# %%
print(plain_text.claims_table(copying.claims))

# %% [markdown]
# ## Induction heads, much longer than in training

# %%
heads = results.load("long_memory/induction")
induction.plot(heads)

# %%
print(plain_text.claims_table(heads.claims))

# %% [markdown]
# ## What a sequence begins with, kept for 16,384 steps

# %%
distant = results.load("long_memory/path_length")
path_length.plot(distant)

# %%
print(plain_text.claims_table(distant.claims))

# %% [markdown]
# ## What a layer costs
#
# A pass forward and backward of one mixer: S4 by its convolution, softmax attention by all pairs.

# %%
costs = results.load("long_memory/efficiency")
efficiency.plot(costs)

# %%
print(plain_text.claims_table(costs.claims))

# %% [markdown]
# ## Sensors, read in two levels
#
# HiSS: a lower model reads each chunk of ten samples, an upper one what it says of the chunks. The flat models that it
# was compared with are read at a chunk's first sample, 180 ms before the hierarchy; here also at its last.

# %%
levels = results.load("hiss/hierarchy")
hierarchy.plot(levels)

# %%
print(plain_text.claims_table(levels.claims))

# %%
sizes = results.load("hiss/data_size")
data_size.plot(sizes)

# %%
print(plain_text.claims_table(sizes.claims))
