"""What the released code of HiSS does between the recordings of the published sets and a model, and what it reached.

Settings, limits and scales were read in that code, the gains in the published table of results; neither was run by us.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.hiss.inertial import CAPTURE_SENSORS
from experiments.hiss.preparation import with_differences
from experiments.hiss.recordings import SAMPLE_RATE, TARGET_RATE, Recording
from experiments.hiss.tactile import XELA_LIMIT

FREQ_RATIO = SAMPLE_RATE // TARGET_RATE
LIMIT = 3000.0


class Published(NamedTuple):
    """What is published of a set.

    Attributes:
        claim: on this set, in the ledger.
        best: its best hierarchy.
        gain: 1 - the error of that / that of the best flat model.
        upper: channels and blocks of the upper level, in the configuration that was released for the set.
        lower: the same of the lower level.
        unit: of the table, in ours; 1 where the table names none.
    """

    claim: str
    best: str
    gain: float
    upper: tuple[int, int]
    lower: tuple[int, int]
    unit: float = 1.0


# The released configuration of TotalCapture has Mamba over S4, which is not the best of the table.
PUBLISHED = {
    "marker_writing": Published("hiss/marker-writing", "mamba over s4", 0.3587, (128, 6), (256, 6), unit=0.01),
    "intrinsic_slip": Published("hiss/intrinsic-slip", "mamba over s4", 0.2510, (256, 4), (256, 6)),
    "joystick_control": Published("hiss/joystick", "mamba over s4", 0.0810, (256, 4), (256, 4)),
    "ronin": Published("hiss/ronin", "s4 over s4", 0.3074, (128, 6), (256, 6)),
    "vector": Published("hiss/vector", "mamba over mamba", 0.2130, (64, 4), (32, 4)),
    "total_capture": Published("hiss/totalcapture", "mamba over lstm", -0.3736, (128, 4), (256, 6)),
}


class Scale(NamedTuple):
    """Standardisation (x - shift) / size, channel by channel."""

    shift: np.ndarray
    size: np.ndarray


def input_scale(name: str, train: Sequence[Recording]) -> Scale:
    """The released standardisation of what a model reads, which differs from set to set.

    Args:
        name: of the set.
        train: recordings with samples (L, C).

    Returns:
        Of 2 C channels, the second half differences: three deviations about the mean for marker writing and RoNIN, a
        fifth of the range for intrinsic slip and VECtor, the limit of the sensor for joystick control; for TotalCapture
        the range, or 1.

    Example:
        >>> samples = [np.array([[0.0], [4.0]]), np.array([[6.0], [-4.0]])]
        >>> input_scale("vector", [Recording("a", x, x) for x in samples]).size.tolist()
        [2.0, 2.8]
    """
    channels = 2 * train[0].samples.shape[1]
    if name == "joystick_control":
        return Scale(np.zeros(channels), np.full(channels, XELA_LIMIT))
    inputs = [_inputs(recording) for recording in train]
    if name in ("marker_writing", "ronin"):
        mean, deviation = _moments(inputs)
        return Scale(mean, _positive(3 * deviation))
    spread = np.max([x.max(axis=0) for x in inputs], axis=0) - np.min([x.min(axis=0) for x in inputs], axis=0)
    if name != "total_capture":
        return Scale(np.zeros(channels), _positive(spread / 5))
    # As released: as many columns as whole rotation matrices have, of which two thirds are orientations; the others are
    # differences of accelerations.
    spread[3 * len(CAPTURE_SENSORS) : 12 * len(CAPTURE_SENSORS)] = 1
    return Scale(np.zeros(channels), _positive(spread))


def target_scale(name: str, targets: Sequence[np.ndarray]) -> Scale:
    """The released standardisation of what a model shall tell.

    Args:
        name: of the set.
        targets: recordings (T, Y).

    Returns:
        Deviations about the mean, two of them for joystick control and three for TotalCapture; for intrinsic slip about
        0, with that of x for z too.
    """
    mean, deviation = _moments(targets)
    if name == "intrinsic_slip":
        return Scale(np.zeros_like(mean), _positive(deviation[[0, 0, 2]]))
    return Scale(mean, _positive({"joystick_control": 2, "total_capture": 3}.get(name, 1) * deviation))


def turned(recording: Recording, angle: float) -> Recording:
    """A recording of RoNIN as if the walk had another heading: all vectors turned about the vertical axis.

    Args:
        recording: with samples of two vectors x, y, z, and a target x, y.
        angle: rad.

    Returns:
        The recording.

    Example:
        >>> east = Recording("a", np.array([[1.0, 0, 5, 0, 2, 7]]), np.array([[3.0, 0]]))
        >>> [part.round(6).ravel().tolist() for part in turned(east, np.pi / 2)[1:]]
        [[0.0, 1.0, 5.0, -2.0, 0.0, 7.0], [0.0, 3.0]]
    """
    plane = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    samples = recording.samples.copy()
    for first in range(0, samples.shape[1], 3):
        samples[:, first : first + 2] = samples[:, first : first + 2] @ plane.T
    return recording._replace(samples=samples, targets=recording.targets @ plane.T)


@dataclass(frozen=True)
class Preparation:
    """From a recording to an example, padded to the longest.

    Attributes:
        inputs: scale of samples and differences.
        targets: scale of the targets.
        chunks: of the longest recording.
    """

    inputs: Scale
    targets: Scale
    chunks: int

    @classmethod
    def of(cls, name: str, train: Sequence[Recording], held_out: Sequence[Recording]) -> Preparation:
        """The preparation of a set; scales are those of the part to train on, in the released code of all recordings.

        Args:
            name: of the set.
            train: recordings.
            held_out: recordings.
        """
        longest = max(len(recording.targets) for recording in (*train, *held_out))
        return cls(input_scale(name, train), target_scale(name, [recording.targets for recording in train]), longest)

    def __call__(self, recording: Recording) -> dict[str, np.ndarray]:
        """Columns "inputs" (k T, 2 C), "targets" (T, Y), and "chunks" that are real, the first ones."""
        return {
            "inputs": _scaled(_inputs(recording), self.inputs, FREQ_RATIO * self.chunks),
            "targets": _scaled(recording.targets, self.targets, self.chunks),
            "chunks": np.array(len(recording.targets), np.int32),
        }


def _inputs(recording: Recording) -> np.ndarray:
    return with_differences(recording.samples).clip(-LIMIT, LIMIT)


def _scaled(x: np.ndarray, scale: Scale, length: int) -> np.ndarray:
    padded = np.zeros((length, x.shape[1]), np.float32)
    padded[: len(x)] = (x - scale.shift) / scale.size
    return padded


def _moments(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of all rows, without a copy of them."""
    count = sum(map(len, parts))
    mean = sum(x.sum(axis=0) for x in parts) / count
    return mean, np.sqrt(sum(((x - mean) ** 2).sum(axis=0) for x in parts) / count)


def _positive(size: np.ndarray) -> np.ndarray:
    return np.where(size > 0, size, 1.0)
