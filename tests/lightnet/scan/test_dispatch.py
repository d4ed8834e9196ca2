"""The dispatcher: which implementation runs, and what `explain` says of it."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from lightnet.scan import additive_global, explain
from lightnet.scan.dispatch import Call, choices, dispatch, lowered_for
from lightnet.scan.recurrence import Axes, Kernel, Recurrence, tokens_of
from tests.lightnet.scan.calls import CALLS, operands


def named(name):
    """An implementation that says in its output which one ran."""
    return lambda operands, state, tokens, **options: (operands + len(name) + options.get("add", 0), state)


AXES = Axes("D", "D", "D")
PLAIN = Recurrence("plain", AXES, reference=named("r"), xla=named("xl"))


def kernel(name, refusal=lambda operands, **options: None, **options):
    return Kernel(named(name), refusal, **options)


def too_large(operands, add=0):
    return "operands above 1" if float(operands.max()) + add > 1 else None


SMALL_ONLY = Recurrence(
    "small_only",
    AXES,
    reference=named("r"),
    xla=named("xl"),
    kernels={"tpu": kernel("tpu", too_large), "cpu": kernel("four", too_large)},
)
ZERO, NO_TOKENS = jnp.zeros(2), tokens_of(None, None)


def run(recurrence, implementation, operands=ZERO, **options):
    return dispatch(recurrence, implementation, operands, ZERO, NO_TOKENS, **options)[0][0]


def test_a_name_is_honoured():
    assert run(PLAIN, "reference") == 1
    assert run(PLAIN, "xla") == 2
    assert run(PLAIN, None) == 2
    assert run(PLAIN, "xla", add=5) == 7


def test_the_kernel_of_the_platform_that_is_lowered_for_is_the_default():
    assert run(SMALL_ONLY, None) == 4
    assert run(SMALL_ONLY, "pallas", add=1) == 5
    assert run(SMALL_ONLY, "pallas_interpret") == 3
    assert run(SMALL_ONLY, None, ZERO + 2) == 4  # a refused operand: 2 + the two letters of "xl"
    assert run(SMALL_ONLY, None, add=5) == 7  # and a refused option
    assert jax.jit(lambda x: dispatch(PLAIN, None, x, ZERO, NO_TOKENS)[0])(ZERO)[0] == 2


def test_one_platform_alone_is_traced():
    for platform, found in (("tpu", 3), ("cpu", 4), ("cuda", 2)):
        with lowered_for(platform):
            assert run(SMALL_ONLY, None) == found
            assert run(SMALL_ONLY, None, ZERO + 2) == 4  # a refused operand
            assert run(SMALL_ONLY, "xla") == 2
    with pytest.raises(ValueError, match="platform: got 'gpu', expected one of cpu, cuda, tpu"):
        lowered_for("gpu")


def test_what_was_traced_for_one_platform_is_traced_anew_for_others():
    with_kernel = Recurrence("kernel", AXES, reference=named("r"), xla=named("xl"), kernels={"tpu": kernel("tpu")})
    compiled = jax.jit(lambda x: dispatch(with_kernel, None, x, ZERO, NO_TOKENS)[0])
    with lowered_for("tpu"):
        assert compiled(ZERO)[0] == 3
        assert "platform_index" not in str(jax.make_jaxpr(compiled)(ZERO))
    assert compiled(ZERO)[0] == 2
    assert "platform_index" in str(jax.make_jaxpr(compiled)(ZERO))


@pytest.mark.parametrize("implementation", ["cuda", "", "Reference"])
def test_an_unknown_name_is_refused_with_the_known_ones(implementation):
    with pytest.raises(ValueError, match=f"got '{implementation}', expected None or one of reference, xla, pallas"):
        run(PLAIN, implementation)


@pytest.mark.parametrize("implementation", ["pallas", "pallas_interpret"])
def test_a_name_that_cannot_be_honoured_is_refused_with_the_reason(implementation):
    with pytest.raises(ValueError, match=r"plain here .*tpu: there is no kernel.*expected None, 'reference' or 'xla'"):
        run(PLAIN, implementation)
    with pytest.raises(ValueError, match="tpu: operands above 1"):
        run(SMALL_ONLY, implementation, ZERO + 2)


def test_a_kernel_for_another_platform_is_refused():
    tpu_only = Recurrence("tpu_only", AXES, named("r"), named("xl"), kernels={"tpu": kernel("tpu")})
    with pytest.raises(ValueError, match="got 'pallas', expected another where tpu_only .* for tpu"):
        run(tpu_only, "pallas")


def test_a_kernel_that_was_never_timed_runs_only_when_it_is_asked_for():
    kernels = {"cpu": kernel("four", picked=False), "tpu": kernel("tpu")}
    untimed = Recurrence("untimed", AXES, named("r"), named("xl"), kernels=kernels)
    assert run(untimed, None) == 2
    assert run(untimed, "pallas") == 4
    assert choices(untimed)["tpu"][0] == "pallas"
    implementation, why = choices(untimed)["cpu"]
    assert (implementation, "implementation='pallas' runs, has not been timed" in why) == ("xla", True)


def test_choices_say_what_runs_where_and_why():
    assert set(choices(PLAIN)) == {"cpu", "cuda", "tpu"}
    assert choices(PLAIN)["tpu"] == ("xla", "there is no kernel for this platform")
    assert choices(SMALL_ONLY)["tpu"][0] == "pallas"
    assert choices(SMALL_ONLY, Call(ZERO + 2, {}))["tpu"] == ("xla", "operands above 1")
    assert choices(SMALL_ONLY, Call(ZERO, {"add": 5}))["tpu"] == ("xla", "operands above 1")
    assert choices(SMALL_ONLY, Call(ZERO, {}))["cuda"][0] == "xla"


def test_interpreting_needs_the_kernel_for_tpus():
    hopper_only = Recurrence("hopper_only", AXES, named("r"), named("xl"), kernels={"cuda": kernel("cuda")})
    with pytest.raises(ValueError, match="'pallas_interpret' cannot run hopper_only here .*tpu: there is no kernel"):
        run(hopper_only, "pallas_interpret")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_explain_names_platforms_and_the_mesh():
    x = jax.ShapeDtypeStruct((4, 6, 2), jnp.float32)
    mask = jax.ShapeDtypeStruct((4, 6), jnp.bool_)
    assert explain("linear_scan", x, x) == explain("linear_scan")
    mesh = AbstractMesh((2, 2, 3), ("data", "sequence", "other"), axis_types=(AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        with jax.checking_leaks():
            lines = explain("linear_scan", x, b=x, mask=mask).splitlines()
        alone = explain("linear_scan", *(jax.ShapeDtypeStruct((1, 1, 1), jnp.float32),) * 2).splitlines()
        no_kernel = explain("causal_conv", *(jax.ShapeDtypeStruct((1, 1, 1)[:n], jnp.float32) for n in (3, 2)))
    assert lines[-1] == "linear_scan on this mesh: B over data (2 parts); L over sequence (2 parts)"
    assert len(lines) == 4
    assert alone[3:] == ["linear_scan on this mesh: every device computes everything"]  # on TPUs
    assert len(no_kernel.splitlines()) == 3


@pytest.mark.parametrize("segments", [5000, 6000])
def test_explain_says_what_runs_for_as_many_segments(segments):
    """The kernel for TPUs has no room for the order of more of them; the part of one device counts."""
    q, ids = jax.ShapeDtypeStruct((4, 512, 1, 128), jnp.float32), jax.ShapeDtypeStruct((4, 512), jnp.int32)
    given = {"segment_ids": ids, "num_segments": segments}
    why = f"{segments} segments of 4 sequences of 512 tokens take more than 16384 steps"
    assert f"on tpu: xla ({why})" in explain("additive_global", q, q, q, **given)

    def run(q, segment_ids, implementation):
        given = {"segment_ids": segment_ids, "num_segments": segments}
        return additive_global(q, q, q, implementation=implementation, **given)

    default = jax.jit(partial(run, implementation=None)).trace(q, ids)
    assert "tpu_custom_call" not in default.lower(lowering_platforms=("tpu",)).as_text()
    with pytest.raises(ValueError, match=f"tpu: {why}"):
        jax.eval_shape(partial(run, implementation="pallas"), q, ids)
    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh):
        assert ("on tpu: pallas" in explain("additive_global", q, q, q, **given)) == (segments == 5000)


def test_explain_says_that_no_kernel_is_for_a_sequence_without_an_order_that_is_split():
    q = jax.ShapeDtypeStruct((4, 512, 1, 128), jnp.float32)
    mesh = AbstractMesh((4,), ("sequence",), axis_types=(AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh):
        assert "on tpu: xla (the kernel is for whole sequences, and" in explain("additive_global", q, q, q)
        with pytest.raises(ValueError, match="cannot run additive_global here .*the mesh splits them"):
            jax.eval_shape(partial(additive_global, implementation="pallas"), q, q, q)


def test_explain_refuses_what_the_function_refuses():
    with pytest.raises(ValueError, match="function: got 'scan', expected one of linear_scan"):
        explain("scan")
    with pytest.raises(ValueError, match="a: got"):
        explain("linear_scan", *(jax.ShapeDtypeStruct((1, 2, n), jnp.float32) for n in (2, 3)))


@pytest.mark.parametrize("name", sorted(CALLS))
def test_float32_runs_under_x64_where_no_kernel_can_be_traced(name):
    def gradients(*args):
        outputs, pull = jax.vjp(CALLS[name], *args)
        return pull(jax.tree.map(jnp.ones_like, outputs))

    args = operands(name, 1, 3, seed=0)
    with jax.enable_x64(True):
        found = jax.eval_shape(gradients, *args)
    assert [x.dtype for x in found] == [x.dtype for x in args]


def test_no_kernel_is_offered_under_x64():
    with jax.enable_x64(True):
        assert "on tpu: xla (under jax_enable_x64" in explain("gated_linear_attention")
        with pytest.raises(ValueError, match="tpu: under jax_enable_x64 the kernel's indices"):
            run(SMALL_ONLY, "pallas")
