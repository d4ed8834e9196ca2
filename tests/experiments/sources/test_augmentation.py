"""What each change of a picture means, its strength at each magnitude, and how often it is drawn."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from experiments.sources import augmentation
from experiments.sources.augmentation import FILL, OPERATIONS, centre_crop, rand_augment, random_crop, random_flip

M9 = 0.9
MOVING = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def noise(width=40, height=30, low=0, high=256, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8))


def values(image):
    return np.asarray(image).astype(int)


def applied(name, image, strength=M9, sign=1):
    return values(OPERATIONS[name](image, strength, sign))


def test_operations_are_the_fifteen_of_rand_m9_inc1():
    assert len(OPERATIONS) == 15


@pytest.mark.parametrize("name", [*MOVING, "solarise", "add_to_dark", "colour", "contrast", "brightness", "sharpness"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_without_strength_nothing_changes(name, sign):
    image = Image.fromarray(np.kron(values(noise(10, 8)), np.ones((8, 8, 1))).astype(np.uint8))
    changes = [np.abs(applied(name, image, strength, sign) - values(image)).mean() for strength in (0, 0.3, 0.9)]
    assert changes[0] == 0 < min(changes[1:])


def test_contrast_is_stretched_and_histograms_are_flattened():
    image = noise(low=50, high=101)
    stretched = applied("auto_contrast", image)
    assert (stretched.min((0, 1)) == 0).all() and (stretched.max((0, 1)) >= 254).all()
    skewed = Image.fromarray((np.linspace(0, 1, 4096).reshape(64, 64, 1) ** 3 * 255).repeat(3, 2).astype(np.uint8))
    assert abs(applied("equalise", skewed).mean() - 127.5) < 8 < 127.5 - values(skewed).mean()


def test_values_are_inverted_posterised_solarised_and_brightened_by_the_table():
    image = noise()
    before = values(image)
    np.testing.assert_array_equal(applied("invert", image), 255 - before)
    for strength, bits in ((0.0, 4), (0.3, 3), (0.5, 2), (0.9, 1), (1.0, 1)):
        np.testing.assert_array_equal(applied("posterise", image, strength), before >> (8 - bits) << (8 - bits))
    for strength, threshold in ((0.5, 128), (0.9, 26), (1.0, 0)):
        expected = np.where(before < threshold, before, 255 - before)
        np.testing.assert_array_equal(applied("solarise", image, strength), expected)
    for strength, added in ((0.5, 55), (0.9, 99), (1.0, 110)):
        expected = np.where(before < 128, before + added, before)
        np.testing.assert_array_equal(applied("add_to_dark", image, strength), expected)


@pytest.mark.parametrize(("sign", "factor"), [(1, 1.81), (-1, 0.19)])
def test_enhancements_scale_the_distance_from_black_grey_and_smooth_pictures(sign, factor):
    image = noise(low=100, high=141)  # so that nothing is cut off
    before = values(image)
    grey = values(image.convert("L"))[..., None]
    expected = {
        "brightness": before * factor,
        "contrast": round(grey.mean()) + factor * (before - round(grey.mean())),
        "colour": grey + factor * (before - grey),
    }
    for name, picture in expected.items():
        np.testing.assert_allclose(applied(name, image, sign=sign), np.clip(picture, 0, 255), atol=1.01)
    sharpened = applied("sharpness", image, sign=sign)[1:-1, 1:-1]
    assert (sharpened.std() > before.std()) == (sign > 0)


def test_the_weakest_enhancement_keeps_a_tenth():
    assert applied("brightness", Image.new("RGB", (2, 2), (200, 200, 200)), 1.0, -1).max() == 20


@pytest.mark.parametrize("sign", [-1, 1])
def test_pictures_are_moved_sheared_and_turned_by_the_table(sign):
    flat = Image.new("RGB", (200, 100), (7, 7, 7))
    for name, axis, pixels in (("translate_x", 1, 81), ("translate_y", 0, 40.5)):
        moved = (applied(name, flat, sign=sign) == np.array(FILL)).all(-1)
        assert abs(moved.any(1 - axis).sum() - pixels) <= 1
        assert moved.take(-1 if sign > 0 else 0, axis).all()
    for name, axis, slope in (("shear_x", 0, 0.27), ("shear_y", 1, 0.27)):
        filled = (applied(name, flat, sign=sign) == np.array(FILL)).all(-1).sum(1 - axis)
        np.testing.assert_allclose(filled, slope * np.arange(len(filled)), atol=1.5)
    dot = np.zeros((101, 101, 3), np.uint8)
    dot[48:53, 88:93] = 255  # 40 pixels to the right of the middle
    y, x = (
        places.mean() - 50 for places in np.nonzero(applied("rotate", Image.fromarray(dot), sign=sign)[..., 0] > 200)
    )
    assert np.degrees(np.arctan2(-y, x)) == pytest.approx(27 * sign, abs=1)


def test_operations_magnitudes_and_signs_are_drawn_as_said(monkeypatch):
    drawn = []
    recorders = {
        name: lambda image, strength, sign, name=name: drawn.append((name, strength, sign)) or image
        for name in OPERATIONS
    }
    monkeypatch.setattr(augmentation, "OPERATIONS", recorders)
    rng, image = np.random.default_rng(0), noise(4, 4)
    for _ in range(3000):
        rand_augment(image, rng)
    # Binomial with 6,000 draws: five standard deviations.
    assert abs(len(drawn) - 3000) < 5 * np.sqrt(1500)
    counts = Counter(name for name, _, _ in drawn)
    assert len(counts) == 15 and max(abs(n - 200) for n in counts.values()) < 5 * np.sqrt(200)
    strengths, signs = np.array([strength for _, strength, _ in drawn]), np.array([sign for *_, sign in drawn])
    assert np.median(strengths) == pytest.approx(0.9, abs=0.006) and strengths.max() == 1.0
    assert strengths[strengths < 0.9].std() == pytest.approx(0.05 * np.sqrt(1 - 2 / np.pi), rel=0.1)
    assert set(signs) == {-1, 1} and abs(signs.mean()) < 5 / np.sqrt(len(signs))


def test_two_operations_are_applied_one_after_the_other(monkeypatch):
    calls = []
    monkeypatch.setattr(
        augmentation, "OPERATIONS", {"once": lambda image, *_: calls.append(image) or noise(seed=len(calls))}
    )
    result = rand_augment(noise(), np.random.default_rng(0), probability=1.0)
    np.testing.assert_array_equal(values(calls[1]), values(noise(seed=1)))
    np.testing.assert_array_equal(values(result), values(noise(seed=2)))


def test_grey_pictures_are_refused():
    with pytest.raises(ValueError, match="image: got mode L, expected RGB"):
        rand_augment(Image.new("L", (4, 4)), np.random.default_rng(0))


def test_parts_lie_inside_have_the_area_and_the_aspect_and_are_spread():
    rng, size = np.random.default_rng(1), (500, 375)
    parts = np.array([augmentation._part(size, rng, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(2000)])
    left, top, width, height = parts.T
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 500).all() and (top + height <= 375).all()
    share, aspect = width * height / (500 * 375), width / height
    assert share.min() < 0.1 and share.max() > 0.9 and share.min() > 0.079
    assert 0.74 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.35
    # Where there is room the place is uniform.
    room = width < 250
    assert (left[room] / (500 - width[room])).mean() == pytest.approx(0.5, abs=5 / np.sqrt(12 * room.sum()))


@pytest.mark.parametrize(("size", "expected"), [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13))])
def test_of_a_long_picture_it_is_the_middle(size, expected):
    assert augmentation._part(size, np.random.default_rng(0), (0.9, 1.0), (3 / 4, 4 / 3)) == expected


def test_a_crop_of_everything_is_the_picture_and_sees_nothing_beside_its_part(monkeypatch):
    image = noise(32, 32)
    whole = random_crop(image, np.random.default_rng(0), size=32, area=(1.0, 1.0), aspect=(1.0, 1.0))
    np.testing.assert_array_equal(values(whole), values(image))
    black = np.zeros((32, 32, 3), np.uint8)
    black[8:24, 8:24] = 100
    monkeypatch.setattr(augmentation, "_part", lambda *_: (8, 8, 16, 16))
    assert (values(random_crop(Image.fromarray(black), np.random.default_rng(0), size=11)) == 100).all()


def test_the_middle_is_cut_out_after_resizing_the_shorter_side():
    np.testing.assert_array_equal(
        values(centre_crop(noise(256, 256), size=224)), values(noise(256, 256))[16:240, 16:240]
    )
    ramp = np.broadcast_to(np.arange(512)[None, :, None] / 2, (256, 512, 3)).astype(np.uint8)
    middle = values(centre_crop(Image.fromarray(ramp), size=224))
    assert middle.shape == (224, 224, 3) and (middle[0, 0, 0], middle[0, -1, 0]) == (72, 183)


def test_half_of_the_pictures_are_mirrored():
    rng, image = np.random.default_rng(2), noise(3, 2)
    flipped = [values(random_flip(image, rng)) for _ in range(400)]
    mirrored = [(one == values(image)[:, ::-1]).all() for one in flipped]
    assert abs(sum(mirrored) - 200) < 50
    assert all(is_mirrored or (one == values(image)).all() for one, is_mirrored in zip(flipped, mirrored, strict=True))
