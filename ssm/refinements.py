"""Two refinements of Mamba's mixer (arXiv 2410.03292), and the mixer without what their analysis leaves out.

With S_B and S_C (N, E) the columns of W_x that give B and C, transposed, M = S_C^T S_B is the input-output matrix. In
the continuous limit in depth its sign decides whether tokens converge to zero or diverge.

**Refinement 1** has M of a chosen sign. The kernel of W_x is made of a raw one of the same shape: with P (N, E) the
part of its S_B strictly above the diagonal, and ones on it, and d (N) the first column of its S_C,

    S_C = P,   S_B = diag(delta) P,   M = P^T diag(delta) P
    delta = softplus(d) + 0.7  ("positive"),   -softplus(d) - 0.7  ("negative"),
            softplus(d) with the sign + in the first half and - in the second  ("mixed")

M is symmetric, of rank N, with as many eigenvalues of each sign as delta has: semi-definite, not definite. The other
N (E - 1) raw entries of S_C and N (N + 1) / 2 of S_B get no gradient.

In a whole mixer the sign is no restriction (ours): its recurrence is odd in delta, so that `negative` with (D, W_out)
is `positive` with (-D, -W_out), exactly. `skip_init` is where D starts, 1 in Mamba: `negative` from -1 is the control.

**Refinement 2** sorts the tokens by importance before the recurrence, the most important last:

    s_l = K . (W_dt r_l + dt_bias)
    P_kl = softmax over l of -|s_l - s_(k)| / tau,   s_(1) <= ... <= s_(L)      SoftSort (arXiv 2006.16038)
    u <- P u,   then r, B and C of that

Both are as in the authors' code; the text of the paper was not at hand. That code leaves the gate in the old order and
adds what it computes to the residual stream in the new one: `permute_gate` and `unsort` mend it. A token then sees
those behind it, so the mixer is not causal and has no state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lightnet.backbone import Capabilities, partitioned
from lightnet.typing import Array
from ssm.initializers import uniform_init
from ssm.mamba import Mamba, MambaState, at_least_float32

SCENARIOS = ("positive", "negative", "mixed")
MARGIN = 0.7  # what |delta| exceeds in the authors' code, but for "mixed"


def signed_diagonal(raw: Array, scenario: str) -> Array:
    """The factor delta (N,) of M = P^T diag(delta) P; see the module.

    Args:
        raw: d (N,).
        scenario: the signs.

    Returns:
        (N,).

    Raises:
        ValueError: there is no such scenario.

    Example:
        >>> [float(f"{entry:.3f}") for entry in signed_diagonal(jnp.zeros(2), "mixed")]
        [0.693, -0.693]
    """
    size = jax.nn.softplus(raw)
    if scenario == "positive":
        return size + MARGIN
    if scenario == "negative":
        return -size - MARGIN
    if scenario == "mixed":
        return jnp.where(jnp.arange(len(raw)) < len(raw) // 2, size, -size)
    raise ValueError(f"scenario: got {scenario!r}, expected one of {', '.join(SCENARIOS)}")


def signed_kernel(raw: Array, states: int, scenario: str) -> Array:
    """The kernel of W_x whose input-output matrix has a chosen sign (refinement 1 of arXiv 2410.03292); see the module.

    Args:
        raw: (E, R + 2 N), columns for r, B and C.
        states: N, at most E.
        scenario: the signs of the eigenvalues of M.

    Returns:
        (E, R + 2 N): the columns for r as they are, then P^T diag(delta) and P^T.

    Raises:
        ValueError: there is no such scenario, or the kernel has too few rows or columns.

    Example:
        >>> kernel = signed_kernel(jnp.arange(15.0).reshape(3, 5), 2, "positive")
        >>> S_B, S_C = kernel[:, 1:3].T, kernel[:, 3:].T
        >>> S_C.tolist(), bool((jnp.linalg.eigvalsh(S_C.T @ S_B) > -1e-3).all())
        ([[1.0, 6.0, 11.0], [0.0, 1.0, 12.0]], True)
    """
    inner, features = raw.shape
    if not 0 < states <= min(inner, features // 2):
        expected = "expected at least 1, and at most its rows and half its columns"
        raise ValueError(f"states: got {states} for a kernel {list(raw.shape)}, {expected}")
    rank = features - 2 * states
    P = jnp.tril(raw[:, rank : rank + states], -1) + jnp.eye(inner, states, dtype=raw.dtype)  # transposed
    delta = signed_diagonal(raw[0, rank + states :], scenario)
    return jnp.concatenate([raw[:, :rank], P * delta[None], P], axis=1)


def softsort(scores: Array, tau: float = 1.0, *, hard: bool = False, mask: Array | None = None) -> Array:
    """A relaxed permutation that sorts in ascending order (SoftSort, arXiv 2006.16038, equation 6, with |.|).

    P_kl = softmax over l of -|s_l - s_(k)| / tau. Rows sum to 1, columns do not; as tau -> 0 it is the permutation.
    Masked tokens do not take part, and the real ones are sorted into the places that they have.

    Args:
        scores: s (..., L).
        tau: temperature, above 0.
        hard: the permutation itself, stable, with the gradient of the relaxed one.
        mask: (..., L), true at real tokens.

    Returns:
        (..., L, L); rows and columns of masked tokens are 0.

    Raises:
        ValueError: tau is not above 0.

    Example:
        >>> softsort(jnp.array([3.0, 1.0, 2.0]), 0.1).round(2).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if not tau > 0:
        raise ValueError(f"tau: got {tau}, expected a number above 0")
    real = jnp.ones(scores.shape, bool) if mask is None else mask
    scores = jnp.where(real, scores, 0)
    ascending = jnp.argsort(jnp.where(real, scores, jnp.inf), axis=-1)
    # The k-th of the sorted ones stands where the k-th real token does.
    place = jnp.maximum(jnp.cumsum(real, axis=-1) - 1, 0)
    ascending = jnp.take_along_axis(ascending, place, axis=-1)
    target = jnp.take_along_axis(scores, ascending, axis=-1)
    logits = -jnp.abs(scores[..., None, :] - target[..., :, None]) / tau
    lowest = jnp.finfo(logits.dtype).min
    soft = jax.nn.softmax(jnp.where(real[..., None, :], logits, lowest), axis=-1)
    if hard:
        soft = jax.nn.one_hot(ascending, scores.shape[-1], dtype=soft.dtype) + (soft - jax.lax.stop_gradient(soft))
    return jnp.where(real[..., None, :] & real[..., :, None], soft, 0)


@dataclass(frozen=True)
class TokenOrder:
    """How a mixer reorders its tokens; the defaults are what the authors' code does.

    Attributes:
        tau: temperature of SoftSort.
        hard: a permutation instead, with SoftSort's gradient.
        permute_gate: whether the gate is reordered as well.
        unsort: whether what comes out is brought back, by the transpose.
        random: seed of a fixed order: normal scores of the places, whatever the tokens are; None learns K.

    Raises:
        ValueError: tau is not above 0, or the seed is below it.

    Example:
        >>> TokenOrder(permute_gate=True, unsort=True).tau
        1.0
    """

    tau: float = 1.0
    hard: bool = False
    permute_gate: bool = False
    unsort: bool = False
    random: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.tau > 0:
            raise ValueError(f"order.tau: got {self.tau}, expected a number above 0")
        if self.random is not None and self.random < 0:
            raise ValueError(f"order.random: got {self.random}, expected a seed of at least 0, or None")


class SignedProjection(nn.Module):
    """W_x with an input-output matrix of a chosen sign: a dense layer with the kernel `signed_kernel(kernel)`.

    Attributes:
        features: R + 2 N.
        states: N.
        scenario: see `signed_kernel`.
        kernel_init: of the raw kernel (E, R + 2 N), the parameter.
        dtype: of the computation; None takes that of the inputs and parameters.

    Example:
        >>> layer = SignedProjection(5, 2, "positive", nn.initializers.ones)
        >>> y, _ = layer.init_with_output(jax.random.key(0), jnp.ones((1, 3)))
        >>> y[0, 3:].tolist()
        [3.0, 2.0]
    """

    features: int
    states: int
    scenario: str
    kernel_init: Callable[..., Any]
    dtype: Any = None

    @nn.compact
    def __call__(self, u: Array) -> Array:
        """(..., E) to (..., R + 2 N)."""
        raw = self.param("kernel", self.kernel_init, (u.shape[-1], self.features))
        kernel = signed_kernel(at_least_float32(raw), self.states, self.scenario).astype(raw.dtype)
        u, kernel = nn.dtypes.promote_dtype(u, kernel, dtype=self.dtype)
        return u @ kernel


class RefinedMamba(Mamba):
    """Mamba's mixer with the refinements of arXiv 2410.03292, or without parts; see the module.

    As it is by default it is `Mamba`, with the same parameters. Every scenario has as many. What SoftSort gives is
    found under "order" among the intermediates, where these are asked for.

    Attributes:
        scenario: sign of the input-output matrix; None leaves the projections free.
        skip_init: value that D starts from.
        order: how tokens are reordered; None leaves them as they are.
        convolution: whether there is the convolution with the SiLU behind it. The analysis has neither.
        gate: whether there is the branch z.
        skip: whether there is D.

    Example:
        >>> mixer = RefinedMamba(width=4, state_size=3, scenario="positive", gate=False)
        >>> (y, state), variables = jax.jit(mixer.init_with_output)(jax.random.key(0), jnp.ones((1, 5, 4)))
        >>> y.shape, variables["params"]["in_proj"]["kernel"].value.shape
        ((1, 5, 4), (4, 1, 8))
        >>> RefinedMamba(width=4, order=TokenOrder()).capabilities.causal
        False
    """

    scenario: str | None = None
    skip_init: float = 1.0
    order: TokenOrder | None = None
    convolution: bool = True
    gate: bool = True
    skip: bool = True

    def setup(self) -> None:
        """Declare the parameters."""
        super().setup()
        if self.order is not None and self.order.random is None:
            init = partitioned(uniform_init(self.inner**-0.5), "mlp")
            self.importance = self.param("importance", init, (self.inner,))

    @property
    def capabilities(self) -> Capabilities:
        """All of them, but with reordered tokens those of whole sequences only."""
        one_by_one = self.order is None
        return Capabilities(causal=one_by_one, state=one_by_one, step=one_by_one, segments=one_by_one, mask=True)

    def init_state(self, batch: int) -> MambaState:
        """The state before the first token.

        Raises:
            ValueError: the tokens are reordered.
        """
        self.require(state=True)
        state = super().init_state(batch)
        return state if self.convolution else state._replace(conv=state.conv[:, :0])

    def _check(self) -> None:
        super()._check()
        if self.scenario is None:
            return
        if self.scenario not in SCENARIOS:
            raise ValueError(f"scenario: got {self.scenario!r}, expected None or one of {', '.join(SCENARIOS)}")
        if self.state_size > self.inner:
            raise ValueError(f"state_size: got {self.state_size}, expected at most the {self.inner} inner channels")

    @property
    def _parts(self) -> int:
        return 1 + self.gate

    def _selection(self, features: int, kernel_init: Callable[..., Array]) -> nn.Module:
        if self.scenario is None:
            return super()._selection(features, kernel_init)
        return SignedProjection(features, self.state_size, self.scenario, kernel_init, self.dtype)

    def _declared_skip(self) -> Array | None:
        if not self.skip:
            return None
        return self.param("D", partitioned(nn.initializers.constant(self.skip_init), "mlp"), (self.inner,))

    def _branches(self, x: Array) -> tuple[Array, Array | None]:
        return super()._branches(x) if self.gate else (self.in_proj(x)[..., 0, :], None)

    def _convolved(self, u: Array, conv: Array | None, **per_token: Any) -> tuple[Array, Array]:
        if self.convolution:
            return super()._convolved(u, conv, **per_token)
        return u, at_least_float32(u[:, :0]) if conv is None else conv

    def _convolved_token(self, u: Array, conv: Array) -> tuple[Array, Array]:
        return super()._convolved_token(u, conv) if self.convolution else (u, conv)

    def _scanned(self, u: Array, z: Array | None, ssm: Array | None, **per_token: Any) -> tuple[Array, Array]:
        if self.order is None:
            return super()._scanned(u, z, ssm, **per_token)
        mask = per_token["mask"]
        P = softsort(self._scores(u, self.order, mask), self.order.tau, hard=self.order.hard, mask=mask)
        self.sow("intermediates", "order", P)
        u = reordered(P, u)
        if z is not None and self.order.permute_gate:
            z = reordered(P, z)
        y, ssm = super()._scanned(u, z, ssm, **per_token)
        return (reordered(P.mT, y) if self.order.unsort else y), ssm

    def _scores(self, u: Array, order: TokenOrder, mask: Array | None) -> Array:
        """Importance s (B, L) of each token, float32 at least."""
        if order.random is None:
            K = at_least_float32(self.importance)
            low = at_least_float32(self.x_proj(u)[..., : self.rank])
            return self.dt_proj(low) @ K + at_least_float32(self.dt_bias) @ K
        batch, length = u.shape[:2]
        drawn = jnp.broadcast_to(jax.random.normal(jax.random.key(order.random), (length,))[None], (batch, length))
        if mask is None:
            return drawn
        return jnp.take_along_axis(drawn, jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0), axis=1)


def reordered(P: Array, x: Array) -> Array:
    """P x along the length, in the precision of x.

    Args:
        P: (B, L, L).
        x: (B, L, E).

    Returns:
        (B, L, E).

    Example:
        >>> reordered(jnp.array([[[0.0, 1.0], [1.0, 0.0]]]), jnp.array([[[1.0], [2.0]]])).ravel().tolist()
        [2.0, 1.0]
    """
    return jnp.einsum("bkl,ble->bke", P.astype(x.dtype), x, precision="highest")
