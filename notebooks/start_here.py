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
# # Start here
#
# Every claim of a paper is a command with a verdict. A *result* is one file that reproduces a figure or a
# table: it holds its configuration at four sizes (presets), the claims that it tests with thresholds fixed
# before the run, and the code that computes and draws it. A run leaves a folder; finished `cpu` runs are stored
# beside the code, so this notebook opens on them without computing anything.

# %%
from experiments.commands import list as list_command

_ = list_command.main([])

# %% [markdown]
# `load` gives the newest finished run, or else the stored one: claims with verdicts, tidy tables, arrays.

# %%
from experiments import plain_text, results

gap = results.load("tokenization/entropy_gap")
print(plain_text.claims_table(gap.claims))

# %%
print("\n".join(f"{claim['claim']}: {claim['quantity']}" for claim in gap.claims))

# %%
gap.table("references")

# %%
{name: {field: array.shape for field, array in fields.items()} for name, fields in gap.series.items()}

# %% [markdown]
# The same `plot` that the command line uses draws the figure.

# %%
from experiments.tokenization import entropy_gap

entropy_gap.plot(gap)

# %% [markdown]
# The command that made it, and how to run it again, smaller or larger:

# %%
print(gap.command)

# %% [markdown]
# - `python -m experiments run tokenization/entropy_gap --preset smoke`: seconds, to see that it works
# - `python -m experiments run tokenization/entropy_gap --config.p 0.3 --config.q 0.2 --seeds 0:3`: another source
# - `python -m experiments show tokenization/entropy_gap`: this table on the terminal
# - `python -m experiments report`: every claim of every paper in one page
#
# The formulas are plain functions. A source knows its own entropies, and a backbone takes any mixer:

# %%
from functools import partial

import jax

from experiments.sources import SwitchingSource
from lightnet.backbone import Backbone, CausalLM
from lightnet.mixers import SoftmaxAttention

source = SwitchingSource(order=2, p=0.8, q=0.8)
print(f"entropy rate {source.entropy_rate():.4f}, unigram entropy {source.unigram_entropy():.4f} nats per symbol")

model = CausalLM(
    Backbone(mixer=partial(SoftmaxAttention, num_heads=2), num_layers=2, width=32), vocab_size=2, max_length=64
)
tokens = source.sample(jax.random.key(0), (4, 64))
logits, variables = model.init_with_output(jax.random.key(1), tokens)
print(logits.shape)
