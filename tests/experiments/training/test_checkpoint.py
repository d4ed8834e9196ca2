"""Checkpoints come back bit for bit, and damaged ones are found."""

import os
import random
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import CheckpointConfig
from experiments.training.manifest import MANIFEST
from tests.experiments.training.states import (
    UNLISTED,
    assert_same,
    devices,
    files,
    make_state,
    restored,
    saved,
    shapes,
    snapshot,
)


@pytest.mark.slow
def test_bit_for_bit(tmp_path, mode):
    special = jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32)
    state = make_state(7, ema=True)._replace(collections={"odd": special, "key": jax.random.key(3)})
    loop = {"step": 7, "pending": {"loss": 0.1 + 0.2}, "examples": 2**40, "data": "é", "best": None}
    checkpoints = Checkpoints(tmp_path / "a" / "b")
    assert restored(checkpoints) is None and checkpoints.steps() == []
    checkpoints.save(7, state, loop)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "a" / "b")
    assert checkpoints.steps() == [7]
    again, counters = restored(checkpoints, state)
    assert_same(again, state)
    assert counters == loop
    checkpoints.close()
    assert (tmp_path / "a" / "b" / "7" / MANIFEST).exists()


def test_the_state_may_be_donated_right_after_the_save(tmp_path):
    values = np.random.default_rng(0).normal(size=(3_000_000,)).astype(np.float32)
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    state = {"x": jnp.array(values)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    state = {"x": jax.block_until_ready(overwrite(state["x"]))}
    again, _ = restored(checkpoints, state)
    checkpoints.close()
    np.testing.assert_array_equal(np.asarray(again["x"]), values)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_damage(tmp_path, capfd, seed):
    draw = random.Random(seed)
    saved(tmp_path, [4, 8])
    path = draw.choice([p for p in files(tmp_path, 8) if str(p.relative_to(tmp_path / "8")) not in UNLISTED])
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    # A flip in the manifest can look like a change of any file.
    fallen_back(tmp_path, capfd, ".*" if path.name == MANIFEST else path.relative_to(tmp_path / "8"))


@pytest.mark.parametrize("kind", ["torn", "empty", "missing", "extra", "manifest", "all files", "folder emptied"])
def test_other_damage(tmp_path, capfd, kind, mode):
    saved(tmp_path, [4, 8])
    data = max(files(tmp_path, 8), key=lambda p: p.stat().st_size)
    name: Any = data.relative_to(tmp_path / "8")
    if kind == "torn":
        os.truncate(data, data.stat().st_size // 2)
    elif kind == "empty":
        os.truncate(data, 0)
    elif kind == "missing":
        data.unlink()
    elif kind == "extra":
        name = "state/new"
        (tmp_path / "8" / name).write_text("")
    elif kind == "manifest":
        name = MANIFEST
        (tmp_path / "8" / name).unlink()
    else:
        name = MANIFEST if kind == "folder emptied" else r".*"
        for path in files(tmp_path, 8):
            if path.name != "commit_success.txt":
                path.unlink() if kind == "folder emptied" else os.truncate(path, 0)
    fallen_back(tmp_path, capfd, name)


def fallen_back(folder: Path, capfd: Any, name: Any) -> None:
    """The older one is read, the reason told in one line, and step 8 can be saved again."""
    capfd.readouterr()
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=2))
    state, loop = restored(checkpoints)
    assert_same(state, make_state(4))
    assert loop == {"step": 4} and checkpoints.steps() == [4]
    told = capfd.readouterr().err
    what = re.escape(str(name)) if str(name) != ".*" else ".*"
    line = rf"warning: checkpoint 8 in {re.escape(str(folder))} is damaged \({what}: .*\); going on from checkpoint 4\n"
    assert re.fullmatch(line, told), told
    checkpoints.save(8, make_state(9), {"step": 8})
    checkpoints.close()
    assert (folder / "damaged" / "8").exists()
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps() == [4, 8]
    assert_same(restored(checkpoints)[0], make_state(9))
    checkpoints.close()


def test_what_orbax_writes_at_the_commit_is_not_needed(tmp_path):
    saved(tmp_path, [4, 8])
    (tmp_path / "8" / "_CHECKPOINT_METADATA").write_bytes(b"\xff{")
    (tmp_path / "8" / "commit_success.txt").write_bytes(b"\xff")
    checkpoints = Checkpoints(tmp_path)
    assert_same(restored(checkpoints)[0], make_state(8))
    checkpoints.close()


def test_damaged_twice(tmp_path):
    for _ in range(2):
        saved(tmp_path, [8] if (tmp_path / "4").exists() else [4, 8])
        (tmp_path / "8" / MANIFEST).unlink()
        checkpoints = Checkpoints(tmp_path)
        assert restored(checkpoints)[1] == {"step": 4}
        checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "damaged"]


def test_all_damaged(tmp_path, mode):
    saved(tmp_path, [4, 8])
    for step in (4, 8):
        (tmp_path / str(step) / "loop" / "metadata").write_text("{}")
    before = snapshot(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(
        UserError, match=r"^all 2 checkpoints in \S+ are damaged, the newest is 8 \(loop/metadata: .*\)"
    ):
        restored(checkpoints)
    with pytest.raises(UserError, match=r"^checkpoint 4 in \S+ is damaged \(loop/metadata: "):
        restored(checkpoints, step=4)
    checkpoints.close()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda s: make_state(width=5),
            r"optimizer/1/0/mu/dense/bias: checkpoint has bfloat16\[4\], the model bfloat16\[5\]",
        ),
        (lambda s: s._replace(step=jnp.int8(0)), r"step: checkpoint has int32\[\], the model int8\[\]"),
        (
            lambda s: s._replace(collections={}),
            r"collections/stats/mean: checkpoint has float32\[\], the model nothing",
        ),
        (lambda s: s._replace(ema=jnp.ones(2)), r"ema: checkpoint has nothing, the model float32\[2\]"),
        (lambda s: s._replace(step=jax.random.key(0)), r"step: checkpoint has int32\[\], the model uint32\[2\]"),
    ],
)
def test_another_model(tmp_path, change, told):
    saved(tmp_path, [4, 8])
    before = snapshot(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=rf"^checkpoint 8 in \S+ is of another model: {told}$"):
        restored(checkpoints, change(make_state()))
    checkpoints.close()
    assert snapshot(tmp_path) == before


def test_a_step_by_number(tmp_path):
    saved(tmp_path, [4, 8])
    checkpoints = Checkpoints(tmp_path)
    assert restored(checkpoints, step=4)[1] == {"step": 4}
    assert checkpoints.steps() == [4, 8]
    with pytest.raises(UserError, match=r"^no checkpoint 5 in \S+; there: 4, 8$"):
        restored(checkpoints, step=5)
    with pytest.raises(UserError, match=r"^there is a checkpoint 8 in \S+ already$"):
        checkpoints.save(8, make_state(), {})
    checkpoints.save(6, make_state(6), {})
    checkpoints.close()
    assert (tmp_path / "6").exists()


@pytest.mark.slow
@pytest.mark.parametrize("reopened", [False, True])
def test_retention(tmp_path, reopened, mode):
    config = CheckpointConfig(every=1, keep=2, permanent_every=5, best="loss")
    values = {3: 2.0, 4: 1.0, 9: 0.5, 10: 0.25, 13: 0.125}
    checkpoints = Checkpoints(tmp_path, config)
    best = None
    for step in range(1, 17):
        if reopened:
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path, config)
        checkpoints.save(step, {"x": jnp.ones(1)}, {}, best=values.get(step))
        checkpoints._manager.wait_until_finished()
        best = step if step in values else best
        permanent = {s for s in range(5, step + 1, 5)}
        assert set(checkpoints.steps()) == {step, max(step - 1, 1)} | permanent | ({best} if best else set())
    checkpoints.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [5, 10, 13, 15, 16]


def test_the_best_is_the_smallest_of_its_metric(tmp_path):
    """Not the last that was called best, nor one of another metric, nor one whose save failed."""
    one = {"x": jnp.ones(1)}
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=1, best="other"))
    checkpoints.save(1, one, {}, best=-5.0)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=1, best="loss"))
    for step, best in enumerate([1.0, 3.0, None], start=2):
        checkpoints.save(step, one, {}, best=best)
    checkpoints._manager.wait_until_finished()
    assert checkpoints.steps() == [2, 4]
    checkpoints.close()


@pytest.mark.parametrize("averaged", [False, True])
def test_only_the_parameters(tmp_path, averaged, mode):
    state = make_state(3, ema=averaged)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state, {})
    checkpoints.close()
    before = snapshot(tmp_path)
    other = Checkpoints(tmp_path, read_only=True)
    like = {"params": state.params, "collections": state.collections}
    found = other.restore_params(shapes(like), devices(like))
    assert_same(found, like)
    found = other.restore_params(shapes(like), devices(like), 3, ema=True)
    assert_same(found, {**like, "params": state.ema if averaged else state.params})
    wide = {"params": make_state(width=5).params}
    with pytest.raises(UserError, match=r"params/dense/bias: checkpoint has bfloat16\[4\], the model bfloat16\[5\]$"):
        other.restore_params(shapes(wide), devices(wide))
    other.close()
    assert snapshot(tmp_path) == before


def test_read_only_changes_nothing(tmp_path, capfd):
    saved(tmp_path, [4, 8])
    (tmp_path / "8" / MANIFEST).unlink()
    (tmp_path / "12.orbax-checkpoint-tmp").mkdir()
    before = snapshot(tmp_path)
    capfd.readouterr()
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert restored(checkpoints)[1] == {"step": 4}
    like = {"params": make_state().params}
    assert_same(checkpoints.restore_params(shapes(like), devices(like)), {"params": make_state(4).params})
    with pytest.raises(ValueError, match="opened to read only"):
        checkpoints.save(9, make_state(), {})
    checkpoints.close()
    assert capfd.readouterr().err.count("\n") == 2
    assert snapshot(tmp_path) == before


def test_read_only_where_nothing_is(tmp_path):
    checkpoints = Checkpoints(tmp_path / "nowhere", read_only=True)
    assert restored(checkpoints) is None
    with pytest.raises(UserError, match=r"^no checkpoint in \S+nowhere$"):
        checkpoints.restore_params({}, {})
    checkpoints.close()
    assert not (tmp_path / "nowhere").exists()
