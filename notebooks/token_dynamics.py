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
# # Where do the tokens go?
#
# Take one layer of a selective state space model and stack it with itself, each copy adding a little to its input. In
# the limit of many thin layers the tokens move along a differential equation. "Demystifying the Token Dynamics of Deep
# Selective State Space Models" (arXiv 2410.03292) asks where they go: all to zero, or all to infinity? It then derives
# two refinements of Mamba. The text of the paper was not at hand, only its abstract, summaries and code; what is
# derived here is marked as ours.
#
# This notebook follows the argument: one dimension, where everything can be proved; two, where a conjecture fails;
# trained models; and the refinements. Figures are drawn from stored results, each claim has its verdict.

# %%
import numpy as np

from experiments import plain_text, results
from experiments.token_dynamics import (
    discrete_stack,
    norm_growth,
    one_dimension,
    phase_diagram,
    reordering_digits,
    scenario_text,
    trained_models,
    two_dimensions,
    unequal_contribution,
)
from ssm.dynamics import blow_up_bound, eigenvalue_label, regime, scenario, simulate

# %% [markdown]
# ## One dimension
#
# With one channel the input-output matrix is a number $\mu$, and the tokens follow
#
# $$\dot x_l = \mu\, x_l \sum_{j \le l} x_j^2\, \Delta_j \exp\Big(-a \sum_{k=j+1}^{l} \Delta_k\Big),
# \qquad \Delta_j = \ln(1 + e^{s x_j}).$$
#
# No token changes its sign. The sum is positive, so that all grow if $\mu > 0$ and all shrink if $\mu < 0$; the
# weight $s$ decides how fast. A token with $s x \ge 0$ grows at least like the cube of itself, and ends in finite time.

# %%
tokens = [-0.5, -0.3, 0.6, -0.4, 0.2]
for mu, s in ((-1.0, 1.0), (1.0, 1.0)):
    found = simulate(tokens, mu, s, 1.0, [0.0, 0.5, 1.0, 2.0])
    print(f"mu = {mu:+g}, s = {s:+g}: {regime(tokens, mu, s)}, ends at {found.blow_up_time}")
    print(found.tokens.round(3))
print("bound on the end:", round(blow_up_bound(tokens, 1.0, 1.0), 3))

# %%
regimes = results.load("token_dynamics/one_dimension")
one_dimension.plot(regimes)

# %%
print(plain_text.claims_table(regimes.claims))

# %% [markdown]
# At the end of a fast divergence tokens before the first that blows up are still finite: "all tokens diverge" is about
# those from that one on.
#
# Does theory predict the regime of any configuration? Thousands of random ones, simulated without a look at theory:

# %%
diagram = results.load("token_dynamics/phase_diagram")
phase_diagram.plot(diagram)

# %%
print(plain_text.claims_table(diagram.claims))

# %% [markdown]
# ## Two dimensions, and a conjecture
#
# In more dimensions the paper conjectures that the eigenvalues of $M = S_C^\top S_B$ decide. For a symmetric matrix
# they do. In general it is the symmetric part that decides about the first token, and so about convergence: this
# matrix has two negative eigenvalues, and tokens that diverge.

# %%
M = np.array([[-1.0, 4.0], [0.0, -0.5]])
print(np.linalg.eigvals(M), "by the eigenvalues", eigenvalue_label(M), "by the symmetric part", scenario(M))

# %%
plane = results.load("token_dynamics/two_dimensions")
two_dimensions.plot(plane)

# %%
print(plain_text.claims_table(plane.claims))

# %% [markdown]
# The limit is one of residual stacks: with $2^k$ layers of step $2^{-k}$ the error halves with each doubling.

# %%
stack = results.load("token_dynamics/discrete_stack")
discrete_stack.plot(stack)

# %%
print(plain_text.claims_table(stack.claims))

# %% [markdown]
# ## Models that were trained
#
# A layer of Mamba has $N$ states and at least $2N$ channels. The symmetric part of its $M$ then has $N$ positive and
# $N$ negative eigenvalues whatever the weights are, by Sylvester's law of inertia: **every ordinary layer of Mamba is
# in the mixed scenario**, before training, during it and after. What training moves is the size of the spectrum.

# %%
trained = results.load("token_dynamics/trained_models")
trained_models.plot(trained)

# %%
growth = results.load("token_dynamics/norm_growth")
norm_growth.plot(growth)

# %%
print(plain_text.claims_table(trained.claims + growth.claims))

# %% [markdown]
# ## Do tokens that grow contribute more?
#
# The abstract says that tokens which diverge at different rates contribute unequally to the updates in training. What
# a token contributes can be measured: the gradient of the selecting weights is a sum of one outer product per token.

# %%
shares = results.load("token_dynamics/unequal_contribution")
unequal_contribution.plot(shares)

# %%
print(plain_text.claims_table(shares.claims))

# %% [markdown]
# With a positive matrix, the divergent scenario, they do: the right panel rises. In a free layer, which is mixed, the
# tokens that grow slowest have the largest shares, and those that grow fastest come second: what counts there is how
# fast a token moves, not where to.

# %% [markdown]
# ## Refinement 1: a matrix of one sign
#
# If convergence is bad, exclude it: make $M$ positive. But in a whole block the skip and the output projection can
# turn any sign, so that *negative* is *positive* written differently, and what can differ is where the training
# starts. The control starts *negative* from the turned signs; it must repeat *positive*.

# %%
signs = results.load("token_dynamics/scenario_text")
scenario_text.plot(signs)

# %%
print(plain_text.claims_table(signs.claims))

# %% [markdown]
# The control has the same losses as *positive* to the last bit. Between the signs there is little, and what there is
# points the other way than the paper has it; at this size nothing can be said for either.
#
# ## Refinement 2: tokens in the order of their importance
#
# SoftSort is a relaxed sort. At the temperature of the authors' code it is mostly an average: each sorted token is made
# of many, and what the recurrence reads is blurred. On 64 pixels that costs more than an order could bring.

# %%
orders = results.load("token_dynamics/reordering_digits")
reordering_digits.plot(orders)

# %%
print(plain_text.claims_table(orders.claims))

# %% [markdown]
# ## What remains
#
# The theory in one dimension is right, with constants to many digits. The step from there to Mamba is where it thins
# out: in more dimensions it is the symmetric part that decides, an ordinary layer is always mixed, and a whole block
# can undo any sign. That does not make the published gains wrong, which were measured on models a thousand times as
# large; it says that they are not explained by the scenario alone.
