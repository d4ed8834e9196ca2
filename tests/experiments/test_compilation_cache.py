"""Compiled programs are kept between processes, change no bit of a result, and never stand in the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import compilation_cache
from experiments.commands import run
from experiments.compilation_cache import compile_quickly, default_folder, keep_compiled_programs

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from experiments.compilation_cache import keep_compiled_programs
keep_compiled_programs()
import jax, jax.numpy as jnp, numpy as np
x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 33)), jnp.float32)
f = jax.jit(jax.value_and_grad(lambda x: jnp.sum(jax.nn.softmax(jnp.tanh(x @ x.T)) ** 3)))
value, gradient = f(x)
print(np.asarray(value).tobytes().hex(), np.asarray(gradient).tobytes().hex())
"""


@pytest.fixture
def fresh(monkeypatch):
    """A process that has not imported JAX and of which nobody has set anything."""
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(compilation_cache.os, "environ", {})
    return compilation_cache.os.environ


def settings(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("JAX_")}


def outcome(caches: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    # One platform by name: with libtpu and without a TPU, looking for the others is told on stderr.
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(caches), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_cold_warm_torn_and_no_cache_give_the_same_bits(tmp_path):
    folder = default_folder({"XDG_CACHE_HOME": str(tmp_path)})
    cold = outcome(tmp_path)
    assert cold.returncode == 0, cold.stderr
    entries = {path: path.stat().st_mtime_ns for path in folder.glob("*-cache")}
    warm = outcome(tmp_path)
    assert entries and {path: path.stat().st_mtime_ns for path in folder.glob("*-cache")} == entries
    assert cold.stderr == warm.stderr == ""
    for number, path in enumerate(entries):
        path.write_bytes(path.read_bytes()[: 100 * (number % 2)])
    torn = outcome(tmp_path)
    (tmp_path / "file").write_text("no folder can be made below a file")
    absent = outcome(tmp_path / "file")
    assert absent.stderr == ""
    assert cold.stdout == warm.stdout == torn.stdout == absent.stdout


@pytest.mark.parametrize("given", [{"JAX_COMPILATION_CACHE_DIR": "mine"}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}])
def test_what_the_user_has_set_stays(fresh, tmp_path, given):
    fresh.update(given, XDG_CACHE_HOME=str(tmp_path))
    keep_compiled_programs()
    assert settings(fresh) == given and not list(tmp_path.iterdir())


def test_nothing_is_set_once_jax_is_there(fresh, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", object())
    fresh["XDG_CACHE_HOME"] = str(tmp_path)
    keep_compiled_programs()
    assert settings(fresh) == {}


def test_only_what_is_over_at_once_is_hardly_optimised(fresh, monkeypatch):
    compile_quickly()
    assert settings(fresh) == {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    fresh["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "false"
    compile_quickly()
    assert settings(fresh) == {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
    fresh.clear()
    monkeypatch.setitem(sys.modules, "jax", object())
    compile_quickly()
    assert settings(fresh) == {}


@pytest.mark.parametrize(("preset", "quickly"), [("smoke", True), ("cpu", False)])
def test_smoke_runs_are_compiled_quickly(fresh, monkeypatch, preset, quickly):
    monkeypatch.setattr(run, "_run_all", lambda jobs: 0)
    assert run.main(["distillation/kl_estimators", "--preset", preset]) == 0
    assert ("JAX_DISABLE_MOST_OPTIMIZATIONS" in fresh) == quickly


def test_another_processor_has_another_folder(monkeypatch):
    here = default_folder({"XDG_CACHE_HOME": "/caches"})
    monkeypatch.setattr(compilation_cache, "_machine", lambda: "another")
    there = default_folder({"XDG_CACHE_HOME": "/caches"})
    assert here != there and here.parent == there.parent
    assert default_folder({"XDG_CACHE_HOME": "relative"}).parents[2] == Path.home() / ".cache"
