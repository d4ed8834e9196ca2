"""Result files are found without importing anything heavy, and each is held to its contract."""

import json
import re
import subprocess
import sys

import pytest

from experiments import registry
from experiments.errors import UserError
from experiments.registry import discover, load_id, load_path, select, unknown


def test_every_registered_result_keeps_the_contract():
    assert discover()
    for id in discover():
        result = load_id(id)
        assert result.id == id and result.title and result.claims
        assert set(result.about.minutes) == set(result.presets)


def test_minutes_are_the_same_in_readmes_and_about_those_of_the_stored_runs():
    told = {}
    for readme in registry.PACKAGE.glob("*/README.md"):
        told |= dict(re.findall(r"`python -m experiments run (\S+)` \| ([\d.]+) \|", readme.read_text()))
    declared = {id: load_id(id).about.minutes["cpu"] for id in discover() if "cpu" in load_id(id).presets}
    assert {id: float(minutes) for id, minutes in told.items()} == declared
    for id, minutes in declared.items():
        paper, name = id.split("/")
        stored = registry.PACKAGE / paper / "results" / name / "cpu" / "result.json"
        if stored.exists():
            # Most runs shared the machine with other work, so that they took longer.
            assert minutes / 3 <= json.loads(stored.read_text())["seconds"] / 60 <= 1.6 * minutes, id


def test_registered_results_import_nothing_heavy():
    code = (
        "import sys\n"
        "from experiments import claims, evidence, execution, files, runs, statistics\n"
        "from experiments.registry import discover, load_id\n"
        "[load_id(id) for id in discover()]\n"
        "heavy = ('jax', 'flax', 'optax', 'grain', 'orbax', 'matplotlib', 'tokenizers', 'tensorflow', 'tyro')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_discovery_takes_only_files_that_define_a_result(tmp_path):
    files = {
        "paper/figure.py": "ABOUT = 1\nPRESETS: dict = {}\n",
        "paper/helper.py": "x = 1\n",
        "paper/inside.py": "def f():\n    ABOUT = PRESETS = 1\n",
        "paper/broken.py": "ABOUT = (\n",
        "paper/deeper/figure.py": "ABOUT = PRESETS = 1\n",
        "training/loop.py": "ABOUT = PRESETS = 1\n",
        "sources/markov.py": "ABOUT = PRESETS = 1\n",
        "top.py": "ABOUT = PRESETS = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(discover(tmp_path)) == ["paper/broken", "paper/figure"]


def test_an_outside_file_can_import_what_lies_beside_it(toy):
    (toy.parent / "my_neighbour_module.py").write_text("VALUE = 3\n")
    toy.write_text(toy.read_text() + "\nfrom my_neighbour_module import VALUE\n")
    result = load_path(toy)
    sys.modules.pop("my_neighbour_module")
    assert (result.id, result.target, result.title) == ("toy", "toy.py", "A toy result: seeds divided by steps.")


def test_an_outside_file_hides_no_module_that_is_in_use(toy):
    path = toy.parent / "json.py"
    path.write_text(toy.read_text())
    before = sys.modules["json"]
    assert load_path(path).id == "json"
    assert sys.modules["json"] is before
    sys.modules.pop("json_result_file")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"""A toy result: seeds divided by steps."""', "", "no docstring"),
        ("def plot(", "def plott(", "must define the function plot"),
        ("CLAIMS = (", "CLAIM = (", "must define CLAIMS, of type tuple"),
        ('"smoke": 0.01, ', "", "ABOUT.minutes must name the presets smoke, cpu"),
        ('PRESETS = {"smoke"', 'PRESETS = {"smokee"', "unknown preset 'smokee'; nearest: smoke"),
        ("PRESETS = {", "PRESETS = {}\nOTHER = {", "PRESETS is empty"),
        (
            "from experiments.results import Config as BaseConfig",
            "BaseConfig = dataclass(frozen=True)(type('B', (), {'__annotations__': {'seeds': tuple}, 'seeds': (0,),"
            " '__post_init__': lambda self: None}))",
            "must be a frozen dataclass that inherits",
        ),
        ('Claim("toy/exact"', 'Claim("toy/small"', "CLAIMS repeats an id"),
        ("import os", "import os, no_such_module", "cannot be imported: ModuleNotFoundError"),
        ("def run(", "def run(:", "cannot be imported: line"),
        ("seeds=(0,)", "seeds=()", "cannot be imported: ValueError: seeds must name"),
    ],
)
def test_a_file_that_breaks_the_contract_is_told_in_one_line(toy, old, new, told):
    assert old in toy.read_text()
    toy.write_text(toy.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=told) as caught:
        load_path(toy)
    assert "toy.py" in str(caught.value) and "\n" not in str(caught.value)


def test_words_select_results(monkeypatch, toy):
    known = ["one/a", "one/b", "two/c"]
    monkeypatch.setattr(registry, "discover", lambda: dict.fromkeys(known))
    monkeypatch.setattr(registry, "load_id", lambda id: type("R", (), {"id": id, "about": _about(id == "two/c")}))
    assert [result.id for result in select("one/b")] == ["one/b"]
    assert [result.id for result in select("one")] == ["one/a", "one/b"]
    assert [result.id for result in select("all")] == known
    assert [result.id for result in select("headline")] == ["two/c"]
    assert [result.id for result in select(str(toy))] == ["toy"]
    with pytest.raises(UserError, match="unknown result 'one/bb'; nearest: one/b"):
        select("one/bb")
    with pytest.raises(UserError, match="no result file"):
        select("absent.py")


def _about(headline):
    return type("About", (), {"headline": headline})


def test_the_nearest_name_may_lack_its_folder():
    assert unknown("result", "entropy_gpa", ["tokenization/entropy_gap"]).endswith("nearest: tokenization/entropy_gap")
    assert unknown("preset", "zzz", ["smoke", "cpu"]).endswith("there is: smoke, cpu")


def test_an_unknown_name_is_answered_with_few_names():
    many = [f"--config.train.optimizer.part{number}" for number in range(30)]
    line = unknown("flag", "--QQ", ["--preset", *many])
    assert "nearest: " in line and line.count(", ") == 2
    assert unknown("flag", "--PRESET", ["--preset", *many]) == "unknown flag '--PRESET'; nearest: --preset"
    assert unknown("preset", "zz", ["smoke", "cpu"]) == "unknown preset 'zz'; there is: smoke, cpu"
