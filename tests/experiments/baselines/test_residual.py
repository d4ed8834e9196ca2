"""Residual networks: their published sizes, their equations written out, and what normalising over a batch means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.baselines.residual import residual_network
from experiments.baselines.residual_sizes import read_size

IMAGE = (1, 32, 32, 3)


def counted(name):
    """Parameters by the papers' tables: convolutions have no bias, normalisations two numbers per channel."""
    kind, blocks, (first, *widths) = read_size(name, "name")
    total, before = 27 * first + (2 * first if kind == "resnet" else 2 * widths[-1]), first
    for stage, width in enumerate(widths):
        around = before != width or (kind == "resnet" and stage > 0)
        normalised = 4 * width if kind == "resnet" else 2 * before + 2 * width
        total += 9 * before * width + 9 * width**2 + normalised
        total += around * (before * width + (2 * width if kind == "resnet" else 0))
        total += (blocks - 1) * (18 * width**2 + 4 * width)
        before = width
    return total + 100 * before + 100


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 278_324),
        ("resnet32", 472_756),
        ("resnet56", 861_620),
        ("resnet110", 1_736_564),
        ("resnet8x4", 1_233_540),
        ("resnet32x4", 7_433_860),
        ("wrn-16-2", 703_284),
        ("wrn-40-1", 569_780),
        ("wrn-40-2", 2_255_156),
    ],
)
def test_networks_have_the_parameters_of_the_papers_tables(name, count):
    shapes = jax.eval_shape(residual_network(name, 100).init, jax.random.key(0), jnp.zeros(IMAGE))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == counted(name) == count


def convolved(x, kernel, stride=1):
    """Zeros on all sides of a kernel of 3 x 3, none around one of 1 x 1."""
    kernel = kernel["kernel"]
    k, around = kernel.shape[0], kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (around, around), (around, around), (0, 0)))
    places = [slice(i, x.shape[1] - k + 1 + i, stride) for i in range(k)]
    return sum(x[:, places[i], :][:, :, places[j]] @ kernel[i, j] for i in range(k) for j in range(k))


def normalised(x, name, variables, batch):
    scale, bias = (variables["params"][name][key] for key in ("scale", "bias"))
    mean, variance = (variables["batch_stats"][name][key] for key in ("mean", "var"))
    if batch:
        mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + bias


def part(variables, name):
    return {collection: values[name] for collection, values in variables.items()}


def block(x, variables, stride, wide, batch):
    """The docstrings of the blocks."""
    params = variables["params"]
    conv = [params[name] for name in sorted(params) if name.startswith("Conv")]

    def norm(x, i):
        return normalised(x, f"BatchNorm_{i}", variables, batch)

    if wide:
        z = np.maximum(norm(x, 0), 0)
        y = convolved(np.maximum(norm(convolved(z, conv[0], stride), 1), 0), conv[1])
        return (convolved(z, conv[2], stride) if len(conv) > 2 else x) + y
    y = norm(convolved(np.maximum(norm(convolved(x, conv[0], stride), 0), 0), conv[1]), 1)
    return np.maximum((norm(convolved(x, conv[2], stride), 2) if len(conv) > 2 else x) + y, 0)


def written_out(variables, x, wide, batch):
    x = convolved(x, variables["params"]["Conv_0"])
    if not wide:
        x = np.maximum(normalised(x, "BatchNorm_0", variables, batch), 0)
    for i, stride in enumerate((1, 2, 2)):
        x = block(x, part(variables, f"{'WideBlock' if wide else 'Block'}_{i}"), stride, wide, batch)
    if wide:
        x = np.maximum(normalised(x, "BatchNorm_0", variables, batch), 0)
    features, head = x.mean(axis=(1, 2)), variables["params"]["head"]
    return features, features @ head["kernel"] + head["bias"]


def drawn(net):
    """Variables in which no normalisation is the identity."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(IMAGE))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.uniform(0.2, 1.0, leaf.shape) * (0.1 if leaf.ndim == 4 else 1), shapes)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", ["resnet8", "wrn-10-1"])
def test_it_is_what_is_written_out(name, batch):
    net = residual_network(name, 7)
    variables, images = drawn(net), np.random.default_rng(0).normal(size=(2, 12, 12, 3))
    seen, changed = net.apply(variables, images, train=batch, mutable=["batch_stats"])
    features, logits = written_out(variables, images, name.startswith("wrn"), batch)
    np.testing.assert_allclose(seen.features, features, rtol=1e-4)
    np.testing.assert_allclose(seen.logits, logits, rtol=1e-4)
    first = "WideBlock_0" if "wrn" in name else "Block_0"
    before, after = variables["batch_stats"][first], changed["batch_stats"][first]
    same = jax.tree.map(lambda x, y: bool(np.allclose(x, y)), before, after)
    assert jax.tree.all(same) == (not batch)


def test_the_running_mean_takes_a_tenth_of_the_batch():
    net, images = residual_network("resnet8", 7), np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    variables = drawn(net)
    _, changed = net.apply(variables, images, train=True, mutable=["batch_stats"])
    first = convolved(images, variables["params"]["Conv_0"]).mean(axis=(0, 1, 2))
    expected = 0.9 * variables["batch_stats"]["BatchNorm_0"]["mean"] + 0.1 * first
    np.testing.assert_allclose(changed["batch_stats"]["BatchNorm_0"]["mean"], expected, rtol=1e-4, atol=1e-5)


def test_initial_kernels_have_the_variance_of_their_outputs():
    init = jax.jit(residual_network("resnet8", 100).init)
    params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    kernel = np.asarray(params["Block_2"]["Conv_0"]["kernel"])
    # The deviation of n numbers is known to one part in sqrt(2 n): three times that.
    assert kernel.shape == (3, 3, 32, 64) and kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.016)
    head = np.asarray(params["head"]["kernel"])
    assert abs(head).max() <= 1 / 8 and head.std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.027)


@pytest.mark.parametrize("name", ["resnet9", "resnet2", "resnet20x2", "wrn-16", "wrn-15-2", "wrn-16-0", "vgg13"])
def test_names_of_nothing_are_refused(name):
    with pytest.raises(ValueError, match=f"student: got '{name}', expected resnetD"):
        read_size(name, "student")
