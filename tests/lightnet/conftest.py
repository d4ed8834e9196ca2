"""Most of the time of the tests of models and recurrences is compilation, so only a few are quick.

Of each file the first tests are, each with its first set of parameters; all others are slow.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

FOLDER, QUICK = Path(__file__).parent, 2
ABOUT_VALUES = ("test_recurrence.py", "test_additive_identities.py")  # of the scan core


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seen: dict[Path, set[str]] = defaultdict(set)
    for item in items:
        if FOLDER not in item.path.parents:
            continue
        names, name = seen[item.path], getattr(item, "originalname", item.name)
        if name in names or len(names) >= QUICK:
            item.add_marker(pytest.mark.slow)
        names.add(name)


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without most optimisations, but for each recurrence, whose tests are about the programs that are run."""
    about_values = request.path.parent == FOLDER or request.path.name in ABOUT_VALUES
    jax.config.update("jax_disable_most_optimizations", about_values)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
