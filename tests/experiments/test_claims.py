"""The ledger: every row has a registered result or a reason, and results and ledger agree."""

import re
from pathlib import Path

import pytest

from experiments.claims import CERTAINTIES, contradictions, ledger
from experiments.errors import UserError
from experiments.registry import discover, load_id

ROOT = Path(__file__).parents[2]
PAPERS = {
    "lightnet",
    "token_dynamics",
    "tokenization",
    "markov_dynamics",
    "distillation",
    "long_memory",
    "hiss",
    "recommendation",
    "sequence_parallelism",
}
FOLDERS = {"long_memory": {"long_memory", "state_spaces"}}  # where results of a paper's claims are, if not only in one

ROW = """
[[claim]]
id = "demo/a"
paper = "A paper"
source = "Figure 1"
statement = "It is small."
expected = "below 1"
certainty = "read"
result = "demo/figure"
reason = ""
"""


def test_ledger_and_result_files_agree():
    tested = {id: [claim.id for claim in load_id(id).claims] for id in discover()}
    assert contradictions(ledger(), tested) == []


def test_every_claim_belongs_to_a_paper_folder():
    assert {id.partition("/")[0] for id in ledger()} == PAPERS


def test_result_claims_lie_in_the_folder_of_their_paper():
    def folder(id):
        return id.split("/")[0]

    tested = [row for row in ledger().values() if row.result]
    assert [row.id for row in tested if folder(row.result) not in FOLDERS.get(folder(row.id), {folder(row.id)})] == []


def write(tmp_path, text):
    path = tmp_path / "CLAIMS.toml"
    path.write_text(text)
    return path


def test_a_row_is_read(tmp_path):
    (row,) = ledger(write(tmp_path, ROW)).values()
    assert (row.id, row.result, row.reason, row.certainty) == ("demo/a", "demo/figure", "", "read")
    assert row.certainty in CERTAINTIES


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"read"', '"sure"', "certainty must be one of read, "),
        ('reason = ""', 'reason = "none"', "exactly one of result and reason"),
        ('result = "demo/figure"', 'result = " "', "exactly one of result and reason"),
        ('result = "demo/figure"\n', "", "exactly one of result and reason"),
        ('"demo/a"', '"demo"', "an id reads"),
        ('"It is small."', '" "', "statement is empty"),
        ('source = "Figure 1"\n', "", "field 'source' is missing"),
        ("source =", "sources =", "unknown field 'sources'"),
        ('expected = "below 1"', "expected = true", "expected must be"),
        ('"A paper"', "[1]", "paper must be text"),
        ("[[claim]]", "[[claims]]", "has no"),
        ("[[claim]]", "[[claim", "CLAIMS.toml: "),
        ("[[claim]]", ROW + "[[claim]]", "claim demo/a appears twice"),
    ],
)
def test_a_row_that_is_not_allowed_is_told_in_one_line(tmp_path, old, new, told):
    assert old in ROW
    with pytest.raises(UserError, match=told.replace("[", r"\[")):
        ledger(write(tmp_path, ROW.replace(old, new, 1)))


def test_tests_that_rows_name_are_there():
    named = {name for row in ledger().values() for name in re.findall(r"tests/\S+\.py::\w+", row.reason)}
    assert named
    for name in named:
        path, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / path).read_text(), name


def test_an_absent_ledger_is_named(tmp_path):
    with pytest.raises(UserError, match="no ledger of claims at"):
        ledger(tmp_path / "CLAIMS.toml")


def test_every_contradiction_is_found(tmp_path):
    rows = ledger(write(tmp_path, ROW))
    assert contradictions(rows, {"demo/figure": ["demo/a"]}) == []
    assert len(contradictions(rows, {})) == 1  # no such result
    assert len(contradictions(rows, {"demo/figure": []})) == 1  # the result does not test it
    assert len(contradictions(rows, {"demo/figure": ["demo/a", "demo/b"]})) == 1  # not in the ledger
    assert len(contradictions(rows, {"demo/figure": ["demo/a"], "demo/other": ["demo/a"]})) == 1  # another's claim
