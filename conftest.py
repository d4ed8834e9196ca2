"""Programs of tests and examples are compiled quickly: compiling is most of their time.

A folder whose tests are about the programs that are run has a `compiled_quickly` of its own.
"""

import os
from collections.abc import Iterator

import jax
import pytest

if jax.__version_info__ < (0, 11):
    # The emitters of fused loops take two thirds of the compiler's time for small programs. Later versions end at this
    # flag, which they do not know. What was set outside comes last and counts; read when the first array is made.
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly() -> Iterator[None]:
    """Without most optimisations: about what is computed, not how fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
