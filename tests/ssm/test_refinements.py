"""The refinements of Mamba: signs of the input-output matrix, SoftSort, and the mixer against a loop over tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm import Architecture, Mamba, RefinedMamba, TokenOrder, mamba_lm, save_pretrained
from ssm.models import architecture_of
from ssm.refinements import SCENARIOS, signed_diagonal, signed_kernel, softsort
from tests.ssm.draws import randomised

WIDTH, LENGTH, STATES = 5, 7, 4
INNER, RANK = 2 * WIDTH, 2
MENDED = {"permute_gate": True, "unsort": True}
compiled_sort = jax.jit(softsort, static_argnames=("tau", "hard"))


def drawn_kernel(seed=0, inner=INNER, states=STATES):
    return np.random.default_rng(seed).standard_normal((inner, RANK + 2 * states))


def selection(kernel, states=STATES):
    """S_B and S_C (N, E) of a kernel."""
    return np.split(np.asarray(kernel, np.float64).T[-2 * states :], 2)


def authors_selection(kernel, scenario, states=STATES):
    """S_B and S_C entry by entry, from the raw weights as (rows, E)."""
    raw = kernel.T
    S_B, S_C = np.zeros((2, states, raw.shape[1]))
    for n in range(states):
        d = np.log1p(np.exp(raw[-states + n, 0]))
        delta = {"positive": d + 0.7, "negative": -d - 0.7, "mixed": d if n < states // 2 else -d}[scenario]
        for e in range(n, raw.shape[1]):
            S_C[n, e] = raw[-2 * states + n, e] if e > n else 1
            S_B[n, e] = delta * S_C[n, e]
    return S_B, S_C


@pytest.mark.parametrize(("scenario", "positive"), [("positive", 4), ("negative", 0), ("mixed", 2)])
def test_the_input_output_matrix_has_the_signs_that_were_asked_for(scenario, positive):
    with jax.enable_x64(True):
        raw = drawn_kernel()
        kernel = signed_kernel(jnp.asarray(raw), STATES, scenario)
        S_B, S_C = selection(kernel)
        for found, expected in zip((S_B, S_C), authors_selection(raw, scenario), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-15)
        np.testing.assert_array_equal(kernel[:, :RANK], raw[:, :RANK])
        M = S_C.T @ S_B
        scale = np.abs(M).max()
        np.testing.assert_allclose(M, M.T, rtol=0, atol=1e-14 * scale)
        assert np.linalg.matrix_rank(M) == STATES
        eigenvalues = np.linalg.eigvalsh(M)
        counts = [(eigenvalues > 1e-12 * scale).sum(), (eigenvalues < -1e-12 * scale).sum()]
        assert counts == [positive, STATES - positive]


def test_the_diagonal_factor_keeps_its_distance_from_zero_but_if_mixed():
    d = jnp.linspace(-30.0, 5.0, 7)
    assert (signed_diagonal(d, "positive") >= 0.7).all() and signed_diagonal(d[3:], "positive").min() > 0.7
    np.testing.assert_array_equal(signed_diagonal(d, "negative"), -signed_diagonal(d, "positive"))
    assert np.sign(signed_diagonal(d, "mixed")).tolist() == [1, 1, 1, -1, -1, -1, -1]
    assert np.abs(signed_diagonal(d, "mixed")).min() < 1e-12


@pytest.mark.parametrize(
    "scenario", ["positive", *(pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS[1:])]
)
def test_dead_entries_have_no_gradient_and_all_others_do(scenario):
    mixer, x = (
        RefinedMamba(WIDTH, STATES, dt_rank=RANK, scenario=scenario),
        jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH)),
    )
    params = randomised(mixer, x)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(mixer.apply({"params": p}, x)[0]))))(params)
    _, raw_B, raw_C = np.split(gradient["x_proj"]["kernel"] != 0, [RANK, RANK + STATES], axis=1)
    np.testing.assert_array_equal(raw_B, np.arange(INNER)[:, None] > np.arange(STATES))
    assert raw_C[0].all() and not raw_C[1:].any()
    dead = 2 * INNER * STATES - raw_B.sum() - raw_C.sum()
    assert dead == STATES * (INNER - 1) + STATES * (STATES + 1) // 2


def test_negative_is_positive_with_the_signs_of_skip_and_output_turned():
    x = jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH))
    negative, positive = (RefinedMamba(WIDTH, STATES, scenario=sign) for sign in ("negative", "positive"))
    params = randomised(negative, x)
    turned = {**params, "D": -params["D"], "out_proj": {"kernel": -params["out_proj"]["kernel"]}}
    y, state = jax.jit(negative.apply)({"params": params}, x)
    other, after = jax.jit(positive.apply)({"params": turned}, x)
    np.testing.assert_array_equal(y, other)
    np.testing.assert_array_equal(state.ssm, -after.ssm)
    assert np.abs(y - jax.jit(positive.apply)({"params": params}, x)[0]).max() > 1e-2


def silu(x):
    return x / (1 + np.exp(-x))


def by_hand(mixer, p, x):
    """The mixer for one sequence (L, D), token by token."""
    branches = np.moveaxis(np.einsum("ld,dpe->lpe", x, p["in_proj"]["kernel"]), 1, 0)
    u = branches[0]
    if mixer.convolution:
        taps = p["conv1d"]["kernel"]
        past = [sum(taps[-1 - j] * u[t - j] for j in range(min(t + 1, len(taps)))) for t in range(len(u))]
        u = silu(np.stack(past) + p["conv1d"]["bias"])
    kernel = p["x_proj"]["kernel"]
    low = kernel[:, : mixer.rank]
    S_B, S_C = selection(kernel) if mixer.scenario is None else authors_selection(kernel, mixer.scenario)
    P = np.eye(len(u))
    if mixer.order is not None:
        scores = (u @ low @ p["dt_proj"]["kernel"] + p["dt_bias"]) @ p["importance"]
        for k, target in enumerate(np.sort(scores)):
            weights = np.exp(-np.abs(scores - target) / mixer.order.tau)
            P[k] = weights / weights.sum() if not mixer.order.hard else scores == target
    u, h, ys = P @ u, np.zeros((mixer.inner, STATES)), []
    for v in u:
        dt = np.log1p(np.exp(v @ low @ p["dt_proj"]["kernel"] + p["dt_bias"]))
        h = np.exp(-dt[:, None] * np.exp(p["A_log"])) * h + np.outer(dt * v, S_B @ v)
        ys.append(h @ (S_C @ v) + (p["D"] * v if mixer.skip else 0))
    y = np.stack(ys)
    if mixer.gate:
        y = y * silu(P @ branches[1] if mixer.order is not None and mixer.order.permute_gate else branches[1])
    if mixer.order is not None and mixer.order.unsort:
        y = P.T @ y
    return y @ p["out_proj"]["kernel"]


@pytest.mark.parametrize(
    "options",
    [
        {"scenario": "mixed", "convolution": False, "skip": False},
        {"order": TokenOrder(tau=0.7, **MENDED), "gate": False},
        pytest.param({"order": TokenOrder()}, marks=pytest.mark.slow),
        pytest.param({"order": TokenOrder(hard=True, unsort=True)}, marks=pytest.mark.slow),
        pytest.param({"order": TokenOrder(tau=0.3, permute_gate=True), "scenario": "negative"}, marks=pytest.mark.slow),
    ],
)
def test_equals_the_loop_over_tokens(options):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))
        mixer = RefinedMamba(WIDTH, STATES, dt_rank=RANK, **options)
        params = randomised(mixer, x)
        y, state = jax.jit(mixer.apply)({"params": params}, x)
        for row in range(2):
            expected = by_hand(mixer, params, x[row])
            np.testing.assert_allclose(y[row], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
        assert (state is None) == (mixer.order is not None)


def test_unrefined_it_is_mamba():
    x = jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH))
    plain, refined = Mamba(WIDTH, STATES), RefinedMamba(WIDTH, STATES)
    params = {"params": randomised(plain, x)}
    for method, arguments in [("init", (jax.random.key(3), x)), ("apply", (params, x))]:
        same, program = (str(jax.make_jaxpr(getattr(mixer, method))(*arguments)) for mixer in (refined, plain))
        assert same == program


def test_every_scenario_has_the_parameters_of_mamba_and_its_skip_starts_where_it_is_told():
    def shapes(mixer):
        return jax.tree.map(
            jnp.shape, nn.unbox(jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 1, WIDTH))))
        )

    for scenario in SCENARIOS:
        assert shapes(RefinedMamba(WIDTH, STATES, scenario=scenario)) == shapes(Mamba(WIDTH, STATES))
    control = RefinedMamba(WIDTH, STATES, scenario="negative", skip_init=-1.0)
    params = nn.unbox(jax.jit(control.init)(jax.random.key(0), jnp.zeros((1, 1, WIDTH))))["params"]
    np.testing.assert_array_equal(params["D"], -np.ones(INNER))
    bare = shapes(RefinedMamba(WIDTH, STATES, convolution=False, gate=False, skip=False))["params"]
    assert set(bare) == {"A_log", "dt_bias", "dt_proj", "in_proj", "out_proj", "x_proj"}
    assert bare["in_proj"]["kernel"] == (WIDTH, 1, INNER)


def test_softsort_is_a_sort_as_the_temperature_goes_to_zero():
    with jax.enable_x64(True):
        scores = jnp.asarray(np.random.default_rng(0).standard_normal((3, 9)))
        soft = compiled_sort(scores, 1.0)
        np.testing.assert_allclose(soft.sum(axis=-1), 1, rtol=1e-14)
        assert np.abs(soft.sum(axis=-2) - 1).max() > 0.05
        np.testing.assert_array_equal(soft.argmax(axis=-1), np.argsort(scores, axis=-1))
        for sharp in (compiled_sort(scores, 1e-5), compiled_sort(scores, 1.0, hard=True)):
            np.testing.assert_allclose(sharp, np.eye(9)[np.argsort(scores, axis=-1)], atol=1e-12)
        np.testing.assert_allclose(compiled_sort(jnp.ones((2, 9)), 0.3), 1 / 9, rtol=1e-14)
        np.testing.assert_array_equal(compiled_sort(jnp.ones(9), hard=True), np.eye(9))
        moved = np.random.default_rng(1).permutation(9)
        np.testing.assert_allclose(compiled_sort(scores[:, moved]), soft[..., moved], rtol=1e-13)


@pytest.mark.slow
def test_hard_softsort_has_the_gradient_of_the_soft_one():
    scores, weights = jnp.array([0.3, -1.0, 0.8, 0.2]), jax.random.normal(jax.random.key(0), (4, 4))
    hard, soft = (
        jax.grad(lambda s, hard=hard: jnp.sum(weights * compiled_sort(s, 0.5, hard=hard)))(scores)
        for hard in (True, False)
    )
    np.testing.assert_array_equal(hard, soft)
    assert np.abs(soft).min() > 1e-3


@pytest.mark.parametrize("hard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_masked_tokens_are_not_sorted_and_have_no_gradient(hard):
    mask = jnp.array([[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
    scores = jnp.asarray(np.where(mask, [9.0, 0.5, 9.0, -0.2, 0.1, 9.0], np.nan))
    found = compiled_sort(scores, 0.5, hard=hard, mask=mask)
    alone = compiled_sort(jnp.array([0.5, -0.2, 0.1]), 0.5, hard=hard)
    expected = np.zeros((6, 6))
    expected[np.ix_(mask[0], mask[0])] = alone
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[1], 0)
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 6)))
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(weights * softsort(s, 0.5, hard=hard, mask=mask))))(scores)
    assert np.isfinite(gradient).all() and (gradient[~mask] == 0).all() and np.abs(gradient[0][mask[0]]).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, MENDED])
def test_tokens_in_ascending_order_stay_where_they_are(flags):
    """Without a convolution the importance of a token does not depend on its place."""
    sorting, plain = (
        RefinedMamba(WIDTH, STATES, convolution=False, order=order) for order in (TokenOrder(tau=1e-7, **flags), None)
    )
    x = jax.random.normal(jax.random.key(1), (1, LENGTH, WIDTH))
    params = randomised(sorting, x)
    u = np.asarray(x[0]) @ params["in_proj"]["kernel"][:, 0]
    steps = u @ params["x_proj"]["kernel"][:, : sorting.rank] @ params["dt_proj"]["kernel"]
    order = np.argsort(steps @ params["importance"])
    assert order.tolist() != sorted(order)
    in_order = {"params": {name: leaf for name, leaf in params.items() if name != "importance"}}
    expected, _ = jax.jit(plain.apply)(in_order, x[:, order])
    y, _ = jax.jit(sorting.apply)({"params": params}, x[:, order])
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    y, _ = jax.jit(sorting.apply)({"params": params}, x)
    if flags:  # the whole mixer in the new order, and back
        expected = expected[:, np.argsort(order)]
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    else:
        assert np.abs(y - expected).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.slow
def test_a_random_order_is_that_of_its_seed_and_learns_no_scores():
    x = jax.random.normal(jax.random.key(1), (1, LENGTH, WIDTH))
    first, other = (RefinedMamba(WIDTH, STATES, order=TokenOrder(hard=True, random=seed, **MENDED)) for seed in (0, 1))
    params = {"params": randomised(first, x)}
    assert "importance" not in params["params"]
    drawn = [np.argsort(jax.random.normal(jax.random.key(seed), (LENGTH,))) for seed in (0, 1)]
    assert drawn[0].tolist() != drawn[1].tolist()
    plain = Mamba(WIDTH, STATES)
    still = {"params": {**params["params"], "conv1d": {"kernel": np.eye(4, INNER) * 0, "bias": np.ones(INNER)}}}
    still["params"]["conv1d"]["kernel"][-1] = 1
    for mixer, order in zip((first, other), drawn, strict=True):
        expected = jax.jit(plain.apply)(still, x[:, order])[0][:, np.argsort(order)]
        y, _ = jax.jit(mixer.apply)(still, x)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.slow
def test_gradients_reach_the_importance_and_are_finite():
    x = jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH))
    mixer = RefinedMamba(WIDTH, STATES, order=TokenOrder(hard=True))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(mixer.apply({"params": p}, x)[0]))))(randomised(mixer, x))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_what_makes_no_sense_raises():
    x = jnp.zeros((1, 3, WIDTH))
    for options, message in [
        ({"scenario": "up"}, "scenario: got 'up', expected None or one of positive, negative, mixed"),
        ({"scenario": "mixed", "state_size": 11}, "state_size: got 11, expected at most the 10 inner channels"),
        ({"state_size": 0}, "state_size: got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(RefinedMamba(WIDTH, **options).init, jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"states: got 3 for a kernel \[2, 7\]"):
        signed_kernel(jnp.zeros((2, 7)), 3, "mixed")
    with pytest.raises(ValueError, match="tau: got -1.0, expected a number above 0"):
        softsort(jnp.zeros(2), -1.0)
    with pytest.raises(ValueError, match="scenario: got 'free', expected one of positive, negative, mixed"):
        signed_diagonal(jnp.zeros(2), "free")
    for options, message in [({"tau": 0.0}, "order.tau: got 0.0"), ({"random": -1}, "order.random: got -1")]:
        with pytest.raises(ValueError, match=message):
            TokenOrder(**options)


def test_a_language_model_of_it_is_built_and_not_written_in_the_layout_of_mamba(tmp_path):
    model = mamba_lm(Architecture(RefinedMamba(WIDTH, STATES, scenario="positive"), vocab_size=11, num_layers=2))
    assert model.backbone.mixer(width=WIDTH).scenario == "positive"
    with pytest.raises(ValueError, match="mixer is RefinedMamba, this layout has Mamba and Mamba2 only"):
        architecture_of(model)
    with pytest.raises(ValueError, match="mixer is RefinedMamba"):
        save_pretrained(tmp_path, model, {})
