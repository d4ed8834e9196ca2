"""Feature-based distillation that the papers compare with: attention transfer, relations, contrastive representations.

Features of the teacher come first in the formulas and are held fixed; where the two networks differ in width the caller
projects them.
"""

import jax
import jax.numpy as jnp
import optax

from kd.checks import ArrayInput, as_floats, at_least_float32, check_count, check_number, got
from kd.typing import Array, Number


def attention_transfer(f_s: ArrayInput, f_t: ArrayInput, *, power: int = 2, released: bool = False) -> Array:
    """Distance of the normalised attention maps of a layer (AT, arXiv 1612.03928).

    Q = sum over the channels of |f|^power, at every position; the mean over the batch of |Q_s / |Q_s| - Q_t / |Q_t||,
    with Euclidean norms over the positions.

    Args:
        f_s: the student's features (B, height, width, channels).
        f_t: the teacher's (B, height, width, its channels).
        power: of the activations.
        released: the code's form, the mean over batch and positions of the squared difference.

    Returns:
        One number; a map that is 0 stays 0.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> f = jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1)
        >>> print(f"{attention_transfer(3.0 * f, f):.4f} {attention_transfer(f[:, :, ::-1], f):.4f}")
        0.0000 1.0290
    """
    (f_s,) = as_floats("B height width channels", f_s=f_s)
    (f_t,) = as_floats("B height width channels", f_t=f_t)
    if f_t.shape[:3] != f_s.shape[:3]:
        raise ValueError(f"f_t: got {got(f_t)}, expected the batch, height and width of f_s, {got(f_s)}")
    check_count("power", power)

    def attention(f: Array) -> Array:
        Q = jnp.sum(jnp.abs(at_least_float32(f)) ** power, axis=3).reshape(len(f), -1)
        return Q / jnp.where((norm := euclidean_norm(Q)) > 0, norm, 1)[:, None]

    difference = attention(f_s) - attention(jax.lax.stop_gradient(f_t))
    return jnp.mean(difference**2) if released else jnp.mean(euclidean_norm(difference))


def rkd_distance(f_s: ArrayInput, f_t: ArrayInput) -> Array:
    """Relational distillation of distances (RKD-D, arXiv 1904.05068).

    psi_ij = ||f_i - f_j|| / the mean of these over all pairs i != j; the mean over the pairs of the Huber loss of
    psi(f_s) and psi(f_t), quadratic up to 1.

    Args:
        f_s: the student's embeddings (B, D).
        f_t: the teacher's (B, its D).

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated, or there is no pair.

    Example:
        >>> f = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> print(f"{rkd_distance(5.0 * f, f):.4f} {rkd_distance(f.at[2].set(1.0), f):.4f}")
        0.0000 0.0684
    """
    f_s, f_t = _embeddings(f_s, f_t, 2)
    size = len(f_s)

    def relative(f: Array) -> Array:
        distances = euclidean_norm(f[:, None] - f[None])
        mean = jnp.sum(distances) / (size * (size - 1))
        return distances / jnp.where(mean > 0, mean, 1)

    return jnp.sum(optax.huber_loss(relative(f_s), relative(f_t))) / (size * (size - 1))


def rkd_angle(f_s: ArrayInput, f_t: ArrayInput) -> Array:
    """Relational distillation of angles (RKD-A, arXiv 1904.05068).

    psi_ijk = cosine of the angle at j between f_i - f_j and f_k - f_j; the mean over the triplets of different samples
    of the Huber loss of psi(f_s) and psi(f_t). Memory B^3.

    Args:
        f_s: the student's embeddings (B, D).
        f_t: the teacher's (B, its D).

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated, or there is no triplet.

    Example:
        >>> f = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> print(f"{rkd_angle(5.0 * f + 1.0, f):.4f} {rkd_angle(f.at[2].set(1.0), f):.4f}")
        0.0000 0.1097
    """
    f_s, f_t = _embeddings(f_s, f_t, 3)
    size = len(f_s)

    def cosines(f: Array) -> Array:
        to = f[None] - f[:, None]
        length = euclidean_norm(to)
        direction = to / jnp.where(length > 0, length, 1)[..., None]
        return jnp.einsum("jid,jkd->jik", direction, direction, precision="highest")

    other = ~jnp.eye(size, dtype=bool)
    triplets = other[:, :, None] & other[:, None] & other[None]
    loss = optax.huber_loss(cosines(f_s), cosines(f_t))
    return jnp.sum(jnp.where(triplets, loss, 0)) / (size * (size - 1) * (size - 2))


def crd(f_s: ArrayInput, f_t: ArrayInput, negatives: ArrayInput, *, samples: int, temperature: Number = 0.07) -> Array:
    """Contrastive representation distillation with given negatives (CRD, arXiv 1910.10699), the student as the anchor.

        h(s, t) = e^(s . t / tau) / (e^(s . t / tau) + N / M)
        L = -mean_i (log h(s_i, t_i) + sum_n log(1 - h(s_i, t_in)))

    of normalised embeddings, M samples of the training set and N negatives, the teacher's embeddings of other samples.
    The released code adds the loss with the teacher as the anchor, and scales e^(s . t / tau) by its mean in the first
    batch; both are left to the caller.

    Args:
        f_s: the student's embeddings (B, D), projected to the size of the teacher's.
        f_t: the teacher's embeddings of the same samples (B, D).
        negatives: N other ones for each (B, N, D).
        samples: M.
        temperature: tau.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> f = jnp.array([[1.0, 0.0]])
        >>> print(f"{crd(f, f, -f[:, None], samples=100, temperature=1.0):.4f}")
        3.6357
    """
    f_s, f_t = (at_least_float32(x) for x in as_floats("B D", f_s=f_s, f_t=f_t))
    (negatives,) = as_floats("B N D", negatives=negatives)
    if (negatives.shape[0], negatives.shape[2]) != f_s.shape:
        raise ValueError(f"negatives: got {got(negatives)}, expected (B, N, D) with B and D of f_s, {got(f_s)}")
    check_count("samples", samples)
    check_number("temperature", temperature, above=0)
    fixed = jax.lax.stop_gradient((f_t, at_least_float32(negatives)))
    anchor, positive, negative = (unit(x) for x in (f_s, *fixed))
    shift = jnp.log(negatives.shape[1] / samples)
    agrees = jnp.einsum("bd,bd->b", anchor, positive, precision="highest") / temperature - shift
    differs = jnp.einsum("bd,bnd->bn", anchor, negative, precision="highest") / temperature - shift
    return jnp.mean(jax.nn.softplus(-agrees) + jnp.sum(jax.nn.softplus(differs), axis=1))


def _embeddings(f_s: ArrayInput, f_t: ArrayInput, at_least: int) -> tuple[Array, Array]:
    (f_s,) = as_floats("B D", f_s=f_s)
    (f_t,) = as_floats("B D", f_t=f_t)
    if len(f_t) != len(f_s) or len(f_s) < at_least:
        raise ValueError(f"f_t: got {got(f_t)}, expected as many samples as f_s, {got(f_s)}, and at least {at_least}")
    return at_least_float32(f_s), at_least_float32(jax.lax.stop_gradient(f_t))


def euclidean_norm(x: Array) -> Array:
    """Euclidean norm along the last axis, with gradient 0 at 0.

    Example:
        >>> jax.grad(lambda x: euclidean_norm(x))(jnp.zeros(2)).tolist()
        [0.0, 0.0]
    """
    squared = jnp.sum(x * x, axis=-1)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def unit(x: Array) -> Array:
    """x / |x| along the last axis; 0, with gradient 0, at 0.

    Example:
        >>> unit(jnp.array([[0.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    return x / jnp.where((norm := euclidean_norm(x)) > 0, norm, 1)[..., None]
