"""Strict numerics for every test, and no setting of the shell that started them."""

import jax
import pytest

# Broadcasting arrays of different ranks without saying so hides mistakes in shapes.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def settings_of_the_tests_alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("LIGHTNET_RUNS", raising=False)
    monkeypatch.delenv("PRESET", raising=False)
    # Compiled programs of one test are used by the next, and none by the person whose machine this is.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
