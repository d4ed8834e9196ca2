"""scikit-learn's digit images: 1,797 pictures of 8 x 8 pixels that ship with the package."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Digits:
    """Images and labels.

    Args:
        images: (n, 8, 8, 1) float32 in [0, 1].
        labels: (n,) int32 in 0..9.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def sha256(self) -> str:
        """SHA-256 of the pixels (float32, little-endian) followed by the labels (int32)."""
        pixels = np.ascontiguousarray(self.images, dtype="<f4").tobytes()
        return hashlib.sha256(pixels + np.ascontiguousarray(self.labels, dtype="<i4").tobytes()).hexdigest()

    def split(self, held_out: float = 0.2, seed: int = 0) -> tuple["Digits", "Digits"]:
        """Random training and held-out parts, the same for the same seed everywhere.

        Args:
            held_out: share of the images, strictly between 0 and 1.
            seed: seed of the permutation.

        Returns:
            (training part, held-out part).

        Raises:
            ValueError: if the share leaves one part empty.
        """
        count = round(held_out * len(self))
        if not 0 < count < len(self):
            raise ValueError(f"held_out: got {held_out}; expected a share that leaves images in both parts")
        order = np.random.default_rng(seed).permutation(len(self))
        test, train = np.sort(order[:count]), np.sort(order[count:])
        return Digits(self.images[train], self.labels[train]), Digits(self.images[test], self.labels[test])


def load_digits() -> Digits:
    """All images, scaled from 0..16 to [0, 1].

    Returns:
        1,797 images with their labels.

    Example:
        >>> digits = load_digits()
        >>> digits.images.shape, float(digits.images.max())
        ((1797, 8, 8, 1), 1.0)
    """
    from sklearn.datasets import load_digits as bundled

    pixels, labels = bundled(return_X_y=True)
    images = (np.asarray(pixels) / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    return Digits(images, np.asarray(labels, dtype=np.int32))
