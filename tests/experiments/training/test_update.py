"""One update: accumulation, precision, average, heads, collections, and the guard over the whole state."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.training.config import TrainConfig
from experiments.training.task import Loss, Task
from experiments.training.update import evaluated, initial_state, leaf_names, make_update
from lightnet.backbone import Backbone, CausalLM
from lightnet.mixers import SoftmaxAttention


def regression(weights=None):
    """Masked linear regression with batch statistics: a mean over the real rows."""

    def loss(variables, batch, key):
        params, mask = variables["params"], batch["mask"]
        error = jnp.where(mask, batch["x"] @ params["kernel"] + params["bias"] - batch["y"], 0)
        seen = variables["statistics"]["mean"] * 0.5 + batch["x"].mean(axis=0) * 0.5
        count = mask.sum()
        return Loss(
            (error**2).sum() / count, {"error": jnp.abs(error).sum() / count}, {"statistics": {"mean": seen}}, count
        )

    def init(key):
        params = {"kernel": jax.random.normal(key, (3,)), "bias": jnp.zeros(())}
        return {"params": params, "statistics": {"mean": jnp.zeros(3)}}

    return Task(init, loss)


def rows(count=8, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, 3)).astype(np.float32)
    mask = random.random(count) < 0.6
    mask[:2] = True, False
    return {"x": x, "y": x.sum(axis=1), "mask": mask}


def start(task, optimizer, ema=False):
    return initial_state(task.init(jax.random.key(1)), optimizer, ema)


def test_accumulation_agrees_with_the_whole_batch_although_the_parts_have_unequal_weights():
    task, optimizer, outcomes = regression(), optax.sgd(0.1), []
    batch = rows(8)
    assert len({int(batch["mask"][part::4].sum()) for part in range(4)}) > 1
    # With an empty part the mean over it is 0 / 0, which is no example's fault.
    batch["mask"][:4] = True
    for parts in (1, 2, 4):
        update = make_update(task, optimizer, TrainConfig(), seed=0, microbatches=parts)
        state, report = update(start(task, optimizer), batch)
        outcomes.append((state.params, {name: report.metrics[name] for name in ("loss", "error", "gradient_norm")}))
    for outcome in outcomes[1:]:
        chex.assert_trees_all_close(outcome, outcomes[0], rtol=2e-6)


def test_a_part_of_nothing_but_padding_does_not_count():
    task, optimizer, batch, params = regression(), optax.sgd(0.1), rows(4), []
    batch["mask"][:] = [True, False, True, False]
    for parts in (1, 2):
        update = make_update(task, optimizer, TrainConfig(), seed=0, microbatches=parts)
        state, report = update(start(task, optimizer), batch)
        assert int(report.bad_leaf) == -1
        params.append(state.params)
    chex.assert_trees_all_close(params[1], params[0], rtol=2e-6)


def test_collections_are_handed_from_part_to_part():
    task, optimizer, batch = regression(), optax.sgd(0.1), rows(4)
    batch["mask"][:] = True
    state, _ = make_update(task, optimizer, TrainConfig(), seed=0, microbatches=2)(start(task, optimizer), batch)
    first, second = (batch["x"][part::2].mean(axis=0) for part in (0, 1))
    np.testing.assert_allclose(state.collections["statistics"]["mean"], first / 4 + second / 2, rtol=1e-6)


def test_a_batch_in_parts_is_traced_as_often_as_a_whole_one():
    task, optimizer = regression(), optax.sgd(0.1)
    traced = []

    def noted(*arguments):
        traced.append(arguments)
        return task.loss(*arguments)

    for parts in (1, 2):
        traced.clear()
        update = make_update(Task(task.init, noted), optimizer, TrainConfig(), seed=0, microbatches=parts)
        update.trace(start(task, optimizer), rows(4))
        assert len(traced) == 1


def steered(variables, batch, key):
    """A loss whose value, gradient and collection are in the batch."""
    w = variables["params"]["w"]
    value = batch["value"] + w * batch["slope"] + jnp.sqrt(w + batch["offset"])
    return Loss(value, {}, {"cache": {"last": batch["last"]}})


@pytest.mark.parametrize(
    ("bad", "optimizer", "named"),
    [
        ({"value": np.nan}, optax.adam(0.1), "loss"),
        ({"offset": -1.0}, optax.adam(0.1), "gradient/params/w"),  # the slope of a square root at 0
        ({"last": -np.inf}, optax.adam(0.1), "collections/cache/last"),
        ({"slope": 1e20}, optax.adam(0.1), "optimizer/0/nu/params/w"),  # its square overflows
        ({"slope": 10.0}, optax.sgd(3e38), "params/params/w"),
    ],
)
def test_what_is_not_finite_anywhere_changes_nothing_but_the_counters(bad, optimizer, named):
    task = Task(lambda key: {"params": {"w": jnp.ones(())}, "cache": {"last": jnp.zeros(())}}, steered)
    update = make_update(task, optimizer, TrainConfig(ema_decay=0.9), seed=0)
    fine = {"value": 0.0, "slope": 0.0, "offset": 1e30, "last": 1.0}
    state, report = update(start(task, optimizer, ema=True), fine)
    assert int(report.bad_leaf) == -1
    before, names = jax.device_get(state), leaf_names(state)
    for count in (1, 2):
        state, report = update(state, {**fine, **bad})
        assert names[int(report.bad_leaf)] == named
        assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (1 + count, count, count)
        counters = {name: getattr(before, name) for name in ("step", "skipped", "skipped_in_a_row")}
        chex.assert_trees_all_equal(state._replace(**counters), before)
    state, report = update(state, {**fine, "last": 5.0})
    assert (int(state.skipped), int(state.skipped_in_a_row), float(report.metrics["skipped"])) == (2, 0, 2)
    assert float(state.collections["cache"]["last"]) == 5 and int(report.bad_leaf) == -1


def test_the_average_follows_the_parameters_and_is_what_is_evaluated():
    task, optimizer = regression(), optax.sgd(0.3)
    update = make_update(task, optimizer, TrainConfig(ema_decay=0.75), seed=0)
    state = start(task, optimizer, ema=True)
    expected = np.asarray(state.params["params"]["kernel"])
    for step in range(3):
        state, _ = update(state, rows(seed=step))
        expected = 0.75 * expected + 0.25 * np.asarray(state.params["params"]["kernel"])
    np.testing.assert_allclose(evaluated(state)["params"]["kernel"], expected, rtol=1e-6)
    assert set(evaluated(state)) == {"params", "statistics"}
    assert not np.allclose(expected, state.params["params"]["kernel"])


def test_bfloat16_is_what_the_loss_sees_and_float32_what_is_kept():
    seen = {}

    def loss(params, batch, key):
        seen.update({name: leaf.dtype for name, leaf in params.items()})
        return jnp.sum(params["kernel"] * params["A_log"].astype(jnp.bfloat16)), {}

    task = Task(lambda key: {"kernel": jnp.full(4, 1 / 3), "A_log": jnp.ones(4)}, loss)
    optimizer = optax.sgd(2.0**-12)
    state, report = make_update(task, optimizer, TrainConfig(precision="bfloat16"), seed=0)(
        start(task, optimizer), None
    )
    assert seen == {"kernel": jnp.bfloat16, "A_log": jnp.float32}
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, report.metrics["loss"]))} == {jnp.dtype("float32")}
    # The step is smaller than bfloat16 resolves at 1/3, and is not lost.
    np.testing.assert_array_equal(state.params["kernel"], np.float32(1 / 3) - np.float32(2.0**-12))


def test_parameters_that_are_no_floats_are_refused():
    with pytest.raises(ValueError, match="count: got parameters in int32, expected float32"):
        initial_state({"count": jnp.ones(2, jnp.int32)}, optax.sgd(0.1), ema=False)


def test_parameters_in_lower_precision_are_refused():
    with pytest.raises(ValueError, match="dense/kernel: got parameters in bfloat16, expected float32"):
        initial_state({"dense": {"kernel": jnp.ones(2, jnp.bfloat16)}}, optax.sgd(0.1), ema=False)


def test_heads_are_summed_by_their_weights_and_logged_one_by_one():
    def loss(w, batch, key):
        return {"near": (w - 1) ** 2, "far": (w - 5) ** 2}, {"w": w}

    task = Task(lambda key: jnp.zeros(()), loss, weights={"far": optax.linear_schedule(1.0, 0.0, 2)})
    optimizer = optax.sgd(0.5)
    update, state, w = make_update(task, optimizer, TrainConfig(), seed=0), start(task, optimizer), 0.0
    for far in (1.0, 0.5, 0.0):
        state, report = update(state, None)
        expected = {"loss/near": (w - 1) ** 2, "loss/far": (w - 5) ** 2, "w": w}
        expected["loss"] = expected["loss/near"] + far * expected["loss/far"]
        for name, value in expected.items():
            np.testing.assert_allclose(report.metrics[name], value, rtol=1e-6)
        w -= 0.5 * (2 * (w - 1) + far * 2 * (w - 5))
        np.testing.assert_allclose(state.params, w, rtol=1e-6)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(None, lambda w, b, k: ({"ce": w.sum()}, {}), weights={"kd": 1.0}), r"weights: got \['kd'\], .*\['ce'\]"),
        (Task(None, lambda w, b, k: (w, {})), r"metric loss: got shape \(2,\), expected a scalar"),
        (Task(None, lambda w, b, k: (w.sum(), {"wide": w})), r"metric wide: got shape \(2,\)"),
        (Task(None, lambda w, b, k: (w.sum(), {"skipped": w.sum()})), "metric skipped: the name is taken by the loop"),
        (Task(None, lambda w, b, k: (w.sum(), {}, {"cache": w})), r"collections: got \['cache'\]"),
        (Task(None, lambda w, b, k: ({"ce": w}, {})), r"metric loss/ce: got shape \(2,\)"),
    ],
)
def test_a_loss_of_another_form_is_refused(task, message):
    optimizer = optax.sgd(0.1)
    with pytest.raises(ValueError, match=message):
        make_update(task, optimizer, TrainConfig(), seed=0)(initial_state(jnp.ones(2), optimizer, False), None)


def language_model(remat):
    mixer = partial(SoftmaxAttention, num_heads=2)
    model = CausalLM(Backbone(mixer=mixer, num_layers=2, width=8, remat=remat), vocab_size=5)

    def loss(variables, batch, key):
        return -jax.nn.log_softmax(model.apply(variables, batch))[..., 0].mean(), {}

    return Task(lambda key: model.init(key, jnp.zeros((1, 3), jnp.int32)), loss)


@pytest.mark.slow
def test_remat_policies_store_less_and_change_nothing():
    tokens = jax.random.randint(jax.random.key(0), (2, 7), 0, 5)
    stored, gradients = {}, {}
    for remat in ("none", "dots_saveable", "dots_with_no_batch_dims_saveable", "nothing_saveable"):
        task = language_model(remat)
        variables = task.init(jax.random.key(0))

        def loss(v, task=task):
            return task.loss(v, tokens, None)[0]

        gradients[remat] = jax.grad(loss)(variables)
        # What linearisation keeps for the backward pass.
        stored[remat] = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.vjp(loss, variables)[1]))
    for gradient in gradients.values():
        chex.assert_trees_all_close(gradient, gradients["none"], rtol=1e-5, atol=1e-7)
    assert (
        stored["none"]
        > stored["dots_saveable"]
        > stored["dots_with_no_batch_dims_saveable"]
        > stored["nothing_saveable"]
    )


@pytest.mark.slow
def test_a_remat_policy_that_the_model_ignores_is_refused():
    tokens, optimizer = jnp.zeros((2, 7), jnp.int32), optax.sgd(0.1)
    for model, refused in (("none", True), ("dots_saveable", False)):
        task = language_model(model)
        update = make_update(task, optimizer, TrainConfig(remat="dots_saveable"), seed=0)
        if refused:
            with pytest.raises(ValueError, match="train.remat: nothing in the loss is rematerialised"):
                update(start(task, optimizer), tokens)
        else:
            assert np.isfinite(update(start(task, optimizer), tokens)[1].metrics["loss"])


def test_each_update_gets_a_key_of_its_own():
    optimizer = optax.sgd(0.0)
    task = Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w, {"draw": jax.random.uniform(key)}))
    for parts in (1, 2):
        update = make_update(task, optimizer, TrainConfig(), seed=1, microbatches=parts)
        state, draws = start(task, optimizer), []
        for _ in range(5):
            state, report = update(state, jnp.zeros(4))
            draws.append(float(report.metrics["draw"]))
        assert len(set(draws)) == 5
