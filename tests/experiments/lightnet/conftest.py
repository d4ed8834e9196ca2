"""Most of the time of these tests is compilation."""

from collections.abc import Iterator

import jax
import pytest

# These train long enough to be faster with everything that the compiler can do.
TRAINING = {"test_classification", "test_causal_lm"}


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without most optimisations: these tests are about what is computed."""
    jax.config.update("jax_disable_most_optimizations", request.path.stem not in TRAINING)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
