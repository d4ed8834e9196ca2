"""The example of the README runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).resolve().parents[3] / "experiments" / "training" / "README.md"


@pytest.mark.slow
def test_the_example_runs_and_learns(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block, names)
    np.testing.assert_allclose(names["outcome"].params["params"]["kernel"], 3.0, atol=0.05)
