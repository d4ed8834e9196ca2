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
# # State space models, measured
#
# S4, S4D, S5, Mamba and Mamba-2 in one backbone, beside LightNet and softmax attention. How S4 comes to be trained as
# a convolution and run as a recurrence is in [s4](s4.ipynb); here is what the models do. It is read from stored
# results.

# %%
from experiments import plain_text, results
from experiments.state_spaces import digits_sequence, generation_speed, inference_speed

# %% [markdown]
# ## Digits, one pixel after the other
#
# Each 8 by 8 digit is a sequence of 64 numbers, and the answer is asked behind the last. All models have the same
# number of parameters; one recipe, chosen on images that are not tested on.

# %%
digits = results.load("state_spaces/digits_sequence")
digits_sequence.plot(digits)

# %%
print(plain_text.claims_table(digits.claims))

# %% [markdown]
# ## Sixty times faster than a transformer?
#
# The abstract of S4 says so of generation. It does not say, as far as we know, whether that transformer keeps its
# keys and values; both are measured. A state of fixed size takes the same time for each token.

# %%
generation = results.load("state_spaces/generation_speed")
generation_speed.plot(generation)

# %%
print(plain_text.claims_table(generation.claims))

# %% [markdown]
# ## Mamba-130M against its floors
#
# A pass over 512 tokens cannot be faster than its products of matrices, a single token not faster than reading all
# weights.

# %%
inference = results.load("state_spaces/inference_speed")
inference_speed.plot(inference)

# %%
print(plain_text.claims_table(inference.claims))
