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
# # S4, one equality at a time
#
# S4 (Gu, Goel and Ré, arXiv 2111.00396) is a linear state space model $h' = A h + B u$, $y = C h$ for each channel.
# It is trained as one long convolution and runs as a recurrence, and what makes the first fast is a chain of exact
# rewritings of $A$. Each step of the chain is below: a formula, the function of this project that computes it, and
# an assertion in double precision that both sides are the same.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from lightnet.scan.recurrence import Tokens
from ssm import dplr
from ssm.convolution import causal_convolution, dplr_kernel
from ssm.initializers import hippo_legs, legs_dplr, legs_normal_part, legs_pairs

jax.config.update("jax_enable_x64", True)
STATES, LENGTH = 32, 256


def largest_difference(a, b):
    """Over all entries, relative to the largest of them."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


def same(a, b, tolerance=1e-10):
    """Assert it, and say how closely."""
    difference = largest_difference(a, b)
    assert difference < tolerance, difference
    print(f"equal up to {tolerance:g}")


# %% [markdown]
# ## 1. A state that remembers: HiPPO-LegS
#
# $A_{nk} = -\sqrt{(2n+1)(2k+1)}$ below the diagonal and $-(n+1)$ on it, $B_n = \sqrt{2n+1}$. With this matrix the
# solution of $t\,h' = A h + B u$ holds the Legendre coefficients of the whole past of $u$. Take $u(t) = t^3$: its
# past at time $t$ is $t^3$ times that at time 1, so the coefficients $c$ must satisfy $3 c = A c + B$.

# %%
A, B = hippo_legs(STATES)
nodes, weights = np.polynomial.legendre.leggauss(STATES)
polynomials = np.polynomial.legendre.legvander(nodes, STATES - 1) * np.sqrt(2 * np.arange(STATES) + 1)
c = polynomials.T @ (weights / 2 * ((nodes + 1) / 2) ** 3)
same(A @ c + B, 3 * c)

# %% [markdown]
# ## 2. Normal plus low-rank
#
# $A$ itself cannot be diagonalised in practice: its eigenvectors are nearly dependent. But $S = A + p p^\top$ with
# $p_n = \sqrt{n + 1/2}$ is normal, because $S + 1/2$ is skew.

# %%
assert np.linalg.cond(np.linalg.eig(A)[1]) > 1e12
S, p = legs_normal_part(STATES)
same(S + S.T, -np.eye(STATES))
same(S @ S.T, S.T @ S)
same(S - np.outer(p, p), A)

# %% [markdown]
# ## 3. Diagonal plus low-rank
#
# So $S = V \Lambda V^*$ with a unitary $V$, and $A = V (\Lambda - P P^*) V^*$ with $P = V^* p$. All real parts of
# $\Lambda$ are $-1/2$, and the imaginary parts come in pairs: one of each is enough, with $2\,\mathrm{Re}$ where all
# states are summed.

# %%
Lambda, P, rotated, V = legs_dplr(STATES)
same(V @ (np.diag(Lambda) - np.outer(P, P.conj())) @ V.conj().T, A)
half = legs_pairs(STATES)
same(2 * (half.V @ half.B).real, B)

# %% [markdown]
# A model has this $A$ in every channel, and a step size and a readout of its own in each. Here are three channels
# with random readouts.

# %%
steps = jnp.array([0.003, 0.01, 0.03])
random = np.random.default_rng(0)
C = random.standard_normal((3, STATES // 2, 2)) @ [1, 1j]
continuous = dplr.DPLR(*(jnp.tile(z, (3, 1)) for z in (half.Lambda, half.P, half.B)), jnp.asarray(C))

# %% [markdown]
# ## 4. Discrete, without a matrix
#
# The bilinear transition is $\bar A = (1 - \tfrac{\Delta}{2} A)^{-1} (1 + \tfrac{\Delta}{2} A)$ and
# $\bar B = (1 - \tfrac{\Delta}{2} A)^{-1} \Delta B$. By Woodbury's identity $\bar A$ is diagonal plus a rank of one
# again, so that a step of the recurrence is of order $N$ and not $N^2$.

# %%
dense_A, dense_B, dense_C = dplr.dense_matrices(continuous)
transition, drive = dplr.dense_bilinear(dense_A, dense_B, steps)
discrete = dplr.bilinear_dplr(continuous, steps)
h = jnp.asarray(random.standard_normal((3, STATES // 2, 2)) @ [1, 1j])
u = jnp.ones(3)
full = jnp.concatenate([h, h.conj()], axis=1)
expected = jnp.einsum("dmn,dn->dm", transition, full) + drive
same(dplr.advance(discrete, h, u), expected[:, : STATES // 2])

# %% [markdown]
# ## 5. The kernel: powers, or a generating function
#
# From a state of zero, $y = K * u$ with $K_l = C^* \bar A^l \bar B$. The definition multiplies by $\bar A$ again and
# again. S4 evaluates the generating function $\sum_{l<L} K_l z^l = \tilde C^* (1 - z \bar A)^{-1} \bar B$ at the $L$
# roots of unity instead, where it is four Cauchy sums over $\Lambda$ and Woodbury once more, and transforms back.
# The sum ends after $L$ terms because of $\tilde C = (1 - \bar A^L)^* C$.

# %%
by_powers = dplr.kernel_by_powers(transition, drive, dense_C, LENGTH)
kernel = jax.jit(dplr_kernel, static_argnums=2)(continuous, steps, LENGTH)
same(kernel, by_powers)

fig, axes = plt.subplots(1, 3, figsize=(10, 2.6), constrained_layout=True)
for ax, step, found, defined in zip(axes, steps, kernel, by_powers, strict=True):
    ax.plot(defined, color="0.75", lw=4, label="powers of the transition")
    ax.plot(found, color="C0", lw=1, label="generating function")
    ax.set(title=f"step {float(step):g}", xlabel="lag")
axes[0].set_ylabel("kernel")
axes[0].legend(frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# At $z = -1$, which is a root of unity for every even length, the published formula is infinity times zero. Written
# with its common factor divided out it is finite, so that single precision keeps its digits there too.

# %%
narrow = jax.tree.map(lambda x: x.astype(jnp.complex64), continuous)
single = dplr_kernel(narrow, steps.astype(jnp.float32), LENGTH)
assert single.dtype == jnp.float32
same(single, by_powers, 1e-4)

# %% [markdown]
# ## 6. Convolution is recurrence
#
# The Fourier transform of the kernel and the input, both padded to $2L$ so that nothing wraps around, gives what the
# recurrence gives token by token.

# %%
signal = jnp.asarray(np.cumsum(random.standard_normal((1, LENGTH, 3)), axis=1) / 10)
convolved = causal_convolution(signal, kernel)
start = jnp.zeros((1, 3, STATES // 2), complex)
stepped, last = jax.jit(dplr.recurrence)(discrete, signal, start, Tokens(None, None))
same(convolved, stepped)

fig, axes = plt.subplots(1, 3, figsize=(10, 2.6), constrained_layout=True)
for ax, step, one, other in zip(axes, steps, stepped[0].T, convolved[0].T, strict=True):
    ax.plot(one, color="0.75", lw=4, label="recurrence")
    ax.plot(other, color="C1", lw=1, label="convolution")
    ax.set(title=f"step {float(step):g}", xlabel="token")
axes[0].set_ylabel("output")
axes[0].legend(frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# A state in the middle is all that the rest of the sequence needs.

# %%
first, middle = dplr.recurrence(discrete, signal[:, :100], start, Tokens(None, None))
second, end = dplr.recurrence(discrete, signal[:, 100:], middle, Tokens(None, None))
same(jnp.concatenate([first, second], axis=1), convolved)
same(end, last)

# %% [markdown]
# ## 7. Conversion: a readout for every length
#
# Some implementations learn $\tilde C$. It belongs to one length: read as the readout for another, it is another
# model, without any error. The parameter here is $C$, and $\tilde C$ is made for the length at hand. A readout
# learned for one length converts to $C$ by a linear system, and then fits every other.

# %%
learned = dplr.truncated_readout(discrete, LENGTH)
converted = dplr.untruncated_readout(discrete, learned, LENGTH)
same(converted, continuous.C)
same(dplr_kernel(continuous._replace(C=converted), steps, 2 * LENGTH)[:, :LENGTH], by_powers)

wrong = dplr.untruncated_readout(discrete, learned, LENGTH // 4)
mistaken = dplr_kernel(continuous._replace(C=wrong), steps, LENGTH)
print(f"taken for one of length {LENGTH // 4}: kernels differ by {largest_difference(mistaken, by_powers):.0%}")

fig, ax = plt.subplots(figsize=(5, 2.6), constrained_layout=True)
ax.plot(by_powers[0], color="0.75", lw=4, label="readout of its own length")
ax.plot(mistaken[0], color="C3", lw=1, label=f"taken for one of length {LENGTH // 4}")
ax.set(xlabel="lag", ylabel="kernel", title="step 0.003")
ax.legend(frameon=False, fontsize="small")
plt.show()
