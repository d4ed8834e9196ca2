"""Erased and mixed batches: what is inside, what the labels say of it, and how it is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sources.mixing import erased, mixed

BATCH = jnp.asarray(np.arange(5 * 24 * 32 * 3, dtype=np.float32).reshape(5, 24, 32, 3) + 10)
TARGETS = jnp.asarray(np.eye(5, dtype=np.float32))


@pytest.mark.slow
def test_one_rectangle_of_a_picture_is_noise():
    images = jnp.full((400, 24, 32, 3), 9.0)
    found = np.asarray(jax.jit(lambda key: erased(images, key, 1.0))(jax.random.key(0)))
    inside = (found != 9).all(-1)
    np.testing.assert_array_equal(inside, (found != 9).any(-1))
    rows, columns = inside.any(2), inside.any(1)
    np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None])
    for sides in (rows, columns):  # nothing between the first and the last
        assert (np.abs(np.diff(np.pad(sides, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1) <= 2).all()
    heights, widths = rows.sum(1), columns.sum(1)
    share, aspect = heights * widths / (24 * 32), heights / np.maximum(widths, 1)
    assert (heights < 24).all() and (widths < 32).all() and inside.any((1, 2)).mean() > 0.99
    assert 0.015 < share[share > 0].min() < 0.05 and 0.28 < share.max() < 0.36
    assert np.median(share) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    assert 0.2 < aspect[aspect > 0].min() < 0.5 and 2 < aspect.max() < 4.5
    noise = found[inside]
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size) and abs(noise.var() - 1) < 10 / np.sqrt(noise.size)


@pytest.mark.slow
def test_pictures_are_erased_with_their_probability_and_by_themselves():
    found = erased(jnp.full((2000, 8, 8, 1), 9.0), jax.random.key(1), 0.25)
    changed = np.asarray(found != 9).any((1, 2, 3))
    assert abs(changed.sum() - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)
    assert len(np.unique(np.asarray(found != 9)[changed], axis=0)) > 100


@pytest.mark.slow
def test_rectangles_are_anywhere():
    found = np.asarray(erased(jnp.full((500, 16, 16, 1), 9.0), jax.random.key(2), 1.0))[..., 0] != 9
    covered = found.mean(0)
    assert covered.min() > 0 and np.abs(covered - covered[::-1, ::-1]).max() < 0.12


@pytest.mark.slow
def test_mixup_weighs_pictures_and_labels_alike():
    for seed in range(5):
        images, targets = mixed(BATCH, TARGETS, jax.random.key(seed), mixup=0.8, cutmix=0.0)
        weight = float(targets[0, 0])
        assert 0 < weight < 1 and targets[2, 2] == 1
        np.testing.assert_allclose(targets, weight * np.eye(5) + (1 - weight) * np.eye(5)[::-1], rtol=1e-6)
        np.testing.assert_allclose(images, weight * BATCH + (1 - weight) * BATCH[::-1], rtol=1e-5)


@pytest.mark.slow
def test_cutmix_puts_in_a_box_and_labels_have_its_share_of_the_area():
    seen = set()
    for seed in range(20):
        images, targets = mixed(BATCH, TARGETS, jax.random.key(seed), mixup=0.0, cutmix=1.0)
        box = np.asarray(images[0] != BATCH[0]).all(-1)
        np.testing.assert_array_equal(images, np.where(box[None, ..., None], BATCH[::-1], BATCH))
        np.testing.assert_array_equal(box, box.any(1)[:, None] & box.any(0)[None])
        assert targets[0, 0] == pytest.approx(1 - box.mean(), abs=1e-6)
        assert targets[0, 4] == pytest.approx(box.mean(), abs=1e-6)
        seen.add((int(box.any(1).argmax()), int(box.any(0).argmax())))
    assert len(seen) > 5


@pytest.mark.slow
@pytest.mark.parametrize("a", [0.8, 3.0])
def test_weights_have_the_moments_of_their_distribution(a):
    images, targets = jnp.zeros((2, 1, 1, 1)), jnp.eye(2)
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.vmap(lambda key: mixed(images, targets, key, mixup=a, cutmix=0.0)[1][0, 0])
    weights = np.asarray(draw(keys))
    variance = 1 / (4 * (2 * a + 1))
    assert weights.mean() == pytest.approx(0.5, abs=5 * np.sqrt(variance / 2000))
    assert weights.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.slow
def test_boxes_have_the_area_of_the_weight_where_they_are_whole():
    images, targets = jnp.zeros((2, 64, 64, 1)), jnp.eye(2)
    keys = jax.random.split(jax.random.key(3), 1000)
    draw = jax.vmap(lambda key: mixed(images, targets, key, mixup=0.0, cutmix=1.0)[1][0, 1])
    # A side s and a centre c, both uniform where s^2 is: what is inside has E[side] = E[s - s^2 / 4] per axis.
    expected = np.mean([(s - s**2 / 4) ** 2 for s in np.sqrt((np.arange(1000) + 0.5) / 1000)])
    assert np.asarray(draw(keys)).mean() == pytest.approx(expected, abs=0.03)


@pytest.mark.slow
def test_a_coin_decides_between_the_two():
    keys = jax.random.split(jax.random.key(4), 400)
    draw = jax.jit(jax.vmap(lambda key: mixed(BATCH, TARGETS, key, mixup=0.8, cutmix=1.0)[0][0]))
    images = np.asarray(draw(keys))
    first, last = np.asarray(BATCH[:1]), np.asarray(BATCH[-1:])
    whole = ((images == first) | (images == last)).all((1, 2, 3))
    assert abs(whole.sum() - 200) < 5 * np.sqrt(100)


@pytest.mark.slow
def test_nothing_is_mixed_unless_asked_for_and_types_stay():
    assert mixed(BATCH, TARGETS, jax.random.key(0), mixup=0.0, cutmix=0.0)[0] is BATCH
    low = BATCH.astype(jnp.bfloat16)
    for a, b in ((0.8, 0.0), (0.0, 1.0), (0.8, 1.0)):
        assert mixed(low, TARGETS, jax.random.key(0), mixup=a, cutmix=b)[0].dtype == jnp.bfloat16
