"""Chunked and tiled evaluation against the dense one, its memory, and meshes of eight virtual devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from tests.kd.cases import CASES, in_float64, name

ROOT = Path(__file__).parents[2]
RANDOM = np.random.default_rng(1)
B, T, V, H = 2, 7, 11, 4
STUDENT = RANDOM.normal(size=(B, T, H)), RANDOM.normal(size=(V, H))
TEACHER = RANDOM.normal(size=(B, T, H - 1)), RANDOM.normal(size=(V, H - 1))
MASK = RANDOM.random((B, T)) < 0.7


def dense(kind, h_s, W_s, h_t, W_t, mask, **args):
    h_s, h_t = (jnp.where(mask[..., None], h, 0) for h in (h_s, h_t))
    logits = (jnp.einsum("bth,vh->btv", *head) for head in ((h_s, W_s), (h_t, W_t)))
    return kd.reduce_tokens(kd.token_divergence(kind, *logits, mask=mask, **args), mask)


def poisoned(h):
    return np.where(MASK[..., None], h, np.nan)


@pytest.mark.parametrize(
    ("kind", "args", "vocab_chunk"),
    [
        pytest.param(*case[:2], (None, 4)[i % 2], id=name(case), marks=[pytest.mark.slow] * (i != 5))
        for i, case in enumerate(CASES)
    ],
)
def test_equal_to_dense(kind, args, vocab_chunk):
    """Chunks that do not divide, a factor from outside; what stands at masked tokens does not matter."""
    args = {**args, "temperature": 1.5, "tau_squared": True}
    chunks = {"token_chunk": 3, "vocab_chunk": vocab_chunk}
    want, gradients = in_float64(
        jax.value_and_grad(lambda *x: dense(kind, *x, **args), (0, 1)), *STUDENT, *TEACHER, MASK
    )
    hidden = poisoned(STUDENT[0]), STUDENT[1], poisoned(TEACHER[0]), TEACHER[1], MASK
    value, (dh, dW) = in_float64(
        jax.value_and_grad(lambda *x: 3 * kd.chunked_divergence(kind, *x, **chunks, **args), (0, 1)), *hidden
    )
    np.testing.assert_allclose(value, 3 * want, rtol=1e-12)
    np.testing.assert_allclose(dh, 3 * gradients[0], rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(dW, 3 * gradients[1], rtol=1e-9, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(("token_chunk", "vocab_chunk"), [(1, 1), (5, 10), (14, 11), (100, 100), (13, 3)])
def test_every_size_of_chunk(token_chunk, vocab_chunk):
    operands = (*STUDENT, *TEACHER, MASK)
    want = in_float64(jax.value_and_grad(lambda *x: dense("jsd", *x), (0, 1)), *operands)
    chunks = {"token_chunk": token_chunk, "vocab_chunk": vocab_chunk}
    have = in_float64(jax.value_and_grad(lambda *x: kd.chunked_divergence("jsd", *x, **chunks), (0, 1)), *operands)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-13), have, want)


def test_cross_entropy():
    y = np.where(MASK, RANDOM.integers(0, V, (B, T)), -100)

    def plain(h, W):
        log_q = jax.nn.log_softmax(jnp.einsum("bth,vh->btv", h, W))
        return kd.reduce_tokens(-jnp.take_along_axis(log_q, y[..., None], 2)[..., 0], MASK)

    def ours(h, W):
        chunks = ({"vocab_chunk": tile, "token_chunk": 5} for tile in (None, 4))
        loss = [jax.value_and_grad(lambda *x: kd.chunked_cross_entropy(*x, y, MASK, **c), (0, 1)) for c in chunks]  # noqa: B023
        return [f(h, W) for f in loss]

    want = in_float64(jax.value_and_grad(plain, (0, 1)), *STUDENT)
    for have in in_float64(ours, poisoned(STUDENT[0]), STUDENT[1]):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-13), have, want)


@pytest.mark.slow
def test_teacher_denominator_and_nothing_to_count():
    operands = [x.astype(np.float32) for x in (*STUDENT, *TEACHER)]

    def loss(*x, mask=MASK, **named):
        return kd.chunked_divergence("forward_kl", *x, mask, token_chunk=4, **named)

    to_teacher = jax.jit(jax.grad(loss, (2, 3)))(*operands)
    assert all((x == 0).all() for x in to_teacher)
    whole = loss(*operands)
    parts = [
        kd.chunked_divergence(
            "forward_kl", h, operands[1], h_t, operands[3], m, token_chunk=4, denominator=int(MASK.sum())
        )
        for h, h_t, m in zip(operands[0], operands[2], MASK, strict=True)
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)
    value, gradient = jax.value_and_grad(lambda h: loss(h, *operands[1:], mask=np.zeros((B, T), bool)))(operands[0])
    assert value == 0 and (gradient == 0).all()
    more = np.concatenate([operands[3], operands[3][:2]])
    np.testing.assert_allclose(loss(*operands[:3], more, common_vocab=V), whole, rtol=1e-6)


@pytest.mark.slow
def test_over_seeds():
    h, W = (np.stack([x, 0.5 * x]).astype(np.float32) for x in STUDENT)

    def loss(h, W):
        return kd.chunked_divergence("jsd", h, W, 2 * h, W, token_chunk=3, vocab_chunk=4)

    have = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1))))(h, W)
    want = jax.jit(jax.value_and_grad(loss, (0, 1)))(h[1], W[1])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-5, atol=1e-7), have, want)


@pytest.mark.slow
def test_bfloat16():
    low = [jnp.asarray(x, jnp.bfloat16) for x in (*STUDENT, *TEACHER)]
    exact = in_float64(lambda *x: dense("forward_kl", *x), *(np.asarray(x, np.float64) for x in low), MASK)
    value, gradient = jax.value_and_grad(
        lambda *x: kd.chunked_divergence("forward_kl", *x, MASK, token_chunk=3, vocab_chunk=4), (0, 1)
    )(*low)
    assert value.dtype == jnp.float32 and {g.dtype for g in gradient} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(value, exact, rtol=2e-2)


def temporaries(loss, tokens, vocabulary=151_936, width=512):
    """Bytes beside arguments and results of the loss with its gradients by h and W."""
    shapes = [(tokens, width), (vocabulary, width)] * 2
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*operands).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory():
    jax.config.update("jax_disable_most_optimizations", False)

    def all_at_once(h_s, W_s, h_t, W_t):
        logits = (jnp.einsum("th,vh->tv", *head) for head in ((h_s, W_s), (h_t, W_t)))
        return kd.reduce_tokens(kd.token_divergence("forward_kl", *logits))

    largest = temporaries(all_at_once, 2048)
    for chunks in ({"token_chunk": 64}, {"token_chunk": 256, "vocab_chunk": 8192}):

        def chunked(*operands, chunks=chunks):
            return kd.chunked_divergence("forward_kl", *operands, **chunks)

        small, long = (temporaries(chunked, tokens) for tokens in (2048, 8192))
        assert small <= largest / 20
        assert long - small < 8192 * 64  # a few numbers per token


@pytest.mark.slow
def test_meshes():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    command = [sys.executable, "-m", "tests.kd.on_mesh"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "ok\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_t": TEACHER[1][:9]}, r"W_t: got float..\[9, 3\], expected the 11 rows of W_s, or common_vocab"),
        ({"h_t": TEACHER[0][:, :3]}, r"h_t: got float..\[2, 3, 3\], expected the axes \[2, 7\] of h_s"),
        ({"W_s": STUDENT[1].T}, r"W_s: got float..\[4, 11\], expected \(V, H\) with the last axis of h_s"),
        ({"token_chunk": 0}, "token_chunk: got 0, expected an integer of at least 1"),
        ({"vocab_chunk": -1}, "vocab_chunk: got -1, expected an integer"),
        ({"mask": MASK.T}, r"mask: got bool\[7, 2\], expected bool\[2, 7\]"),
        ({"common_vocab": 12}, "common_vocab: got 12, expected an integer of at least 1 and at most 11"),
        ({"kind": "cross_entropy"}, "kind: got 'cross_entropy', expected one of forward_kl"),
    ],
)
def test_refused(change, message):
    given = dict(zip(("h_s", "W_s", "h_t", "W_t"), (*STUDENT, *TEACHER), strict=True))
    with pytest.raises(ValueError, match=f"^{message}"):
        kd.chunked_divergence(**{"kind": "l2", "mask": MASK, "token_chunk": 3, **given, **change})


def test_labels_out_of_range():
    with pytest.raises(ValueError, match=r"^y: got 11 at \[1, 6\], expected labels from 0 to 10"):
        kd.chunked_cross_entropy(*STUDENT, np.where(np.arange(B * T).reshape(B, T) == 13, 11, 0), token_chunk=3)
