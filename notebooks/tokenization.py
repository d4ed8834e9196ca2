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
# entropy is known exactly. Losses are nats per source character. Everything below is read from stored results;
# each claim has its verdict, also those that do not hold.

# %%
from experiments import plain_text, results
from experiments.tokenization import (
    architectures,
    bpe_encoders,
    chains_with_zeros,
    dictionary_growth,
    dictionary_size,
    encoder_choice,
    entropy_gap,
    escape_scaling,
    escape_time,
    lzw_tokens,
    memoriser,
    misleading_text,
    next_element,
    optimal_size,
    prediction_map,
    random_chains,
    sequential_regimes,
    text_tokenizers,
    wall_clock,
)

# %% [markdown]
# ## With and without a tokenizer
#
# On raw characters the loss stays at the entropy of a single character, as if the past did not matter; on ten BPE
# tokens the same transformer comes close to the entropy rate. Two lines keep the reading honest. The best
# *unigram* over the tokens is far above the transformer, so a transformer on tokens is more than a unigram model;
# the best *bigram* over the tokens is where it ends. And the left panel is a plateau, not an impossibility:
# longer training escapes from it.

# %%
gap = results.load("tokenization/entropy_gap")
entropy_gap.plot(gap)

# %%
print(plain_text.claims_table(gap.claims))

# %% [markdown]
# Is the transformer on tokens a unigram model, as the paper's heat map suggests? Its predictions against their
# average:

# %%
predictions = results.load("tokenization/prediction_map")
prediction_map.plot(predictions)

# %%
print(plain_text.claims_table(predictions.claims))

# %% [markdown]
# How long does the plateau last? It should depend on how much text there is to look through, and on how far back
# the symbol lies that matters.

# %%
escapes = results.load("tokenization/escape_time")
escape_time.plot(escapes)

# %%
scaling = results.load("tokenization/escape_scaling")
escape_scaling.plot(scaling)

# %%
print(plain_text.claims_table(escapes.claims + scaling.claims))

# %% [markdown]
# Attention has to learn where to look. A convolution sees the last symbols in separate places from the start, and
# the states of S5 forget at many rates. Which architectures need the tokenizer?

# %%
mixers = results.load("tokenization/architectures")
architectures.plot(mixers)

# %%
print(plain_text.claims_table(mixers.claims))

# %% [markdown]
# Random chains in place of the switching source, and dictionaries of several sizes:

# %%
random = results.load("tokenization/random_chains")
random_chains.plot(random)

# %%
print(plain_text.claims_table(random.claims))

# %% [markdown]
# Tokens make texts shorter, and updates cheaper. Loss against seconds, on a source of order 1 where characters
# are learned too:

# %%
seconds = results.load("tokenization/wall_clock")
wall_clock.plot(seconds)

# %%
print(plain_text.claims_table(seconds.claims))

# %% [markdown]
# ## How large must the dictionary be?
#
# The paper bounds the loss of a unigram over the tokens of LZW by the entropy rate and the dictionary size. The
# bounds are about chains of order 1. The same sweep on real text, the documentation of Python's standard library.

# %%
sizes = results.load("tokenization/dictionary_size")
dictionary_size.plot(sizes)

# %%
growth = results.load("tokenization/dictionary_growth")
dictionary_growth.plot(growth)

# %%
print(plain_text.claims_table(sizes.claims + growth.claims))

# %% [markdown]
# Behind the theorem stand lemmas on how long and how rare the tokens of LZW are. They are asymptotic: at sizes
# that can be run the exponent of heavy hitting is far below 0.99.

# %%
tokens = results.load("tokenization/lzw_tokens")
lzw_tokens.plot(tokens)

# %%
print(plain_text.claims_table(tokens.claims))

# %% [markdown]
# Byte-pair encoding has a theorem of its own, for a sequential variant, and a text on which it fails.

# %%
regimes = results.load("tokenization/sequential_regimes")
sequential_regimes.plot(regimes)

# %%
misled = results.load("tokenization/misleading_text")
misleading_text.plot(misled)

# %%
print(plain_text.claims_table(regimes.claims + misled.claims))

# %% [markdown]
# Theorem 4.1 wants all transition probabilities above 0. The paper conjectures a bound without that:

# %%
zeros = results.load("tokenization/chains_with_zeros")
chains_with_zeros.plot(zeros)

# %%
print(plain_text.claims_table(zeros.claims))

# %% [markdown]
# ## The encoder matters, and so does the text
#
# One dictionary under four encoders; the source on which greedy encoding is bad by any factor; and a tokenizer
# that memorises its training text.

# %%
encoders = results.load("tokenization/bpe_encoders")
bpe_encoders.plot(encoders)

# %%
choice = results.load("tokenization/encoder_choice")
encoder_choice.plot(choice)

# %%
memory = results.load("tokenization/memoriser")
memoriser.plot(memory)

# %%
print(plain_text.claims_table(encoders.claims + choice.claims + memory.claims))

# %% [markdown]
# With a finite text to fit the unigram on there is a best dictionary size:

# %%
best = results.load("tokenization/optimal_size")
optimal_size.plot(best)

# %%
print(plain_text.claims_table(best.claims))

# %% [markdown]
# ## Real text, and other models
#
# Four tokenizers against character k-grams. Held-out losses; the published figure shows those on the fitted text
# itself.

# %%
texts = results.load("tokenization/text_tokenizers")
text_tokenizers.plot(texts)

# %%
print(plain_text.claims_table(texts.claims))

# %% [markdown]
# How do counting, hidden Markov models and small networks compare, on the same sources and on text?

# %%
models = results.load("tokenization/next_element")
next_element.plot(models)

# %%
print(plain_text.claims_table(models.claims))

# %% [markdown]
# What each claim measures:

# %%
for stored in (
    gap,
    predictions,
    escapes,
    scaling,
    mixers,
    random,
    seconds,
    sizes,
    growth,
    tokens,
    regimes,
    misled,
    zeros,
    encoders,
    choice,
    memory,
    best,
    texts,
    models,
):
    for claim in stored.claims:
        print(f"{claim['claim']}: {claim['quantity']}")
