"""What the compiler for TPUs is asked for, without it: hosts of whole and of smaller slices, and what it refuses."""

from types import SimpleNamespace

import pytest
from jax.experimental import topologies

from experiments.errors import UserError
from experiments.planning.hardware import topology


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("v5e:1x1", [1, 1, 1]),
        ("v5p:1x2x1", [1, 2, 1]),
        ("v5e:2x2", [2, 2, 1]),
        ("v5e:2x4", None),
        ("v5p:1x1x2", None),
        ("v5e:3x1", None),
        ("v5e:0x1", None),
        ("v5e:1", None),
    ],
)
def test_a_slice_smaller_than_a_host_is_a_host_of_its_own(monkeypatch, name, bounds):
    def described(_, platform, **more):
        assert platform == "tpu" and more.get("chips_per_host_bounds") == bounds
        return SimpleNamespace(devices=[SimpleNamespace(coords=(0, 0, 0))])

    monkeypatch.setattr(topologies, "get_topology_desc", described)
    assert topology(name).cores == 1


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("INVALID_ARGUMENT: not divisible\nmore", r"got 'v5e:3x3', which is no shape of a slice \(.* divisible\)$"),
        ("libtpu.so is not there", r"'v5e:3x3' cannot be compiled for here \(.*\); make install EXTRA=tpu$"),
    ],
)
def test_a_wrong_shape_is_told_apart_from_an_absent_compiler(monkeypatch, reason, told):
    def refusing(*_, **__):
        raise RuntimeError(reason)

    monkeypatch.setattr(topologies, "get_topology_desc", refusing)
    with pytest.raises(UserError, match=told):
        topology("v5e:3x3")
