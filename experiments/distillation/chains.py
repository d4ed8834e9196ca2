"""Sequences of a Markov teacher and of students with less memory: losses, gradients and measures without samples.

A teacher of order 2 goes on from two symbols, any two alike unless stated, and so does a student. A context is the last
two symbols; what is visited after t symbols is a law over contexts, d_t, and follows from the one before. So the
divergences of whole sequences are sums over positions and contexts:

    KL(teacher, student) = sum_t sum_s d_t^teacher(s) KL(p(. | s), q(. | s))
    KL(student, teacher) = sum_t sum_s d_t^student(s) KL(q(. | s), p(. | s))

A student that sees one symbol only cannot be its teacher. Its logits are a table (A, A), by the last symbol. From the
stationary law, such a student trained by forward KL visits what its teacher visits, exactly: it has the pairs right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kd
from experiments.distillation.descent import fitted
from experiments.sources import MarkovSource


class Teacher(NamedTuple):
    """A source of order 2.

    Attributes:
        log_p: next symbols by context, the older symbol first (A A, A).
        start: law of the contexts that sequences go on from (A A).
    """

    log_p: Any
    start: Any


class Measures(NamedTuple):
    """How far a student's sequences are from the teacher's.

    Attributes:
        forward: KL(teacher, student) of whole sequences, nats.
        reverse: KL(student, teacher), nats.
        distance: total variation between the laws of the visited contexts, mean over the positions.
    """

    forward: Any
    reverse: Any
    distance: Any


def dirichlet_teacher(seed: int, symbols: int = 6, concentration: float = 0.15) -> Teacher:
    """A teacher with independent rows that goes on from any two symbols alike.

    Args:
        seed: of the rows.
        symbols: A.
        concentration: of their Dirichlet law; the smaller, the fewer symbols follow a context.

    Returns:
        The teacher.

    Example:
        >>> teacher = dirichlet_teacher(0, symbols=3)
        >>> teacher.log_p.shape, round(float(teacher.start.sum()), 6)
        ((9, 3), 1.0)
    """
    rows = np.random.default_rng(seed).dirichlet(np.full(symbols, concentration), symbols**2)
    rows = np.maximum(rows, 1e-30)  # keeps every logarithm finite
    return Teacher(np.log(rows / rows.sum(1, keepdims=True)), np.full(symbols**2, 1 / symbols**2))


def from_stationary(teacher: Teacher) -> Teacher:
    """The same teacher, going on from its stationary law.

    Example:
        >>> teacher = from_stationary(dirichlet_teacher(0, symbols=3))
        >>> bool(np.allclose(visited(teacher.log_p, teacher.start, 5), teacher.start, atol=1e-6))
        True
    """
    symbols = teacher.log_p.shape[-1]
    return teacher._replace(start=MarkovSource(np.exp(teacher.log_p).reshape((symbols,) * 3)).stationary.ravel())


def stacked(teachers: list[Teacher]) -> Teacher:
    """Several teachers with a leading axis."""
    return Teacher(*(np.stack(leaves) for leaves in zip(*teachers, strict=True)))


def by_context(table: Any) -> jax.Array:
    """Logits of all contexts (A A, A) of a student that sees the last symbol (A, A).

    Example:
        >>> by_context(jnp.array([[0.0, 1.0], [2.0, 3.0]])).tolist()
        [[0.0, 1.0], [2.0, 3.0], [0.0, 1.0], [2.0, 3.0]]
    """
    return jnp.tile(table, (len(table), 1))


def by_both(tables: Any) -> jax.Array:
    """Logits of all contexts (A A, A) of a student that adds what each of two symbols says (2, A, A), the older first.

    Example:
        >>> by_both(jnp.array([[[0.0, 1.0], [2.0, 3.0]], [[10.0, 10.0], [20.0, 20.0]]])).tolist()
        [[10.0, 11.0], [20.0, 21.0], [12.0, 13.0], [22.0, 23.0]]
    """
    symbols = tables.shape[-1]
    return (tables[0][:, None] + tables[1][None]).reshape(symbols**2, symbols)


def visited(log_pi: Any, start: Any, length: int) -> jax.Array:
    """Laws of the contexts before each symbol, and after the last.

    Args:
        log_pi: log probabilities by context (A A, A).
        start: before the first symbol (A A).
        length: of the sequences, T.

    Returns:
        (T + 1, A A).

    Example:
        >>> alternating = jnp.log(jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
        >>> visited(alternating, jnp.array([0.0, 1.0, 0.0, 0.0]), 2).tolist()
        [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    """
    symbols = log_pi.shape[-1]
    pi = jnp.exp(log_pi).reshape((symbols,) * 3)

    def step(law: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        law = jnp.einsum("ab,abc->bc", law.reshape(pi.shape[:2]), pi).ravel()
        return law, law

    start = jnp.asarray(start, pi.dtype)
    return jnp.concatenate([start[None], jax.lax.scan(step, start, length=length)[1]])


def gkd_loss(
    s: Any,
    teacher: Teacher,
    divergence: Callable[[jax.Array, Any], jax.Array],
    fraction: Any,
    through_visits: Any,
    length: int,
) -> jax.Array:
    """Generalised knowledge distillation (arXiv 2306.13649), its expectation over both kinds of sequences.

    .. math:: \\sum_t E_{s \\sim (1 - \\lambda) d_t^{teacher} + \\lambda d_t^{student}} D(p(. | s), q(. | s))

    Args:
        s: the student's logits by context (A A, A).
        teacher: the teacher.
        divergence: D, from logits of student and teacher by context (A A, A), one number per context.
        fraction: lambda, of sequences that are the student's own.
        through_visits: how much of the gradient through what the student visits is kept, 0 or 1. Losses of sampled
            tokens drop it; with it, at lambda 1, reverse KL is KL(student, teacher) with its whole gradient.
        length: T.

    Returns:
        Nats per sequence.
    """
    moving = visited(jax.nn.log_softmax(s), teacher.start, length)[:-1].sum(0)
    fixed = jax.lax.stop_gradient(moving)
    own = fixed + through_visits * (moving - fixed)
    weights = (1 - fraction) * visited(teacher.log_p, teacher.start, length)[:-1].sum(0) + fraction * own
    return weights @ divergence(s, teacher.log_p)


def positions(s: Any, teacher: Teacher, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Divergences position by position of a student's logits by context (A A, A).

    Returns:
        KL(p, q) on the teacher's contexts, KL(p, q) on the student's own, KL(q, p) on the student's own; each (T).
    """
    own = visited(jax.nn.log_softmax(s), teacher.start, length)[:-1]
    given = visited(teacher.log_p, teacher.start, length)[:-1]
    forward, reverse = (kd.token_divergence(kind, s, teacher.log_p) for kind in ("forward_kl", "reverse_kl"))
    return given @ forward, own @ forward, own @ reverse


def measures(s: Any, teacher: Teacher, length: int) -> Measures:
    """Measure a student by its logits by context (A A, A).

    Example:
        >>> teacher = dirichlet_teacher(0, symbols=3)
        >>> [round(float(x), 6) for x in measures(teacher.log_p, teacher, 4)]
        [0.0, 0.0, 0.0]
    """
    forward, _, reverse = positions(s, teacher, length)
    laws = [visited(log_pi, teacher.start, length)[1:] for log_pi in (jax.nn.log_softmax(s), teacher.log_p)]
    return Measures(forward.sum(), reverse.sum(), jnp.abs(laws[0] - laws[1]).sum(1).mean() / 2)


def best_forward(teacher: Teacher, length: int) -> jax.Array:
    """Logits by context (A A, A) of the student with the least KL(teacher, student): how often symbols follow another.

    Example:
        >>> best_forward(dirichlet_teacher(0, symbols=3), 4).shape
        (9, 3)
    """
    symbols = teacher.log_p.shape[-1]
    weights = visited(teacher.log_p, teacher.start, length)[:-1].sum(0)
    counts = (weights[:, None] * jnp.exp(teacher.log_p)).reshape((symbols,) * 3).sum(0)
    return jax.nn.log_softmax(by_context(jnp.log(counts)))


def gkd_student(
    teacher: Teacher,
    divergence: Callable[[jax.Array, Any], jax.Array],
    fraction: Any,
    through_visits: Any,
    *,
    length: int,
    steps: int,
    rate: float,
    student: Callable[[Any], jax.Array] = by_context,
    tables: int = 1,
) -> jax.Array:
    """The student that Adam finds for `gkd_loss` from tables of zeros.

    Args:
        teacher: the teacher.
        divergence: as in `gkd_loss`, like the next three.
        fraction: lambda.
        through_visits: 0 or 1.
        length: T.
        steps: of Adam.
        rate: of its first step.
        student: tables -> logits by context (A A, A).
        tables: how many the student has; one is given as (A, A), several as (tables, A, A).

    Returns:
        Logits by context (A A, A).
    """

    def loss(params: Any, _: Any) -> jax.Array:
        return gkd_loss(student(params), teacher, divergence, fraction, through_visits, length)

    symbols = teacher.log_p.shape[-1]
    shape = (symbols, symbols) if tables == 1 else (tables, symbols, symbols)
    return student(fitted(loss, jnp.zeros(shape, teacher.log_p.dtype), steps=steps, rate=rate)[0])


def one_of(kinds: Sequence[tuple[str, Mapping[str, Any]]], which: Any) -> Callable[[jax.Array, Any], jax.Array]:
    """One of several divergences, chosen by an array: one program is compiled for all of them.

    Args:
        kinds: names in `kd.DIVERGENCES` with arguments.
        which: 1 at the chosen one, else 0 (kinds).

    Returns:
        (student logits, teacher logits), each (..., V) -> (...).

    Example:
        >>> s, t = jnp.zeros(2), jnp.log(jnp.array([0.9, 0.1]))
        >>> print(f"{one_of([('l2', {}), ('forward_kl', {})], jnp.array([0.0, 1.0]))(s, t):.3f}")
        0.368
    """

    def divergence(s: jax.Array, t: Any) -> jax.Array:
        each = [kd.token_divergence(kind, s, t, **kind_args) for kind, kind_args in kinds]
        return jnp.tensordot(which, jnp.stack(each), 1)

    return divergence
