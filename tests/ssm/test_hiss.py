"""HiSS: what an output may depend on, the flat model that it is with chunks of one, padding, packing, streaming."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.backbone import Backbone, Capabilities, Mixer
from lightnet.mixers import SoftmaxAttention
from ssm import S4, HiSS, HiSSState, Mamba

BATCH, CHUNKS, RATIO, CHANNELS, TARGETS = 2, 4, 3, 5, 2
STEPS = {"dt_min": 0.3, "dt_max": 1.0, "out_scale": 0.4}  # so that much of a state is new and little of it is lost
SMALL_MAMBA = partial(Mamba, state_size=3)
ATTENTION = partial(SoftmaxAttention, num_heads=2, max_length=16)
BOTH_WAYS = partial(SoftmaxAttention, num_heads=2, causal=False)


class RunningSum(Mixer):
    """y_t = x_1 + ... + x_t, without parameters, so that a model can be computed by hand."""

    width: int
    out_scale: float = 0.02
    dtype: object = None

    @property
    def capabilities(self):
        return Capabilities(causal=True, state=False, step=False, segments=False, mask=False)

    def __call__(self, x, state=None, *, segment_ids=None, mask=None):
        self.require(state=state is not None, segments=segment_ids is not None, mask=mask is not None)
        return jnp.cumsum(x, axis=1), None


def stack(mixer, width=6):
    steps = {} if mixer in (ATTENTION, BOTH_WAYS, RunningSum) else STEPS
    # The options given here come last: the backbone's scale of small initial values would hide what is tested.
    return Backbone(lambda **given: mixer(**{**given, **steps}), num_layers=1, width=width, mlp_ratio=0)


@cache
def made(low=SMALL_MAMBA, high=ATTENTION, ratio=RATIO):
    """A model, its variables and samples."""
    model = HiSS(stack(low), stack(high, 8), TARGETS, ratio)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((BATCH, CHUNKS * RATIO, CHANNELS)), jnp.float32)
    return model, nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), x)), x


def apply(model, variables, *arguments, **options):
    return jax.jit(partial(model.apply, variables))(*arguments, **options)


def close(actual, expected):
    """Equal up to float32 rounding."""
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


def test_the_equations_by_hand():
    model, variables, x = made(RunningSum, RunningSum)
    params = jax.tree.map(np.asarray, variables["params"])

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    expected = np.zeros((BATCH, CHUNKS, TARGETS))
    for row in range(BATCH):
        features = []
        for chunk in range(CHUNKS):
            e = dense("embed", np.asarray(x[row, chunk * RATIO : (chunk + 1) * RATIO]))
            features.append(dense("connect", norm(e[-1] + norm(e).sum(axis=0))))  # the residual block, at its end
            f = np.stack(features)
            expected[row, chunk] = dense("head", norm(f[-1] + norm(f).sum(axis=0)))
    close(model.apply(variables, x), expected)
    assert params["embed"]["bias"].std() > 0.3  # from which the size of a sample is known behind a norm


def test_a_prediction_does_not_depend_on_later_chunks_to_the_bit_and_does_on_its_own():
    model, variables, x = made()
    whole = apply(model, variables, x)
    for chunk in range(1, CHUNKS):
        poisoned = x.at[:, chunk * RATIO :].multiply(-100.0)
        assert (apply(model, variables, poisoned)[:, :chunk] == whole[:, :chunk]).all()
        last = x.at[:, (chunk + 1) * RATIO - 1].add(1.0)  # the last sample of a chunk counts already in its own
        changed = np.abs(apply(model, variables, last) - whole).max(axis=(0, 2))
        assert (changed[:chunk] == 0).all() and changed[chunk] > 1e-3


def test_gradients_with_respect_to_later_chunks_are_exactly_zero():
    model, variables, x = made()
    gradient = jax.jit(jax.grad(lambda x: model.apply(variables, x)[:, 1].sum()))(x)
    assert (gradient[:, 2 * RATIO :] == 0).all() and (jnp.abs(gradient[:, : 2 * RATIO]).max(axis=(0, 2)) > 0).all()


def test_every_chunk_starts_from_an_empty_state():
    model, variables, x = made()
    alone = jnp.broadcast_to(jnp.arange(CHUNKS)[None], (BATCH, CHUNKS))  # the upper level sees single chunks
    whole = apply(model, variables, x, segment_ids=alone)
    other = apply(model, variables, x.at[:, :RATIO].multiply(-100.0), segment_ids=alone)
    assert (other[:, 1:] == whole[:, 1:]).all()
    order = jnp.array([2, 0, 3, 1])
    shuffled = x.reshape(BATCH, CHUNKS, RATIO, CHANNELS)[:, order].reshape(x.shape)
    close(apply(model, variables, shuffled, segment_ids=alone), whole[:, order])


def test_with_one_sample_per_chunk_it_is_the_flat_model_of_both_stacks():
    model, variables, x = made(ratio=1)
    params, length = variables["params"], x.shape[1]
    alone = jnp.broadcast_to(jnp.arange(length)[None], x.shape[:2])  # the lower level sees single samples

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"][None, None]

    def flat(x):
        low, _ = model.low.apply({"params": params["low"]}, dense("embed", x), segment_ids=alone)
        high, _ = model.high.apply({"params": params["high"]}, dense("connect", low))
        return dense("head", high)

    assert apply(model, variables, x).shape == (BATCH, length, TARGETS)
    close(apply(model, variables, x), jax.jit(flat)(x))


def test_padding_on_both_sides_and_a_partial_last_chunk():
    model, variables, x = made()
    short = x[:, : 2 * RATIO + 1]
    padding = jnp.full((BATCH, 2 * RATIO - 1, CHANNELS), jnp.nan)
    padded = jnp.concatenate([short, padding], axis=1)
    mask = jnp.arange(padded.shape[1]) < short.shape[1]
    mask = jnp.broadcast_to(mask[None], (BATCH, padded.shape[1]))
    y = apply(model, variables, padded, mask=mask)
    close(y[:, :2], apply(model, variables, x)[:, :2])
    assert (y[:, 3] == 0).all()
    # The chunk of one sample: what the lower level says of that sample as a chunk of its own.
    of_one = HiSS(model.low, model.high, TARGETS, 1)
    one = of_one.apply(variables, short[:, -1:], jnp.ones((BATCH, 1, 1), bool), method=_features)
    first = model.apply(variables, x[:, : 2 * RATIO], None, method=_features)
    behind = jnp.concatenate([padding[:, : RATIO - 1], short[:, -1:]], axis=1)  # the same, with padding before it
    mask_behind = jnp.broadcast_to((jnp.arange(RATIO) == RATIO - 1)[None], (BATCH, RATIO))
    close(model.apply(variables, behind, mask_behind, method=_features), one)
    features = jnp.concatenate([first.reshape(BATCH, 2, -1), one.reshape(BATCH, 1, -1)], axis=1)
    close(y[:, :3], model.apply(variables, features, method=lambda model, f: model._targets(model.high(f)[0])))
    # Left padding of whole chunks
    left = jnp.concatenate([jnp.full((BATCH, RATIO, CHANNELS), jnp.nan), x], axis=1)
    real = jnp.broadcast_to((jnp.arange(left.shape[1]) >= RATIO)[None], left.shape[:2])
    close(apply(model, variables, left, mask=real)[:, 1:], apply(model, variables, x))


def _features(model, x, mask):
    rows = x.reshape(-1, model.freq_ratio, x.shape[-1])
    return model._of_chunks(rows, None if mask is None else mask.reshape(-1, model.freq_ratio))


def test_nothing_comes_back_from_masked_samples():
    model, variables, x = made()
    mask = jnp.broadcast_to((jnp.arange(x.shape[1]) < 2 * RATIO + 2)[None], x.shape[:2])
    poisoned = jnp.where(mask[..., None], x, jnp.nan)

    def total(variables, x):
        return (model.apply(variables, x, mask=mask) ** 2).sum()

    of_parameters, of_samples = jax.jit(jax.grad(total, argnums=(0, 1)))(variables, poisoned)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(of_parameters))
    assert (of_samples[:, 2 * RATIO + 2 :] == 0).all() and (of_samples[:, : 2 * RATIO + 2] != 0).any()


def test_recordings_packed_into_a_row_are_those_recordings_by_themselves():
    model, variables, x = made()
    ids = jnp.broadcast_to(jnp.array([7, 7, 7, 2])[None], (BATCH, CHUNKS))
    packed = apply(model, variables, x, segment_ids=ids)
    close(packed[:, :3], apply(model, variables, x[:, : 3 * RATIO]))
    close(packed[:, 3:], apply(model, variables, x[:, 3 * RATIO :]))
    assert np.abs(packed[:, 3:] - apply(model, variables, x)[:, 3:]).max() > 1e-3


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (SMALL_MAMBA, ATTENTION),
        pytest.param(ATTENTION, partial(S4, state_size=4), marks=pytest.mark.exhaustive),
    ],
)
def test_streaming_equals_the_whole(low, high):
    model, variables, x = made(low, high)
    whole = apply(model, variables, x)
    step = jax.jit(partial(model.apply, variables, method="step"))
    state = model.apply(variables, BATCH, method="init_state")
    for t in range(x.shape[1]):
        held, state = step(x[:, t], state)
        chunk, within = divmod(t + 1, RATIO)
        assert int(state.samples) == within
        if chunk == 0:
            assert jnp.isnan(held).all()
        else:
            close(held, whole[:, chunk - 1])


@pytest.mark.exhaustive
def test_levels_need_not_be_causal_within_a_chunk():
    model, variables, x = made(BOTH_WAYS)
    poisoned = x.at[:, 2 * RATIO :].multiply(-100.0)
    assert (apply(model, variables, poisoned)[:, :2] == apply(model, variables, x)[:, :2]).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": (2, 7, 5)}, "x: got 7 samples, expected a multiple of freq_ratio, 3; append samples that the mask"),
        ({"x": (2, 6)}, "x: got float32\\[2, 6\\], expected a float array \\(B, L, C\\)"),
        ({"mask": (2, 4)}, "mask: got bool\\[2, 4\\], expected bool\\[2, 12\\]"),
        ({"segment_ids": (2, 12)}, "segment_ids: got int32\\[2, 12\\], expected integer\\[2, 4\\]"),
    ],
)
def test_arguments_of_other_shapes_are_refused_by_name(given, message):
    model, variables, x = made()
    kinds = {"x": jnp.float32, "mask": bool, "segment_ids": jnp.int32}
    arguments = {"x": x} | {name: jnp.zeros(shape, kinds[name]) for name, shape in given.items()}
    with pytest.raises(ValueError, match=message):
        model.apply(variables, **arguments)


def test_what_a_level_cannot_do_is_refused():
    model, variables, x = made(RunningSum, RunningSum)
    with pytest.raises(ValueError, match="RunningSum: mask not supported"):
        model.apply(variables, x, mask=jnp.ones(x.shape[:2], bool))
    with pytest.raises(ValueError, match="RunningSum: step not supported"):
        model.apply(variables, x[:, 0], HiSSState(jnp.zeros((), jnp.int32), None, None, x[:, 0]), method="step")
    for name in ("num_targets", "freq_ratio"):
        wrong = model.clone(**{name: 0})
        with pytest.raises(ValueError, match=f"{name}: got 0, expected at least 1"):
            wrong.init(jax.random.key(0), x)
