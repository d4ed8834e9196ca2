"""What `test_models_on_mesh` runs in a process of its own: eight virtual devices, and every kind of model."""

import sys
from functools import partial
from itertools import product
from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import kd
from experiments.training.config import MeshConfig
from experiments.training.mesh import AXES, batch_sharding, make_mesh, state_shardings
from lightnet.backbone import Backbone, CausalLM
from lightnet.positions import MDLRPE
from tests.contracts.test_mixers import MIXERS, of_ssm

BATCH, LENGTH, WIDTH, VOCABULARY = 8, 16, 32, 40
SHAPES = [shape for shape in product((1, 2, 4, 8), repeat=4) if prod(shape) == 8]  # data, fsdp, tensor, sequence
MIXED = [(2, 2, 2, 1), (1, 2, 2, 2), (2, 1, 2, 2), (1, 1, 2, 4)]
# What a mixer is built with; a new one is tested by existing.
OPTIONS = {
    "SoftmaxAttention": {"num_heads": 4, "max_length": LENGTH},
    "LightNetAttention": {"num_heads": 4, "relative": MDLRPE, "conv_width": 3},
    "LinearAttention": {"num_heads": 4},
    "MultiplicativeDecay": {"num_heads": 4},
    "Mamba2": {"head_size": 8},
}
EVERY_SHAPE = ("LightNetAttention", "Mamba")


def language_model(name):
    """Loss of next tokens, of packed rows where the mixer knows of them."""
    mixer = partial(MIXERS[name], **OPTIONS.get(name, {}))
    model = CausalLM(Backbone(mixer=mixer, num_layers=2, width=WIDTH), vocab_size=VOCABULARY)
    able = mixer(width=WIDTH).capabilities
    if not able.causal:
        raise ValueError(f"{name} is not causal, expected another loss for it")

    def loss(variables, batch):
        given = {"segment_ids": batch["segment_ids"]} if able.segments else {}
        logits = model.apply(variables, batch["tokens"], **given)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["next"][..., None], -1)
        return -chosen.mean()

    return lambda key: model.init(key, jnp.zeros((1, LENGTH), jnp.int32)), loss


def distillation():
    """A student of a larger teacher, whose parameters lie on the mesh too, without the logits of either."""
    student = Backbone(mixer=partial(MIXERS["Mamba"]), num_layers=1, width=WIDTH)
    teacher = Backbone(mixer=partial(MIXERS["SoftmaxAttention"], num_heads=4), num_layers=2, width=2 * WIDTH)
    table = nn.with_logical_partitioning(nn.initializers.normal(0.3), ("vocab", "embed"))

    def init(key):
        keys = jax.random.split(key, 4)
        return {
            "student": student.init(keys[0], jnp.zeros((1, LENGTH, WIDTH))),
            "teacher": teacher.init(keys[1], jnp.zeros((1, LENGTH, 2 * WIDTH))),
            "W_s": table(keys[2], (VOCABULARY, WIDTH)),
            "W_t": table(keys[3], (VOCABULARY, 2 * WIDTH)),
        }

    def loss(variables, batch):
        h_s, _ = student.apply(variables["student"], variables["W_s"][batch["tokens"]])
        h_t, _ = teacher.apply(variables["teacher"], variables["W_t"][batch["tokens"]])
        rows = [h.reshape(-1, h.shape[-1]) for h in (h_s, jax.lax.stop_gradient(h_t))]
        heads = variables["W_s"], jax.lax.stop_gradient(variables["W_t"])
        return kd.chunked_divergence("forward_kl", rows[0], heads[0], rows[1], heads[1], token_chunk=32)

    return init, loss


def build(name):
    """Initialisation and loss of a model."""
    return distillation() if name == "distillation" else language_model(name)


def draw():
    """Tokens of rows that are packed."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (BATCH, LENGTH + 1), dtype=np.int32)
    ids = np.cumsum(random.random((BATCH, LENGTH)) < 0.2, axis=1).astype(np.int32)
    return {"tokens": tokens[:, :-1], "next": tokens[:, 1:], "segment_ids": ids}


def check(name, shapes):
    """Loss and gradients on each mesh against one device."""
    init, loss = build(name)
    batch = draw()
    differentiate = jax.jit(jax.value_and_grad(loss))
    boxed = jax.eval_shape(init, jax.random.key(0))
    # Initial kernels of scale 0.02 make models nearly constant; those of ssm are as they should be.
    scale = 1 if name in MIXERS and of_ssm(MIXERS[name]) else 3
    variables = jax.tree.map(lambda w: scale * w, nn.meta.unbox(jax.jit(init)(jax.random.key(0))))
    expected, gradient = jax.device_get(differentiate(variables, batch))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
    for shape in shapes:
        mesh = make_mesh(MeshConfig(**dict(zip(AXES, shape, strict=True))))
        with jax.set_mesh(mesh):
            placed = jax.device_put(variables, state_shardings(boxed, mesh))
            rows = jax.device_put(batch, batch_sharding(mesh))
            found, slopes = jax.jit(jax.value_and_grad(loss))(placed, rows)
        assert abs(float(found) - float(expected)) < 1e-5 * abs(float(expected)), (shape, found, expected)
        for (path, leaf), other in zip(
            jax.tree_util.tree_leaves_with_path(jax.device_get(slopes)), jax.tree.leaves(gradient), strict=True
        ):
            # Of leaves that hardly have a gradient, relative to a thousandth of the whole.
            size = max(np.linalg.norm(other), 1e-3 * norm)
            assert np.linalg.norm(leaf - other) < 1e-5 * size, (shape, jax.tree_util.keystr(path))


if __name__ == "__main__":
    check(sys.argv[1], SHAPES if sys.argv[2] == "all" else MIXED)
    print("ok")
