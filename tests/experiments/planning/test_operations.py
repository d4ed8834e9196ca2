"""Operations counted from jaxprs against closed formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from experiments.language_models import LanguageModel
from experiments.planning.operations import Operations, count

M, K, N = 3, 5, 7
LEFT, RIGHT = jax.ShapeDtypeStruct((M, K), "float32"), jax.ShapeDtypeStruct((K, N), "float32")
ONE = 2 * M * K * N


def counted(function, *arguments, platform="tpu"):
    return count(jax.make_jaxpr(function)(*arguments), platform)


def test_a_product_and_its_gradient():
    assert counted(jnp.dot, LEFT, RIGHT).products == ONE
    gradient = jax.grad(lambda x, y: jnp.sum((x @ y) ** 2), argnums=(0, 1))
    assert counted(gradient, LEFT, RIGHT).products == 3 * ONE


@pytest.mark.parametrize(("precision", "passes"), [(None, 1), ("high", 3), ("highest", 6)])
def test_products_at_high_precision_take_more_passes(precision, passes):
    assert counted(lambda x, y: jnp.dot(x, y, precision=precision), LEFT, RIGHT) == (ONE, passes * ONE, 0, 0)
    of_a_gpu = {1: 2, 3: 2, 6: 989 / 67}[passes]
    on_a_gpu = counted(lambda x, y: jnp.dot(x, y, precision=precision), LEFT, RIGHT, platform="cuda")
    assert on_a_gpu == (ONE, of_a_gpu * ONE, 0, 0)
    narrow = [jax.ShapeDtypeStruct(x.shape, "bfloat16") for x in (LEFT, RIGHT)]
    assert counted(lambda x, y: jnp.dot(x, y, precision=precision), *narrow).passes == ONE


def test_a_convolution_in_groups():
    images, kernels = jnp.zeros((2, 8, 9, 6)), jnp.zeros((3, 4, 2, 12))

    def convolve(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
        )

    assert counted(convolve, images, kernels).products == 2 * (2 * 8 * 9 * 12) * (3 * 4 * 2)


def test_loops_count_as_often_as_they_turn():
    square = jax.ShapeDtypeStruct((4, 4), "float32")

    def nested(x):
        inner = lambda y: lax.fori_loop(2, 9, lambda _, z: z @ x, y)  # noqa: E731
        return lax.scan(lambda y, _: (inner(y), None), x, length=5)[0]

    assert counted(nested, square) == Operations(2 * 64 * 35, 2 * 64 * 35)


def test_a_loop_without_a_known_end_counts_once_and_is_told():
    square = jax.ShapeDtypeStruct((4, 4), "float32")
    found = counted(lambda x: lax.while_loop(lambda y: y.sum() < 3, lambda y: y @ y, x), square)
    assert found == Operations(128, 128, endless=1)


def test_a_branch_is_the_largest_one_or_that_of_the_platform():
    square = jax.ShapeDtypeStruct((4, 4), "float32")
    cond = counted(lambda x: lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x), square)
    assert cond.products == 256

    def chosen(x):
        return lax.platform_dependent(x, tpu=lambda y: y @ y @ y, default=lambda y: y @ y)

    def within(x):
        return lax.scan(lambda y, _: (jax.jit(chosen)(y), None), x, length=2)[0]

    assert [counted(within, square, platform=name).products for name in ("tpu", "cuda")] == [512, 256]


def test_what_rematerialisation_does_again_is_told():
    def block(x):
        return lax.scan(lambda y, _: (jnp.sin(y @ x), None), x, length=3)[0]

    square = jax.ShapeDtypeStruct((4, 4), "float32")
    plain = counted(jax.grad(lambda x: block(block(x)).sum()), square)
    again = jax.checkpoint(block, policy=jax.checkpoint_policies.nothing_saveable)
    found = counted(jax.grad(lambda x: again(again(x)).sum()), square)
    assert plain == Operations(18 * 128, 18 * 128)
    assert found == Operations(24 * 128, 24 * 128, 6 * 128)


def test_a_kernel_counts_for_each_step_of_its_grid():
    def kernel(x, o):
        o[...] = x[...] @ x[...]

    block = pl.BlockSpec((8, 8), lambda i, j: (i, j))
    shape = jax.ShapeDtypeStruct((16, 24), "float32")
    call = pl.pallas_call(kernel, shape, grid=(2, 3), in_specs=[block], out_specs=block)
    assert counted(call, shape).products == 6 * 2 * 8**3


def test_what_is_written_for_one_device_counts_for_all_that_do_it():
    mesh = AbstractMesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    share = jax.shard_map(
        lambda x, y: x @ y,
        mesh=mesh,
        in_specs=(PartitionSpec("b"), PartitionSpec()),
        out_specs=PartitionSpec("b"),
        axis_names={"b"},
        check_vma=False,
    )
    assert counted(share, jnp.zeros((4 * M, K)), jnp.zeros((K, N))).products == 4 * ONE


def test_a_transformer_takes_six_operations_per_parameter_and_token_and_its_attention():
    layers, width, hidden, vocabulary, batch, length = 2, 32, 48, 61, 3, 20
    model = LanguageModel(
        vocabulary, mixer="softmax", positions="none", num_layers=layers, width=width, num_heads=4, hidden=hidden
    ).build()
    tokens = jax.ShapeDtypeStruct((batch, length), "int32")
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    found = counted(jax.grad(lambda v, t: jnp.sum(model.apply(v, t))), variables, tokens)
    matrices = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables) if np.prod(leaf.shape) > width)
    attention = 12 * layers * length * width  # scores and their product with values, forward and twice backward
    assert found.products == pytest.approx(batch * length * (6 * matrices + attention), rel=0.03)
    assert found.endless == 0
