"""Programs of tests are compiled quickly."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

FOLDER = Path(__file__).parent
ABOUT_VALUES = ("test_recurrence.py", "test_additive_identities.py")  # of the scan core


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without most optimisations, but for each recurrence, whose tests are about the programs that are run."""
    about_values = request.path.parent == FOLDER or request.path.name in ABOUT_VALUES
    jax.config.update("jax_disable_most_optimizations", about_values)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
