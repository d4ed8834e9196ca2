"""Contracts are about what is computed, not how fast. CI runs them on the first variant of each mixer."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents and "[" in item.name and "-0" not in item.name:
            item.add_marker(pytest.mark.exhaustive)


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly() -> Iterator[None]:
    """Without most optimisations: these tests are about what is computed, and spend their time compiling it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
