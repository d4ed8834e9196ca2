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
# # The next item
#
# SIGMA, SASRec and BERT4Rec on sessions whose law is known: of each history the probability of every next item, so that
# metrics are expectations. It is read from stored results.

# %%
from experiments import plain_text, results
from experiments.recommendation import next_item, sigma, speed

# %% [markdown]
# ## SIGMA, as released and corrected
#
# The released code flips the first places of the window, whatever the length of the history: of a short one that
# direction sees nothing but padding.

# %%
ablation = results.load("recommendation/sigma")
sigma.plot(ablation)

# %%
print(plain_text.claims_table(ablation.claims))

# %% [markdown]
# ## The next item or a Cloze
#
# One stack, causal or not, trained on every next item, on hidden items, or on the item behind a history. On the right:
# how far back SASRec's last place looks; below: what each place of SASRec and of BERT4Rec attends to.

# %%
crossed = results.load("recommendation/next_item")
next_item.plot(crossed)

# %%
print(plain_text.claims_table(crossed.claims))

# %% [markdown]
# ## Seconds per epoch
#
# On as many users and items as MovieLens-1M has.

# %%
times = results.load("recommendation/speed")
speed.plot(times)

# %%
print(plain_text.claims_table(times.claims))
