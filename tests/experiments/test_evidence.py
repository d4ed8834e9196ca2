"""Only runs of the file as it is now speak for it."""

from pathlib import Path

import pytest

from experiments import evidence as module
from experiments.errors import UserError
from experiments.evidence import chosen, evidence, find, objection, same_claims, speaker
from experiments.execution import identity
from experiments.registry import load_path
from experiments.results import load
from experiments.runs import finished_runs, run_folder


def test_the_newest_run_of_the_preset_counts_and_changed_ones_do_not(toy, call):
    result = load_path(toy)
    assert evidence(result) == []
    for words in [("--preset", "smoke"), ("--config.offset", "0.5"), ("--seeds", "0,1")]:
        call("run", toy, *words)
        assert evidence(result) == []
    call("run", toy)
    assert [stored.seeds for stored in evidence(result)] == [(0, 1, 2)]
    call("run", toy, "--seeds", "0:5")  # more seeds are better evidence
    assert [stored.seeds for stored in evidence(result)] == [(0, 1, 2, 3, 4)]
    call("run", toy, "--config.offset", "0.5")
    assert [stored.config["offset"] for stored in evidence(result)] == [0.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "missing"), [("5,6,7", "0, 1, 2"), ("0,1,7,8,9", "2"), ("2,0,1", ""), ("0:3", ""), ("9,1,0,2", "")]
)
def test_seeds_cannot_be_chosen_for_their_luck(toy, call, seeds, missing):
    result = load_path(toy)
    call("run", toy, "--seeds", seeds)
    told = objection(result, find("toy"))
    assert told == (f"seeds of the preset cpu are missing: {missing}" if missing else "")
    assert len(evidence(result)) == (not missing)


@pytest.mark.parametrize("new", ['"below", 0.5', '"above", 1.0', '"within", 1.0, 0.1'])
def test_a_threshold_that_was_changed_after_the_run_unmakes_the_evidence(toy, call, new):
    call("run", toy)
    assert len(evidence(load_path(toy))) == 1
    toy.write_text(toy.read_text().replace('"below", 1.0', new))
    assert evidence(load_path(toy)) == []
    assert objection(load_path(toy), find("toy")) == "the claims were changed after the run"


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("CLAIMS = (", 'CLAIMS = (\n    Claim("toy/later", "more, no unit", "above", 0.0),', True),
        ('"toy/small"', '"toy/renamed"', False),
        ('    Claim("toy/never", "nothing, no unit", "above", 0.0),\n', "", False),
    ],
)
def test_a_claim_may_be_added_after_the_run_but_none_dropped(toy, call, old, new, counts):
    call("run", toy)
    text = toy.read_text()
    assert old in text
    toy.write_text(text.replace(old, new))
    assert (objection(load_path(toy), find("toy")) == "") == counts == bool(evidence(load_path(toy)))
    assert not same_claims(load_path(toy), find("toy"))  # so that it is judged again


def test_a_run_that_was_continued_with_other_settings_is_no_evidence(toy, call):
    result = load_path(toy)
    folder = run_folder(identity("toy", "cpu", result.presets["cpu"]))
    call("run", toy, "--run_dir", folder, "--config.offset", 0.5)
    assert call("run", toy, "--run_dir", folder, "--allow_mismatch", "offset")[0] == 0
    assert objection(result, find(str(folder))) == "was continued with other settings: offset"
    assert evidence(result) == []


def test_a_run_is_found_by_folder_and_by_id(toy, call):
    call("run", toy, "--preset", "smoke")
    call("run", toy)
    assert find("toy").preset == "cpu"
    assert find("toy", preset="smoke").preset == "smoke"
    folder = finished_runs("toy", "smoke")[0]
    assert find(str(folder)).path == folder
    with pytest.raises(UserError, match="unknown run folder or result 'toi'; nearest: toy"):
        find("toi")
    (folder / "DONE").unlink()
    with pytest.raises(UserError, match="is not finished"):
        find(str(folder))
    (Path("empty")).mkdir()
    with pytest.raises(UserError, match="empty is not a run folder"):
        find("empty")


def test_a_larger_preset_speaks_only_for_the_claims_that_it_measured(two_sizes, call):
    call("run", "demo/toy")
    call("run", "demo/toy", "--preset", "gpu", "--config.offset", "9")  # not the preset's settings: it says nothing
    found = evidence(module.load_id("demo/toy"))
    assert [speaker(claim, found).preset for claim in ("demo/small", "demo/exact")] == ["cpu", "cpu"]
    call("run", "demo/toy", "--preset", "gpu")
    found = evidence(module.load_id("demo/toy"))
    assert [stored.preset for stored in found] == ["gpu", "cpu"]
    assert [speaker(claim, found).preset for claim in ("demo/small", "demo/exact")] == ["cpu", "gpu"]
    assert speaker("demo/never", found) is None and speaker("demo/other", found) is None
    assert "1 holds (gpu), 1 holds (cpu), 1 not run" in " ".join(call("list")[1].split())


def test_an_id_stands_for_the_run_that_counts(demo, call):
    call("run", "demo/toy", "--config.train.steps", 20)
    (toy_run,) = finished_runs("demo/toy")
    assert load("demo/toy").path == toy_run  # better than nothing
    assert "verdicts: do not count: not the settings of the preset cpu: train.steps" in call("show", "demo/toy")[1]
    call("run", "demo/toy")
    (counting, _) = finished_runs("demo/toy")
    call("run", "demo/toy", "--config.train.steps", 30)
    (newest, *_) = finished_runs("demo/toy")
    assert newest not in (counting, toy_run)
    assert load("demo/toy").path == chosen("demo/toy").path == find("demo/toy").path == counting
    out = call("show", "demo/toy")[1]
    assert "do not count" not in out and f"folder:   {counting}" in out and f"newest:   {newest}" in out
    assert "do not count" in call("show", newest)[1] and "newest:" not in call("show", newest)[1]
    call("run", "demo/toy", "--preset", "smoke")
    assert find("demo/toy").path == counting and load("demo/toy", "smoke").preset == "smoke"


def test_a_broken_result_file_hides_none_of_its_runs(demo, call):
    call("run", "demo/toy")
    demo.write_text("import no_such_module\n")
    (folder,) = finished_runs("demo/toy")
    status, out, _ = call("show", folder)
    assert status == 0 and "demo/small" in out and "No module named 'no_such_module'" in " ".join(out.split())
    with pytest.raises(UserError, match="cannot be imported"):
        load("demo/toy")
