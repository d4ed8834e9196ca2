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
# # Toward a theory of tokenization
#
# Rajaraman, Jiao and Ramchandran (arXiv 2404.08335) ask why transformers need a tokenizer, on sources whose
# entropy is known exactly. Losses are nats per source character. Everything below is read from stored
# results.

# %%
from experiments import plain_text, results
from experiments.tokenization import dictionary_size, entropy_gap

# %% [markdown]
# ## With and without a tokenizer
#
# On raw characters the loss stays at the entropy of a single character, as if the past did not matter; on ten
# BPE tokens the same transformer comes close to the entropy rate. Two lines keep the reading honest. The best
# *unigram* over the tokens is far above the transformer, so a transformer on tokens is more than a unigram
# model; the best *bigram* over the tokens is where it ends. And the left panel is a plateau, not an
# impossibility: longer training escapes from it.

# %%
gap = results.load("tokenization/entropy_gap")
entropy_gap.plot(gap)

# %%
print(plain_text.claims_table(gap.claims))

# %% [markdown]
# ## How large must the dictionary be?
#
# The paper bounds the loss of a unigram over the tokens of LZW by the entropy rate and the dictionary size. The
# same sweep on real text, the documentation of Python's standard library.

# %%
sizes = results.load("tokenization/dictionary_size")
dictionary_size.plot(sizes)

# %%
print(plain_text.claims_table(sizes.claims))

# %% [markdown]
# What each claim measures:

# %%
for claim in gap.claims + sizes.claims:
    print(f"{claim['claim']}: {claim['quantity']}")
