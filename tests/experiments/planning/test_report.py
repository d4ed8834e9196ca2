"""The roofline against numbers by hand, and what is said of a plan."""

from types import SimpleNamespace

import pytest

from experiments.errors import UserError
from experiments.planning import table
from experiments.planning.collectives import Collective
from experiments.planning.hardware import CHIPS, Topology
from experiments.planning.plan import Plan, _told_in_one_line, roofline
from experiments.planning.report import assumed, lines, ranked
from experiments.planning.trainings import NothingToPlan

SENT = [Collective("all-reduce", 8, 1, 2.0, 18e9, 0.0), Collective("all-gather", 4, 2, 1.0, 9e9, 3.1e9)]


def made(seconds, **changes):
    told = {
        "id": "demo/planned",
        "preset": "paper",
        "training": "one",
        "trainings": 3,
        "topology": "v5e:4x4",
        "slices": 2,
        "chips": 32,
        "devices": 32,
        "mesh": {"data": 32, "fsdp": 1},
        "batch_size": 64,
        "steps": 1800,
        "tokens": 512,
        "parameters": 10**6,
        "memory": {"arguments": 2**30, "needed": 8 * 2**30, "there": 16 * 2**30},
        "flops": 197e12 * 16,
        "passes": 197e12 * 32,
        "repeated": 0.0,
        "endless": 0,
        "traffic": 819e9,
        "collectives": SENT,
        "seconds": seconds,
        "versions": {"jax": "1"},
        "compile_seconds": 1.0,
    }
    return Plan(**{**told, **changes})


def test_a_step_takes_the_longest_of_three_or_one_after_the_other():
    chips = Topology("v5e:4x4", CHIPS["v5e"], [None] * 16, 1)
    seconds = roofline(197e12, 2 * 819e9, SENT, chips)
    # 18 GB and 9 GB at 90 GB/s, and 3.1 GB at 3.1 GB/s.
    assert seconds == pytest.approx({"compute": 1, "memory": 2, "network": 1.3, "step": 2, "in_turn": 3.3})


def test_devices_of_a_chip_share_its_peaks():
    chip = CHIPS["tpu7x"]
    one, two = (roofline(1e12, 1e9, SENT, Topology("tpu7x:2x2x1", chip, [], cores)) for cores in (1, 2))
    assert two == pytest.approx({name: 2 * value for name, value in one.items()})


def test_what_follows_from_a_step():
    plan = made({"compute": 1.0, "memory": 0.5, "network": 0.25, "step": 1.0, "in_turn": 1.25})
    assert plan.hours == 0.5 and plan.examples_per_second == 64 and plan.compute_share == pytest.approx(0.8)
    assert plan.utilisation(197e12) == pytest.approx(0.5)
    said = lines(plan)
    # Three trainings of half an hour on 32 chips.
    for part in ("32 of v5e:4x4 x 2 slices", "48 chip-hours", "32,768 tokens/s", "50.0%", "80.0%", "not a measurement"):
        assert part in said
    assert assumed("v5e") in said and "197 TFLOP/s" in said


def test_what_is_done_again_is_no_operation_of_the_model():
    seconds = {"compute": 1.0, "memory": 0.5, "network": 0.25, "step": 1.0, "in_turn": 1.25}
    plan = made(seconds, repeated=197e12 * 4)
    assert plan.utilisation(197e12) == pytest.approx(12 / 32)
    assert "7.88e+14 of the former for rematerialisation" in lines(plan)


def test_the_shortest_step_comes_first_and_what_is_not_possible_last():
    plans = {
        name: made({"compute": 1.0, "memory": 0.5, "network": more, "step": 1.0, "in_turn": 1.0 + more})
        for name, more in (("slow", 0.5), ("fast", 0.1))
    }
    shown = ranked(plans, {"huge": "no memory"}).splitlines()
    assert [line.split()[0] for line in shown[2:4]] == ["fast", "slow"]
    assert shown[-1] == "not possible: huge: no memory"


@pytest.mark.parametrize(("reason", "status"), [(NothingToPlan("b trains nothing"), 0), (UserError("too large"), 2)])
def test_a_table_has_a_row_for_each_plan_and_a_line_for_whatever_has_none(monkeypatch, tmp_path, reason, status):
    def planned(result, *_):
        if result.id == "demo/b":
            raise reason
        seconds = {"compute": 1.0, "memory": 0.5, "network": 0.25, "step": 1.0, "in_turn": 1.25}
        return made(seconds, id=result.id), "no text" if result.id == "demo/c" else ""

    monkeypatch.setattr(table, "_planned", planned)
    monkeypatch.setattr(table, "topology", lambda name, slices: Topology(name, CHIPS["v5e"], [None] * 16, 1, slices))
    results = [SimpleNamespace(id=f"demo/{name}") for name in "abc"]
    assert table.write_table(results, "paper", "v5e:4x4", 2, tmp_path / "plans", None) == status
    text = (tmp_path / "plans" / "PLANS.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `demo/")]
    assert [row.split("`")[1] for row in rows] == ["demo/a", "demo/c"]
    assert all("| 50.0% | 64 | 3 | 48 |" in row for row in rows)
    assert "Not counted to the end:\n\n- `demo/c`: only 3 trainings were seen: no text\n" in text
    assert f"- `demo/b`: {reason}" in text and "not a measurement" in text
    assert "plan --all --preset paper --topology v5e:4x4 --slices 2" in text


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a first line\n  axis 0 of shape (3,) is not divisible by 2\nmore"),
        NotImplementedError("Mosaic kernels cannot be automatically partitioned. Please wrap the call in a shard_map."),
    ],
)
def test_what_does_not_divide_is_told_in_one_line_and_other_errors_stay(error):
    with pytest.raises(UserError, match=r"^here: .*(divisible by 2|shard_map\.)$"), _told_in_one_line("here"):
        raise error
    with pytest.raises(ValueError, match="a bug"), _told_in_one_line("here"):
        raise ValueError("a bug")
