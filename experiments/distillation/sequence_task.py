"""Distillation of a causal language model as the one training loop takes it, on text and on the student's own samples.

With `on_policy_fraction` some rows of each batch keep only their first tokens: the student continues them, with one
step of its mixer per token inside the compiled update, and the teacher says what it would have expected there (GKD,
arXiv 2306.13649). The samples come from the key of the update, so that an interrupted training goes on with those it
would have drawn. No gradient goes through the sampling.

The teacher is a collection of the state beside the parameters, as in `experiments.distillation.task`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from experiments.distillation.sequence_config import SequenceDistillation
from experiments.language import next_token_task
from experiments.training.task import Task
from kd import reduce_tokens, token_divergence
from lightnet.decoding import generate

if TYPE_CHECKING:
    from experiments.language_models import LanguageModel, Trained


@dataclass(frozen=True)
class _Pair:
    """Modules of student and teacher; the student once more with room to generate."""

    student: Any
    sampler: Any
    teacher: Any


def sequence_task(
    student: LanguageModel,
    teacher: Trained,
    config: SequenceDistillation,
    held_out: Mapping[str, Mapping[str, Any]],
    lengths: Any,
    batch_size: int,
) -> Task:
    """A student language model trained beside its teacher, which stays as it is.

        loss = w cross-entropy(rows of text) + (1 - w) mean over tokens of D(teacher, student)

    On rows of text all tokens but the first count, on the student's own only those that it drew.

    Args:
        student: what learns.
        teacher: what it learns from, with the same tokens.
        config: the objective.
        held_out: rows "tokens" (N, L + 1) to evaluate on, by the name that their loss gets, in nats per byte.
        lengths: (V,) bytes of each token.
        batch_size: rows of a batch (B).

    Returns:
        The task, for batches of "tokens" (B, L + 1).

    Raises:
        ValueError: the vocabularies differ, the fraction of the batch is no number of rows, or a prompt is as long as
            a row.
    """
    if student.vocab_size != teacher.language_model.vocab_size:
        sizes = f"{student.vocab_size} and {teacher.language_model.vocab_size}"
        raise ValueError(f"student: got {sizes} tokens of student and teacher, expected the same vocabulary")
    length = next(iter(held_out.values()))["tokens"].shape[1]
    config.check_rows(batch_size, length)
    pair = _Pair(student.build(), student.build(cache=length), teacher.model)
    on_text = next_token_task(pair.student, held_out, lengths, batch_size)

    def init(key: jax.Array) -> dict[str, Any]:
        return {**on_text.init(key), "teacher": teacher.variables["params"]}

    def loss(variables: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        params, rows = {"params": variables["params"]}, len(batch["tokens"])
        config.check_rows(rows, length)  # with `device_batch` a loss sees a part of the batch
        tokens, counted = with_own_rows(pair.sampler, params, batch["tokens"], config, key)
        own = config.own_rows(rows)
        s = pair.student.apply(params, tokens[:, :-1])
        t = pair.teacher.apply({"params": variables["teacher"]}, tokens[:, :-1])
        each = token_divergence(config.divergence, s, t, temperature=config.temperature, **config.options())
        divergence = reduce_tokens(each, counted)
        value, logged = (1 - config.label_weight) * divergence, {"divergence": divergence}
        if own < rows:
            labels = optax.softmax_cross_entropy_with_integer_labels(s[own:], tokens[own:, 1:]).mean()
            value, logged = value + config.label_weight * labels, {**logged, "cross-entropy": labels}
        return value, logged

    def evaluate(variables: Any) -> Any:
        assert on_text.evaluate is not None
        return on_text.evaluate({"params": variables["params"]})

    return Task(init=init, loss=loss, evaluate=evaluate)


def with_own_rows(
    sampler: Any, params: Any, tokens: jax.Array, config: SequenceDistillation, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The batch with its first rows continued by the student.

    Args:
        sampler: the student, with room for the tokens of a row.
        params: variables of the student.
        tokens: (B, L + 1) text.
        config: how many rows, from how many tokens on, at which temperature.
        key: random key.

    Returns:
        Tokens (B, L + 1), and (B, L), true where the prediction of the next one counts.
    """
    own, prompt = config.own_rows(len(tokens)), config.prompt
    counted = jnp.ones((len(tokens), tokens.shape[1] - 1), bool)
    if not own:
        return tokens, counted
    drawn = generate(
        sampler,
        jax.lax.stop_gradient(params),
        tokens[:own, :prompt],
        tokens.shape[1] - prompt,
        key,
        temperature=config.sampling_temperature,
    )
    return tokens.at[:own, prompt:].set(drawn), counted.at[:own, : prompt - 1].set(False)


def divergence_of_own(
    student: LanguageModel, variables: Any, teacher: Trained, rows: Any, config: SequenceDistillation, key: jax.Array
) -> float:
    """KL(student || teacher) per token along the student's own continuations of text.

    Args:
        student: what was trained.
        variables: its parameters.
        teacher: what it is measured by.
        rows: (B, L + 1) text, of which the first tokens begin the continuations.
        config: how many tokens, and at which temperature to draw.
        key: random key.

    Returns:
        Nats per token: the mean over the states that the student comes to, at each of which the KL is exact.
    """
    everything = replace(config, on_policy_fraction=1.0, label_weight=0.0)
    sampler, model = student.build(cache=rows.shape[1]), student.build()

    @jax.jit
    def measured(variables: Any, taught: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
        tokens, counted = with_own_rows(sampler, variables, rows, everything, key)
        s = model.apply(variables, tokens[:, :-1])
        t = teacher.model.apply(taught, tokens[:, :-1])
        return reduce_tokens(token_divergence("reverse_kl", s, t), counted)

    return float(measured(variables, teacher.variables, jnp.asarray(rows), key))
