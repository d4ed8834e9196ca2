"""Strict numerics for every test, and no setting of the shell that started them.

Most of the time of the tests of models and recurrences is compilation, so only a few are quick: of each file the first
ones, each with its first set of parameters. Of a slow test with several sets of parameters CI runs the first, and it
runs the smallest preset of every result by itself, without the test of its values; `make test-all` runs every one.
"""

from collections import defaultdict
from pathlib import Path

import jax
import pytest

OF_MODELS, QUICK = [Path(__file__).parent / name for name in ("lightnet", "ssm")], 2
# Whose parameters are different things to be tested: mixers, and what may happen to a training.
EVERY_CASE = [Path(__file__).parent / name for name in ("contracts", "reliability")]

# Broadcasting arrays of different ranks without saying so hides mistakes in shapes.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _leave_few_quick(items)
    seen = set()
    for item in items:
        test = (item.path, getattr(item, "originalname", item.name))
        if test[1] == "test_smoke_run":
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.exhaustive)
        if item.get_closest_marker("slow") is None or any(folder in item.path.parents for folder in EVERY_CASE):
            continue
        if test in seen:
            item.add_marker(pytest.mark.exhaustive)
        seen.add(test)


def _leave_few_quick(items: list[pytest.Item]) -> None:
    found: dict[Path, set[str]] = defaultdict(set)
    for item in items:
        if not any(folder in item.path.parents for folder in OF_MODELS):
            continue
        names, name = found[item.path], getattr(item, "originalname", item.name)
        if name in names or len(names) >= QUICK:
            item.add_marker(pytest.mark.slow)
        names.add(name)


@pytest.fixture(autouse=True)
def settings_of_the_tests_alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("LIGHTNET_RUNS", raising=False)
    monkeypatch.delenv("PRESET", raising=False)
    # Compiled programs of one test are used by the next, and none by the person whose machine this is.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
