"""Strict numerics for every test, and no setting of the shell that started them.

Most of the time of the tests is compilation. Of models and recurrences only the first test of each file is quick,
with its first set of parameters. CI has no time for all slow tests: it runs the first of each file, with their
first set of parameters, and the smallest preset of every result by itself. `make test-all` runs every one.
"""

from collections import defaultdict
from functools import cache
from pathlib import Path

import jax
import pytest

TESTS = Path(__file__).parent
OF_MODELS, QUICK = [TESTS / name for name in ("lightnet", "ssm")], 1
SLOW, SLOW_OF_THE_SCAN_CORE = 1, 2  # tests of a file that CI runs
# Whose parameters are different things to be tested: mixers, what may happen to a training, recurrences. No machine of
# ours has a TPU: kernels are known by their interpreted tests alone.
EVERY_CASE = [TESTS / name for name in ("contracts", "reliability")]
EVERY_CASE += [TESTS / "lightnet" / "scan" / name for name in ("test_kernels.py", "test_sweep.py", "test_gated_gpu.py")]

# Broadcasting arrays of different ranks without saying so hides mistakes in shapes.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _leave_few_quick(items)
    found: dict[Path, set[str]] = defaultdict(set)
    for item in items:
        names, name = found[item.path], getattr(item, "originalname", item.name)
        if name == "test_smoke_run":
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.exhaustive)
        if not _is(item, "slow") or _is(item, "exhaustive") or _within(item, EVERY_CASE):
            continue
        most = SLOW_OF_THE_SCAN_CORE if _within(item, [TESTS / "lightnet" / "scan"]) else SLOW
        if name in names or len(names) >= most:
            item.add_marker(pytest.mark.exhaustive)
        names.add(name)


def _leave_few_quick(items: list[pytest.Item]) -> None:
    found: dict[Path, set[str]] = defaultdict(set)
    for item in items:
        if not _within(item, OF_MODELS):
            continue
        names, name = found[item.path], getattr(item, "originalname", item.name)
        if name in names or len(names) >= QUICK:
            item.add_marker(pytest.mark.slow)
        names.add(name)


def _is(item: pytest.Item, marker: str) -> bool:
    return item.get_closest_marker(marker) is not None


def _within(item: pytest.Item, places: list[Path]) -> bool:
    return _is_within(item.path, tuple(places))


@cache
def _is_within(path: Path, places: tuple[Path, ...]) -> bool:
    """Asked of every test, and slow."""
    return any(path.is_relative_to(place) for place in places)


@pytest.fixture(autouse=True)
def settings_of_the_tests_alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("LIGHTNET_RUNS", raising=False)
    monkeypatch.delenv("PRESET", raising=False)
    # Compiled programs of one test are used by the next, and none by the person whose machine this is.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
