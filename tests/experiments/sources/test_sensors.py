"""Generated sensors: reproducible, and with the moments that their description states."""

import numpy as np
import pytest

from experiments.sources.sensors import DIRECTIONS, Sensors

QUIET = {"drift": 0.0, "vibration": 0.0, "noise": 0.0}


def test_recordings_are_a_pure_function_of_the_seed():
    sensors = Sensors(length=30)
    first, again, other = (sensors.sample(seed, 4) for seed in ((1, 2), (1, 2), (1, 3)))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert all(np.abs(a - b).max() > 0.1 for a, b in zip(first, other, strict=True))
    assert first[0].dtype == first[1].dtype == np.float32
    fewer = sensors.sample((1, 2), 3)
    assert all((a[:3] == b).all() for a, b in zip(first, fewer, strict=True))


def test_the_velocity_has_the_stated_moments():
    sensors = Sensors(length=60, bandwidth=0.7)
    _, velocity = sensors.sample(0, 1500)
    # Means over 1500 recordings, whose standard error is at most sqrt(2 / 1500) < 0.04.
    assert np.abs(velocity.mean(axis=0)).max() < 0.15 and np.abs((velocity**2).mean(axis=0) - 1).max() < 0.15
    lag = np.arange(60) / sensors.rate
    covariance = (velocity[:, :1] * velocity).mean(axis=0)
    np.testing.assert_allclose(covariance, np.exp(-0.5 * (2 * np.pi * 0.7 * lag) ** 2)[:, None] * [1, 1], atol=0.15)
    assert np.abs((velocity[..., 0] * velocity[..., 1]).mean()) < 0.1


def test_quiet_sensors_read_the_acceleration_along_their_directions():
    sensors = Sensors(length=200, rate=1000.0, bandwidth=0.7, **QUIET)
    readings, velocity = sensors.sample(5, 50)
    slope = np.gradient(velocity.astype(float), 1 / sensors.rate, axis=1)[:, 1:-1] / (2 * np.pi * 0.7)
    np.testing.assert_allclose(readings[:, 1:-1], slope @ DIRECTIONS.T, atol=2e-3)
    assert abs(Sensors(length=50, **QUIET).sample(0, 1000)[0].var() - 1) < 0.15  # about three standard errors
    np.testing.assert_allclose(readings.sum(axis=-1), 0, atol=1e-5)  # three directions at 120 degrees


@pytest.mark.parametrize("name", ["drift", "vibration", "noise"])
def test_each_disturbance_has_the_stated_variance(name):
    sensors = Sensors(length=60, **{**QUIET, name: 0.8})
    disturbed, velocity = sensors.sample(9, 1500)
    acceleration = np.gradient(velocity.astype(float), 1 / sensors.rate, axis=1) / (2 * np.pi * sensors.bandwidth)
    added = (disturbed - acceleration @ DIRECTIONS.T)[:, 2:-2]
    seconds = np.arange(sensors.length)[2:-2] / sensors.rate
    growth = {"drift": 1 + seconds, "vibration": np.ones_like(seconds), "noise": np.ones_like(seconds)}[name]
    np.testing.assert_allclose(added.var(axis=(0, 2)) / 0.64, growth, rtol=0.12)  # four standard errors, sqrt(4 / 4500)
    # of two sensors independent: four standard errors of a mean of products, sqrt(1 / 1500) of the variance
    product = (added * np.roll(added, 1, axis=-1)).mean(axis=0) / 0.64
    assert (np.abs(product) < 0.15 * growth[:, None]).all()


def test_the_vibration_grows_with_the_speed_and_stands_at_its_frequencies():
    sensors = Sensors(length=500, **{**QUIET, "vibration": 0.5}, frequencies=(14.0, 18.0))
    readings, velocity = sensors.sample(2, 100)
    acceleration = np.gradient(velocity.astype(float), 1 / sensors.rate, axis=1) / (2 * np.pi * sensors.bandwidth)
    added = (readings - acceleration @ DIRECTIONS.T)[:, 2:-2]
    speed = np.linalg.norm(velocity, axis=-1)[:, 2:-2]
    fast = speed > np.median(speed)
    assert (added[fast] ** 2).mean() > 4 * (added[~fast] ** 2).mean()
    power = (np.abs(np.fft.rfft(added, axis=1)) ** 2).sum(axis=(0, 2))
    frequency = np.fft.rfftfreq(added.shape[1], 1 / sensors.rate)
    assert power[(frequency > 11) & (frequency < 21)].sum() > 0.95 * power.sum()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("length", 0, "length: got 0"),
        ("bandwidth", 0.0, "bandwidth: got 0"),
        ("noise", -1.0, "noise: got -1"),
        ("frequencies", (10.0, 25.0), "frequencies: got"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Sensors(**{field: value})
