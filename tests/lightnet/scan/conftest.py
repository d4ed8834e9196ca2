"""Of each test here the first set of parameters is quick, the others are slow: most of their time is compilation."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seen = set()
    for item in items:
        if FOLDER not in item.path.parents:
            continue
        function = (item.path, getattr(item, "originalname", item.name))
        if function in seen:
            item.add_marker(pytest.mark.slow)
        seen.add(function)
