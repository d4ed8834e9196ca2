"""What every small run of a result must satisfy, and its figure from what would be read back from disk."""

from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import jax
import matplotlib
import numpy as np

from experiments.results import Config, Result, StoredResult


def check_run(module: ModuleType, config: Config, folder: Path, absent: set[str] | None = None) -> Result:
    """Run a result file and hold what it returns to the contract: claims, values per seed, tidy tables, a figure.

    Args:
        module: the result file.
        config: a small one.
        folder: for the run.
        absent: short names of claims whose setting this configuration does not contain.

    Returns:
        The result.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)  # most of the time of a small run is compilation
    try:
        result = module.run(config, folder)
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    claims = {claim.id: claim for claim in module.CLAIMS}
    assert set(result.measured) == {id for id in claims if id.partition("/")[2] not in (absent or ())}
    for name, values in result.measured.items():
        assert len(values) == (1 if claims[name].deterministic else len(config.seeds)), name
        assert np.isfinite(values).all(), name
    assert all(len({len(column) for column in table.values()}) == 1 for table in result.tables.values())
    matplotlib.use("Agg")
    figure = module.plot(stored(result, config))
    assert figure.axes
    matplotlib.pyplot.close(figure)
    return result


def stored(result: Result, config: Config) -> StoredResult:
    """The result as it comes back from disk."""
    back = StoredResult(
        id="",
        paper="",
        preset="smoke",
        seeds=config.seeds,
        claims=[],
        tables=result.tables,
        data={},
        seconds=0.0,
        env={},
        config=asdict(config),
        path=Path(),
    )
    vars(back)["series"] = result.series  # what the cached property would read from the folder
    return back
