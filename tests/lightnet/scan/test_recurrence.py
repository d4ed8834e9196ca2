"""The dispatcher, and what segments and masks mean for a recurrence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.scan.recurrence import Recurrence, choices, dispatch, only_real, tokens_of


def named(name):
    """An implementation that says in its output which one ran."""
    return lambda operands, state, tokens, **options: (operands + len(name) + options.get("add", 0), state)


PLAIN = Recurrence("plain", reference=named("r"), xla=named("xl"))
SMALL_ONLY = Recurrence(
    "small_only",
    reference=named("r"),
    xla=named("xl"),
    kernels={"tpu": named("tpu"), "cpu": named("four")},
    refusal=lambda platform, operands: "operands above 1" if float(operands.max()) > 1 else None,
)
ZERO, NO_TOKENS = jnp.zeros(2), tokens_of(None, None)


def run(recurrence, implementation, operands=ZERO, **options):
    return dispatch(recurrence, implementation, operands, ZERO, NO_TOKENS, **options)[0][0]


def test_a_name_is_honoured():
    assert run(PLAIN, "reference") == 1
    assert run(PLAIN, "xla") == 2
    assert run(PLAIN, None) == 2
    assert run(PLAIN, "xla", add=5) == 7


def test_the_kernel_of_the_platform_that_is_lowered_for_is_the_default():
    assert run(SMALL_ONLY, None) == 4
    assert run(SMALL_ONLY, "pallas", add=5) == 9
    assert run(SMALL_ONLY, "pallas_interpret") == 3
    assert run(SMALL_ONLY, None, ZERO + 2) == 4  # a refused operand: 2 + the two letters of "xl"
    assert jax.jit(lambda x: dispatch(PLAIN, None, x, ZERO, NO_TOKENS)[0])(ZERO)[0] == 2


@pytest.mark.parametrize("implementation", ["cuda", "", "Reference"])
def test_an_unknown_name_is_refused_with_the_known_ones(implementation):
    with pytest.raises(ValueError, match=f"got '{implementation}', expected None or one of reference, xla, pallas"):
        run(PLAIN, implementation)


@pytest.mark.parametrize("implementation", ["pallas", "pallas_interpret"])
def test_a_name_that_cannot_be_honoured_is_refused_with_the_reason(implementation):
    with pytest.raises(ValueError, match=r"plain here .*tpu: there is no kernel.*expected None, 'reference' or 'xla'"):
        run(PLAIN, implementation)
    with pytest.raises(ValueError, match="tpu: operands above 1"):
        run(SMALL_ONLY, implementation, ZERO + 2)


def test_choices_say_what_runs_where_and_why():
    assert set(choices(PLAIN)) == {"cpu", "cuda", "tpu"}
    assert choices(PLAIN)["tpu"] == ("xla", "there is no kernel for this platform")
    assert choices(SMALL_ONLY)["tpu"][0] == "pallas"
    assert choices(SMALL_ONLY, ZERO + 2)["tpu"] == ("xla", "operands above 1")
    assert choices(SMALL_ONLY, ZERO)["cuda"][0] == "xla"


def begins_by_hand(ids, mask):
    """For one row, false at each real token whose id is another than the last real token's."""
    keep, previous = [], None
    for token, real in zip(ids, mask, strict=True):
        keep.append(not (real and previous is not None and token != previous))
        previous = token if real else previous
    return keep


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_runs_begin_where_a_loop_over_tokens_says(length, reverse, masked):
    random = np.random.default_rng(length)
    ids, mask = random.integers(-1, 2, (40, length)), random.random((40, length)) < (0.7 if masked else 2)
    order = slice(None, None, -1 if reverse else 1)
    expected = [begins_by_hand(i[order], m[order])[order] for i, m in zip(ids, mask, strict=True)]
    tokens = tokens_of(jnp.asarray(ids), jnp.asarray(mask) if masked else None, reverse=reverse)
    np.testing.assert_array_equal(tokens.keep, expected)
    assert (tokens.real is not None) == masked


def test_without_segments_nothing_begins():
    mask = jnp.array([[True, False]])
    assert tokens_of(None, mask).keep is None
    np.testing.assert_array_equal(tokens_of(None, mask).real, mask)


def test_what_a_masked_token_contains_reaches_neither_value_nor_gradient():
    mask = jnp.array([[True, False, True]])
    x = jnp.array([[[1.0], [jnp.nan], [3.0]]])
    tokens = tokens_of(None, mask)
    value, gradient = jax.value_and_grad(lambda x: (only_real(tokens, x)[0] ** 2).sum())(x)
    assert value == 10
    np.testing.assert_array_equal(gradient[0, :, 0], [2, 0, 6])


def test_only_real_passes_none_and_other_kinds_of_arrays():
    count, nothing = only_real(tokens_of(None, jnp.array([[True, False]])), jnp.array([[3, 4]]), None)
    assert count.tolist() == [[3, 0]]
    assert nothing is None
    assert only_real(tokens_of(None, None), ZERO)[0] is ZERO
