"""How a checkpoint is committed: by renaming its folder, or by a file as on an object store."""

import pytest

from experiments.training import checkpoint


@pytest.fixture(params=["rename", "commit file"])
def mode(request, monkeypatch):
    """Both ways to commit, the one of object stores on a local folder."""
    if request.param == "commit file":
        monkeypatch.setattr(checkpoint, "is_object_store", lambda folder: True)
    return request.param
