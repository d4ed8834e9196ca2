"""Checkpoints come back bit for bit, damaged ones are found, and no failure of a save goes unseen."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from experiments.errors import UserError
from experiments.training import checkpoint
from experiments.training.background import failures_raised
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import CheckpointConfig
from experiments.training.manifest import MANIFEST

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
# Orbax writes these at the commit itself; nothing that is restored stands in them.
UNLISTED = ("_CHECKPOINT_METADATA", "commit_success.txt")


class State(NamedTuple):
    step: Any
    params: Any
    collections: Any
    optimizer: Any
    ema: Any


def make_state(seed: int = 0, width: int = 4, ema: bool = False) -> State:
    kernel = jax.random.normal(jax.random.key(seed), (3, width))
    params = {"dense": {"kernel": kernel, "bias": (kernel[0] * 3).astype(jnp.bfloat16)}}
    collections = {"stats": {"mean": jnp.asarray(np.float32(seed) / 7), "seen": jnp.arange(5, dtype=jnp.int8) - seed}}
    optimizer = optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params)
    average = jax.tree.map(lambda x: x + 1, params) if ema else None
    return State(jnp.asarray(seed, jnp.int32), params, collections, optimizer, average)


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def devices(tree: Any) -> Any:
    return jax.tree.map(lambda x: DEVICE, tree)


def restored(checkpoints: Checkpoints, like: Any = None, step: int | None = None) -> Any:
    like = make_state() if like is None else like
    return checkpoints.restore(shapes(like), devices(like), step)


def assert_same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(folder: Path, steps: Any, **options: Any) -> None:
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=9), **options)
    for step in steps:
        checkpoints.save(step, make_state(step), {"step": step})
    checkpoints.close()


def files(folder: Path, step: int) -> list[Path]:
    return sorted(p for p in (folder / str(step)).rglob("*") if p.is_file())


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*")}


@pytest.fixture(params=["rename", "commit file"])
def mode(request, monkeypatch):
    """Both ways to commit, the one of object stores on a local folder."""
    if request.param == "commit file":
        monkeypatch.setattr(checkpoint, "is_object_store", lambda folder: True)
    return request.param


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


@pytest.mark.parametrize("where", ["manifest", "array", "sync"])
def test_a_failing_writer_is_heard_and_nothing_lost(tmp_path, monkeypatch, where, mode):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = CheckpointConfig(keep=1, best="loss")
    checkpoints = Checkpoints(tmp_path, config)
    checkpoints.save(1, make_state(1), {"step": 1}, best=1.0)
    checkpoints.save(2, make_state(2), {"step": 2})
    checkpoints._manager.wait_until_finished()
    assert checkpoints.steps() == [1, 2]
    with failures_raised(), monkeypatch.context() as patch:
        if where == "manifest":
            patch.setattr(checkpoint, "write_manifest", full)
        elif where == "array":
            patch.setattr(ocp.type_handlers.ArrayHandler, "serialize", full)
        else:
            patch.setattr(ocp.CheckpointManager, "save", full)
        told = r"^a checkpoint could not be saved in \S+: No space left on device$"
        with pytest.raises(UserError, match=told):
            checkpoints.save(3, make_state(3), {"step": 3}, best=0.5)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                checkpoints.check()
                time.sleep(0.005)
        assert checkpoints.steps() == [1, 2]
        checkpoints.check()
    checkpoints.save(4, make_state(4), {"step": 4})
    checkpoints.check()
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, config)
    assert checkpoints.steps() == [1, 4]
    assert_same(restored(checkpoints)[0], make_state(4))
    checkpoints.close()


@pytest.mark.parametrize("call", ["save", "close"])
def test_a_failure_reaches_the_next_call(tmp_path, monkeypatch, call):
    def refused(folder):
        raise RuntimeError("first line\nsecond line")

    checkpoints = Checkpoints(tmp_path)
    told = r"^a checkpoint could not be saved in \S+: first line$"
    with failures_raised():
        monkeypatch.setattr(checkpoint, "write_manifest", refused)
        checkpoints.save(3, make_state(3), {})
        with pytest.raises(UserError, match=told):
            checkpoints.save(4, make_state(4), {}) if call == "save" else checkpoints.close()
    if call == "save":
        monkeypatch.undo()
        checkpoints.save(3, make_state(3), {})
        checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == ([3] if call == "save" else [])
    checkpoints.close()


def test_a_save_under_way_is_not_listed(tmp_path, monkeypatch, mode):
    go_on, write = threading.Event(), checkpoint.write_manifest
    monkeypatch.setattr(checkpoint, "write_manifest", lambda folder: go_on.wait(20) and write(folder))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, make_state(3), {})
    other = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.steps() == [] and other.steps() == []
    checkpoints.check()
    go_on.set()
    checkpoints.close()
    other.close()
    other = Checkpoints(tmp_path, read_only=True)
    assert other.steps() == [3]
    other.close()


def test_arrays_that_orbax_refuses(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"could not be saved in \S+: Cannot save arrays with zero size: .*name=x"):
        checkpoints.save(1, {"x": jnp.zeros((0, 3))}, {})
    checkpoints.check()
    assert checkpoints.steps() == []
    checkpoints.save(2, make_state(2), {"step": 2})
    assert restored(checkpoints)[1] == {"step": 2} and checkpoints.steps() == [2]
    checkpoints.close()


def test_counters_that_are_no_json(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(TypeError, match="JSON"):
        checkpoints.save(1, make_state(), {"x": jnp.ones(1)})
    checkpoints.save(1, make_state(), {"x": 1})
    checkpoints.close()
    assert checkpoints.steps() == [1]


def test_no_space(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: _Usage(1, 1, 0))
    with pytest.raises(UserError, match=r"^no space left on device for a checkpoint in \S+: 0.5 MB are needed and 0.0"):
        checkpoints.save(1, make_state(), {})
    assert list(tmp_path.iterdir()) == []
    checkpoints.close()


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


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


KILLED = """
import sys, time
import jax.numpy as jnp
from experiments.training import checkpoint
from experiments.training.config import CheckpointConfig

if sys.argv[2] == "commit file":
    checkpoint.is_object_store = lambda folder: True
write = checkpoint.write_manifest
checkpoints = checkpoint.Checkpoints(sys.argv[1], CheckpointConfig(keep=1))
checkpoints.save(4, {"x": jnp.arange(4)}, {"step": 4})
checkpoints._manager.wait_until_finished()

def slow(folder):
    if sys.argv[3] == "after":
        write(folder)
    print("now", flush=True)
    time.sleep(60)

checkpoint.write_manifest = slow
checkpoints.save(8, {"x": jnp.arange(4)}, {"step": 8})
time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_it_saves(tmp_path, mode, moment):
    command = [sys.executable, "-c", KILLED, str(tmp_path), mode, moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 2
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [4]
    like = {"x": jnp.arange(4)}
    state, loop = restored(checkpoints, like)
    assert_same(state, like)
    assert loop == {"step": 4}
    checkpoints.save(9, like, {"step": 9})
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "9"]
