"""Plans for GPUs: shapes, an absent compiler, and, where the compiler is there, four H100 against closed formulas."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from jax.experimental import topologies

from experiments.errors import UserError
from experiments.planning.collectives import Collective, collectives
from experiments.planning.hardware import CHIPS, topology
from experiments.planning.hlo import parse
from tests.experiments.planning.planned import ROWS, TURNS, VOCABULARY, WIDTH

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["h100:0", "h100:9", "h100:2x2", "h100:x"])
def test_a_machine_has_one_to_eight(name):
    with pytest.raises(UserError, match=f"topology: got '{name}', expected h100:1 to h100:8, and --slices"):
        topology(name)


def test_a_compiler_that_is_not_there_is_told_in_one_line(monkeypatch):
    def absent(*_, **__):
        raise NotImplementedError("topology not implemented for cuda\nmore")

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    with pytest.raises(UserError, match=r"'h100:2' cannot be compiled .*\(.* for cuda\); make install EXTRA=gpu$"):
        topology("h100:2")


def test_machines_are_slices(monkeypatch):
    asked = {}

    def described(name, platform, **more):
        asked.update(more, platform=platform)
        return SimpleNamespace(devices=[SimpleNamespace(process_index=i // 4, slice_index=0) for i in range(8)])

    monkeypatch.setattr(topologies, "get_topology_desc", described)
    found = topology("h100:4", 2)
    assert (asked["platform"], asked["topology"]) == ("cuda", "1x2x4")
    assert "major: 9" in asked["target_config"]
    assert found.chip == CHIPS["h100"] and (found.cores, found.told) == (1, "h100:4 x 2 slices")
    assert [found.slice_of(device) for device in found.devices] == [0] * 4 + [1] * 4
    assert topology("h100").name == "h100:1"


def test_arrays_that_are_gathered_together_all_count():
    text = """
ENTRY %main (x: f32[64], y: bf16[8]) -> f32[256] {
  %x = f32[64]{0} parameter(0)
  %y = bf16[8]{0} parameter(1)
  %start = ((f32[64]{0}, bf16[8]{0}), (f32[256]{0}, bf16[32]{0})) all-gather-start(%x, %y), replica_groups=[1,4]<=[4]
  ROOT %done = (f32[256]{0}, bf16[32]{0}) all-gather-done(%start)
}
"""
    assert collectives(parse(text), [0] * 4) == [Collective("all-gather", 4, 1, 1.0, 0.75 * (1024 + 64), 0.0)]


@pytest.mark.slow
def test_four_gpus_against_closed_formulas(tmp_path):
    pytest.importorskip("jax_cuda13_plugin")
    command = [sys.executable, "-m", "tests.experiments.planning.planned", str(tmp_path), "h100"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["summed"] == [["all-reduce", 4, 1, TURNS, TURNS * 2 * 0.75 * ROWS * ROWS * 4, 0.0]]
    within, across = found["machine"], found["machines"]
    # The embedding is the output kernel, too: its two gradients may be summed apart.
    least, most = within["parameters"], within["parameters"] + VOCABULARY * WIDTH
    sent = sum(row[4] for row in within["collectives"])
    assert 2 * 0.75 * 4 * least <= sent <= 1.001 * 2 * 0.75 * 4 * most
    assert sum(row[5] for row in within["collectives"]) == 0
    # Two of four do their part within a machine, then half of it goes to the other.
    inside, outside = (sum(row[place] for row in across["collectives"]) for place in (4, 5))
    assert inside == pytest.approx(2 / 3 * sent) and outside == pytest.approx(sent / 3)
    assert within["flops"] == pytest.approx(found["formula"], rel=0.03)
    assert found["refused"].startswith("transformer on h100:4, data 4") and "GiB of a device" in found["refused"]
