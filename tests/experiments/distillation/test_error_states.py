"""Students with a backspace, on the tree of all prefixes."""

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import error_states
from experiments.distillation.error_states import data_law, own_law
from experiments.distillation.prefix_walks import Student, along, data, logits_of, own_walks, source
from tests.experiments.result_run import check_run

CONFIG = replace(error_states.PRESETS["smoke"], symbols=4, successors=2, length=3, mistakes=2, batch=4000)


def student(seed: int = 0) -> Student:
    random = np.random.default_rng(seed)
    shapes = ((4, 2), (2, 4), (4,), (4, 4), (4, 2, 4))
    return Student(*(jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes))


@pytest.mark.slow
@pytest.mark.parametrize("returns", [False, True])
def test_the_tree_has_the_law_of_the_walks(returns):
    actions, mask = own_walks(CONFIG, jax.random.key(1), student(), returns)
    counts = np.zeros((4,) * 4)
    for row, runs in zip(np.asarray(actions), np.asarray(mask), strict=True):
        stack = [row[0]]
        for action in row[1:][runs]:
            if action == 5:
                counts[tuple(stack)] += 1
            elif action == 4:
                stack.pop()
            else:
                stack.append(action)
        assert len(stack) <= 4
    law = own_law(CONFIG, student(), returns)
    assert law.sum() == pytest.approx(counts.sum() / 4000, abs=0.03) and law.sum() <= 1 + 1e-6
    assert returns == (law.sum() < 0.999)
    assert np.abs(law - counts / 4000).sum() < 0.3
    # pairs of the first two symbols have few cells: a law that ignored the backspace is far off
    np.testing.assert_allclose(law.sum((2, 3)), counts.sum((2, 3)) / 4000, atol=0.02)


@pytest.mark.slow
def test_logits_along_walks_are_those_of_their_prefixes():
    config = replace(CONFIG, batch=20)
    actions, mask = own_walks(config, jax.random.key(2), student(), True)
    table = source(config, 1)
    found = along(student(), table, actions, True)
    seen = 0
    for row, runs, logits in zip(np.asarray(actions), np.asarray(mask), found, strict=True):
        stack = [row[0]]
        for action, there in zip(row[1:][runs], logits, strict=False):
            older, last, depth = (jnp.asarray(x) for x in (stack[max(len(stack) - 2, 0)], stack[-1], len(stack) - 1))
            left = any(table[pair] == 0 for pair in pairwise(stack))
            seen += left
            level = student().level[depth, int(left), last]
            np.testing.assert_allclose(there, logits_of(student(), older, last, depth, True) + level, rtol=1e-5)
            stack = stack[:-1] if action == 4 else [*stack, action]
    assert 0 < seen < mask.sum()


@pytest.mark.slow
def test_data_end_and_mistakes_are_not_imitated():
    table = source(CONFIG, 3)
    actions, mask = (np.asarray(x) for x in data(CONFIG, jax.random.key(0), jnp.asarray(table), True))
    for row, counted in zip(actions, mask, strict=True):
        if not counted.any():
            continue
        stack, wanted = [row[0]], row[1:][: np.flatnonzero(counted)[-1] + 1]
        assert wanted[-1] == 5
        for place, action in enumerate(wanted[:-1]):
            if action < 4 and counted[place]:
                assert table[stack[-1], action] > 0
            stack = stack[:-1] if action == 4 else [*stack, action]
        assert len(stack) == 4 and data_law(CONFIG, table)[tuple(stack)] > 0
    assert (actions[2000:] == 4).any() and not (actions[:2000] == 4).any()
    without, _ = data(CONFIG, jax.random.key(0), jnp.asarray(table), False)
    assert not (np.asarray(without) == 4).any()


def test_smoke_run(tmp_path):
    check_run(error_states, error_states.PRESETS["smoke"], tmp_path)
