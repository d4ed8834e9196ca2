"""The report says what was found, stands alone, and stores what is committed."""

import errno
import os
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import experiments.commands.report as command
from experiments.claims import Row
from experiments.errors import UserError
from experiments.files import read_json
from experiments.registry import load_path
from experiments.reporting import collect as collecting

ROWS = [
    Row("demo/small", "A paper", "Figure 1", "It is small | really <b>.", "below 1", "read", "demo/toy"),
    Row("demo/exact", "A paper", "Figure 2", "It is 2.", 2.0, "plot", "demo/toy"),
    Row("demo/open", "A paper", "Table 1", "Nobody knows.", "unknown", "memory", "", "not built yet"),
    Row("other/far", "Another paper", "abstract", "It is far.", "unknown", "secondary", "other/gone"),
]


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """A ledger with the claims of the result demo/toy."""
    monkeypatch.setattr(collecting, "ledger", lambda: {row.id: row for row in ROWS})


def test_an_empty_report_lists_every_claim_as_not_run(call, demo):
    status, out, _ = call("report")
    assert status == 0 and "4 claims: 4 not run" in out
    text = Path("results/REPORT.md").read_text()
    assert all(row.id in text for row in ROWS) and "no finished run of demo/toy" in text and "not built yet" in text


def test_the_report_shows_verdicts_figures_versions_and_commands(call, demo):
    call("run", "demo/toy", "--seeds", "0:4")
    status, out, _ = call("report", "--out", "pages")
    assert status == 0 and "4 claims: 2 hold, 2 not run" in out
    for name in ("REPORT.md", "REPORT.html"):
        text = Path("pages", name).read_text()
        content = text if name.endswith("md") else Page(text).text
        for words in (
            "demo/small",
            "≤ 1",
            "(n 4)",
            "2 ± 0.5",
            "python -m experiments run demo/toy --seeds 0:4",
            "numpy 2",
        ):
            assert words in content, (name, words)
        assert content.index("does not hold") < content.index("demo/small")  # counts come first
    assert Path("pages/figures/demo-toy-cpu.png").read_bytes().startswith(b"\x89PNG")
    assert "](figures/demo-toy-cpu.png)" in Path("pages/REPORT.md").read_text()


def test_each_verdict_is_that_of_the_largest_preset_that_measured_the_claim(call, two_sizes):
    call("run", "demo/toy")
    call("run", "demo/toy", "--preset", "gpu")
    assert "4 claims: 2 hold, 2 not run" in call("report")[1]
    text = Path("results/REPORT.md").read_text()
    (small,), (exact,) = (re.findall(rf"^\| {id} .*$", text, re.MULTILINE) for id in ("demo/small", "demo/exact"))
    assert "**holds**" in small and "| demo/toy (cpu) |" in small
    assert "**holds**" in exact and "| demo/toy (gpu) |" in exact
    for preset in ("cpu", "gpu"):  # each run that a verdict comes from is shown, with its own figure and command
        assert f"### demo/toy ({preset}): A toy result" in text
        assert Path(f"results/figures/demo-toy-{preset}.png").exists() and f"](figures/demo-toy-{preset}.png)" in text
    assert "--preset gpu\n" in text


def test_a_claim_that_no_run_measured_says_so(call, two_sizes):
    call("run", "demo/toy", "--preset", "gpu")
    assert "4 claims: 1 holds, 3 not run" in call("report")[1]
    assert "| not measured by demo/toy | **not run** |" in Path("results/REPORT.md").read_text()


def test_names_of_numeric_columns_are_aligned_with_their_numbers(call, demo):
    call("report")
    table = Path("results/REPORT.html").read_text().partition("<table>")[2].partition("</table>")[0]
    head, *body = table.split("</tr>")
    numeric = [tag == "th class=number" for tag in re.findall(r"<(th(?: [^>]*)?)>", head)]
    assert numeric == [False] + [True] * 5
    assert [tag == "td class=number" for tag in re.findall(r"<(td[^>]*)>", body[0])] == numeric
    assert re.search(r"^\.number \{ text-align: right", Path("results/REPORT.html").read_text(), re.MULTILINE)


def test_the_page_needs_nothing_else(call, demo):
    call("run", "demo/toy")
    call("report")
    text = Path("results/REPORT.html").read_text()
    page = Page(text)
    assert page.open == [] and "script" not in page.tags and "link" not in page.tags
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "prefers-color-scheme: dark" in text
    assert "<b>." not in text and "It is small | really <b>." in page.text


def test_markdown_rows_have_the_cells_of_their_header(call, demo):
    call("run", "demo/toy")
    call("report")
    header = 0
    for line in Path("results/REPORT.md").read_text().splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        if line.startswith("|"):
            header = header or cells
            assert cells == header, line
        else:
            header = 0


def test_a_result_is_shown_with_its_claims_whatever_its_folder_is_called(demo, monkeypatch):
    renamed = [replace(row, id=row.id.replace("demo/", "memory/")) for row in ROWS]
    monkeypatch.setattr(collecting, "ledger", lambda: {row.id: row for row in renamed})
    shown = {section.paper: [shown.id for shown in section.results] for section in collecting.collect().sections}
    assert shown == {"memory": ["demo/toy"], "other": []}


def test_results_of_your_own_are_listed_and_not_counted(call, toy, demo, monkeypatch):
    own = toy.with_name("own_result.py")
    own.write_text(toy.read_text().replace('"demo/', '"own | ').replace("no unit", "in <kg>"))
    with monkeypatch.context() as patch:
        patch.setattr("experiments.commands.run.select", lambda path: [load_path(path)])
        assert call("run", own, "--runs_dir", "mine")[0] == 0
    assert "esults of your own" not in call("list")[1] + call("report")[1] + Path("results/REPORT.md").read_text()
    out = call("list", "--runs_dir", "mine")[1]
    assert "results of your own" in out and "own_result" in out and "2 hold, 1 not run" in out
    assert max(map(len, out.splitlines())) <= 100
    assert "4 claims: 4 not run" in call("report", "--runs_dir", "mine")[1]
    text, page = (Path("results", name).read_text() for name in ("REPORT.md", "REPORT.html"))
    assert "## Results of your own" in text and "| own \\| small | mean of the values, in <kg> | ≤ 1 |" in text
    assert "run own_result.py" in text and "own | smallmean of the values, in <kg>≤ 1" in Page(page).text
    sys.modules.pop("own_result", None)


def test_changed_settings_do_not_reach_the_report(call, demo):
    call("run", "demo/toy", "--config.offset", "9")
    assert "4 claims: 4 not run" in call("report")[1]


def test_a_result_file_that_cannot_be_imported_is_shown(call, demo, monkeypatch):
    def load(id):
        raise UserError("toy.py cannot be imported: a bug")

    monkeypatch.setattr(collecting, "load_id", load)
    status, _, _ = call("report")
    assert status == 0 and "toy.py cannot be imported: a bug" in Path("results/REPORT.md").read_text()


def test_store_copies_runs_that_count(call, demo, tmp_path):
    package = tmp_path / "package"
    call("run", "demo/toy", "--preset", "smoke")
    call("run", "demo/toy", "--config.offset", "0.5")
    assert command.store(package=package) == []
    call("run", "demo/toy")
    folder = package / "demo" / "results" / "toy" / "cpu"
    assert command.store(package=package) == [folder]
    assert sorted(path.name for path in folder.iterdir()) == ["arrays.npz", "figure.png", "result.json"]
    stored = read_json(folder / "result.json")
    assert stored["command"] == "python -m experiments run demo/toy" and stored["config"]["offset"] == 0.0
    assert str(tmp_path) not in (folder / "result.json").read_text()


def test_store_never_mixes_two_runs(call, demo, tmp_path, monkeypatch):
    package = tmp_path / "package"
    demo.write_text(demo.read_text().replace("np.arange(3.0)", "np.arange(3.0) * len(config.seeds)"))
    call("run", "demo/toy")
    command.store(package=package)
    folder = package / "demo" / "results" / "toy" / "cpu"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    call("run", "demo/toy", "--seeds", "0:5")
    original = os.replace

    def fill(source, target):
        if Path(target).name == "result.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fill)
        with pytest.raises(OSError, match="No space left"):
            command.store(package=package)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    command.store(package=package)
    assert len(read_json(folder / "result.json")["seeds"]) == 5 and list(folder.parent.iterdir()) == [folder]


def test_a_report_that_cannot_be_written_is_one_line(call, demo):
    Path("results").write_text("")
    status, _, err = call("report")
    assert (status, err) == (2, "error: results is a file, and a folder is needed there\n")
