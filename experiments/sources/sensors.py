"""Generated recordings of a moving body: what three drifting and vibrating sensors read, and its velocity.

With M waves of each of the two axes of the plane, whose frequencies are normal and whose phases are uniform,

    v_j(t) = sqrt(2 / M) sum_m cos(2 pi f_jm t + p_jm),     f_jm = bandwidth z,  z ~ N(0, 1)
    s_i(t) = g_i . v'(t) / (2 pi bandwidth) + d_i(t) + u_i(t) + e_i(t)

is what sensor i of the three reads, whose direction g_i lies at 120 degrees to the others in the plane. The offset d_i
begins at N(0, drift^2) and goes on as a Brownian motion of variance drift^2 per second; the vibration

    u_i(t) = vibration |v(t)| sin(2 pi f t + q_i),

with one frequency f for each recording, grows with the speed, as that of a body which is rubbed; e_i is white. Each
v_j has mean 0, variance 1 and autocovariance exp(-(2 pi bandwidth t)^2 / 2), the acceleration as a sensor reads it has
variance 1, and the vibration has variance vibration^2.
"""

from dataclasses import dataclass

import numpy as np

WAVES = 16
DIRECTIONS = np.stack([np.cos(2 * np.pi * np.arange(3) / 3), np.sin(2 * np.pi * np.arange(3) / 3)], axis=1)


@dataclass(frozen=True)
class Sensors:
    """What is recorded.

    Attributes:
        length: samples L of a recording.
        rate: of the samples, Hz.
        bandwidth: standard deviation of the velocity's frequencies, Hz.
        drift: standard deviation of an offset at first, and of its change within a second.
        vibration: root mean square of the vibration.
        noise: standard deviation of the white noise.
        frequencies: lowest and highest frequency of the vibration, Hz.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> readings, velocity = Sensors(length=40).sample(seed=3, count=5)
        >>> readings.shape, velocity.shape
        ((5, 40, 3), (5, 40, 2))
    """

    length: int = 200
    rate: float = 50.0
    bandwidth: float = 0.5
    drift: float = 0.5
    vibration: float = 0.5
    noise: float = 0.2
    frequencies: tuple[float, float] = (12.0, 20.0)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.length < 1:
            raise ValueError(f"length: got {self.length}, expected at least 1")
        for name in ("rate", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected more than 0")
        for name in ("drift", "vibration", "noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        low, high = self.frequencies
        if not 0 < low <= high < self.rate / 2:
            raise ValueError(f"frequencies: got {self.frequencies}, expected an interval between 0 and rate / 2")

    def sample(self, seed: int | tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Recordings: a pure function of the arguments; fewer of them are the first of more.

        Args:
            seed: one integer or several.
            count: how many.

        Returns:
            What the sensors read, (count, L, 3), and the velocity at each of their samples, (count, L, 2), float32.
        """
        key = (seed,) if isinstance(seed, int) else seed
        recordings = [self._recording(np.random.default_rng([*key, number])) for number in range(count)]
        readings, velocity = zip(*recordings, strict=True)
        return np.stack(readings), np.stack(velocity)

    def _recording(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        time = np.arange(self.length) / self.rate
        velocity, acceleration = self._motion(rng, time)
        read = acceleration @ DIRECTIONS.T / (2 * np.pi * self.bandwidth)
        read += self._offsets(rng) + self._vibrations(rng, np.linalg.norm(velocity, axis=-1), time)
        read += self.noise * rng.standard_normal(read.shape)
        return read.astype(np.float32), velocity.astype(np.float32)

    def _motion(self, rng: np.random.Generator, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Velocity and acceleration, both (L, 2)."""
        turning = 2 * np.pi * self.bandwidth * rng.standard_normal((2, WAVES))
        angle = turning * time[:, None, None] + rng.uniform(0, 2 * np.pi, (2, WAVES))
        scale = np.sqrt(2 / WAVES)
        return scale * np.cos(angle).sum(axis=-1), -scale * (turning * np.sin(angle)).sum(axis=-1)

    def _offsets(self, rng: np.random.Generator) -> np.ndarray:
        changes = rng.standard_normal((self.length, 3)) / np.sqrt(self.rate)
        changes[0] = rng.standard_normal(3)
        return self.drift * changes.cumsum(axis=0)

    def _vibrations(self, rng: np.random.Generator, speed: np.ndarray, time: np.ndarray) -> np.ndarray:
        angle = 2 * np.pi * rng.uniform(*self.frequencies) * time[:, None] + rng.uniform(0, 2 * np.pi, 3)
        return self.vibration * speed[:, None] * np.sin(angle)
