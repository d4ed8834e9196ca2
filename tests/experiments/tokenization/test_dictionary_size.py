"""The result `tokenization/dictionary_size`: its contract, a small run of each preset, and folders of text."""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import results
from experiments.errors import UserError
from experiments.sources import Corpus, SwitchingSource, documentation
from experiments.tokenization import dictionary_size
from experiments.tokenization.dictionary_size import CLAIMS, PRESETS, Config, plot, run
from experiments.tokenization.measurements import measure
from experiments.tokenization.sweeps import source_rows
from experiments.tokenization.theory import block_loss

TINY = {
    "seeds": (0, 1),
    "sources": ((2, 0.8, 0.8), (1, 0.8, 0.8)),
    "further_sources": ((1, 0.1, 0.1),),
    "sizes": (2, 4, 20),
    "tokenizer_symbols": 5000,
    "loss_symbols": 5000,
    "block_symbols": 5000,
    "text_sizes": (150, 250),
    "character_orders": 2,
}


def stored(result: results.Result, path: Path) -> results.StoredResult:
    return results.StoredResult(
        id="tokenization/dictionary_size",
        paper="",
        preset="smoke",
        seeds=(0, 1),
        claims=[],
        tables=result.tables,
        data=result.data,
        seconds=0.0,
        env={},
        config={},
        path=path,
    )


def fake_text(folder: Path, seed: int, characters: str, lines: int = 3000) -> None:
    """Plain text files in the format of the published corpora: one article or sentence per line."""
    folder.mkdir()
    generator = random.Random(seed)
    words = ["".join(generator.choices(characters, k=generator.randint(1, 8))) for _ in range(300)]
    for name in ("wiki.train.raw", "more.txt"):
        text = "\n".join(" ".join(generator.choices(words, k=9)) for _ in range(lines))
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[results.Result, Path]:
    folder = tmp_path_factory.mktemp("run")
    return run(Config(**TINY), folder), folder  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_small_run(tiny: tuple[results.Result, Path]) -> None:
    result, _ = tiny
    assert set(result.measured) <= {claim.id for claim in CLAIMS}
    counts = {claim.id: 1 if claim.deterministic else 2 for claim in CLAIMS}
    assert all(len(values) == counts[claim] for claim, values in result.measured.items())
    assert all(len({len(column) for column in table.values()}) == 1 for table in result.tables.values())
    assert list(result.data) == ["text: Python documentation topics"]
    sources = result.tables["sources"]
    assert set(sources["tokenizer"]) == {"LZW", "LZW, d symbols", "blocks", "BPE", "BPE, rows of 512", "BPE, greedy"}
    assert set(sources["seed"]) == {0, 1}
    assert all(
        size >= vocabulary
        for name, size, vocabulary in zip(sources["tokenizer"], sources["size"], sources["vocabulary"], strict=True)
        if name != "blocks"
    )


@pytest.mark.slow
def test_a_run_is_a_function_of_its_config(tiny: tuple[results.Result, Path], tmp_path: Path) -> None:
    again = run(Config(**TINY), tmp_path)  # type: ignore[arg-type]
    assert again.measured == tiny[0].measured


def test_bounds_are_stored_for_sources_of_order_1_alone(tiny: tuple[results.Result, Path]) -> None:
    sources = tiny[0].tables["sources"]
    kinds = list(zip(sources["order"], sources["tokenizer"], sources["size"], strict=True))
    for bound in ("bound_4_3", "bound_4_5"):
        given = {kind for kind, value in zip(kinds, sources[bound], strict=True) if value is not None}
        assert given
        assert {order for order, *_ in given} == {1}
    assert (1, "LZW, d symbols", 20) in given
    assert all(name == "LZW, d symbols" for _, name, _ in given)


@pytest.mark.slow
def test_each_seed_scores_another_part_of_the_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The position of a seed decides, whatever its value; more seeds than folds give as many folds."""
    asked = []
    split = Corpus.split

    def record(corpus: Corpus, fold: int, folds: int = 5) -> tuple[Corpus, Corpus]:
        asked.append((fold, folds, split(corpus, fold, folds)[1]))
        return split(corpus, fold, folds)

    monkeypatch.setattr(Corpus, "split", record)
    run(Config(**{**TINY, "seeds": (41, 7, 1000), "folds": 2, "text_sizes": (150,)}), tmp_path)  # type: ignore[arg-type]
    assert [entry[:2] for entry in asked] == [(0, 3), (1, 3), (2, 3)]
    documents = [text for *_, test in asked for text in test.documents]
    assert sorted(documents) == sorted(documentation().documents)


def test_seeds_differ(tiny: tuple[results.Result, Path]) -> None:
    values = tiny[0].measured["tokenization/F7-bpe-below-lzw"]
    assert values[0] != values[1]


def test_figure(tiny: tuple[results.Result, Path]) -> None:
    result, folder = tiny
    figure = plot(stored(result, folder))
    figure.savefig(folder / "figure.png")
    assert (folder / "figure.png").stat().st_size > 10_000
    assert all("nats" in panel.get_ylabel() for panel in figure.axes if panel.axison)
    labels = [{text.get_text() for text in panel.texts} for panel in figure.axes]
    assert "Order-2" in figure.axes[0].get_title()
    assert ["Theorem 4.1" in texts for texts in labels] == [False, True, False]
    assert not any("Theorem 4.5" in texts for texts in labels)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["gpu", "paper"])
def test_larger_presets_run_at_reduced_size(preset: str, tmp_path: Path) -> None:
    """The published setting reads folders of text files; its largest sizes are cut to what the fake text can give."""
    fake_text(tmp_path / "wiki", 0, "abcdefghijklmnopqrstuvwxyzé")
    fake_text(tmp_path / "glue", 1, "abcdefghijklmnopqrstuvwxyz")
    config = dataclasses.replace(
        PRESETS[preset],
        **{name: TINY[name] for name in TINY if name != "text_sizes"},
        text_sizes=tuple(size // 50 for size in PRESETS[preset].text_sizes if size >= 8000),
        text=PRESETS[preset].text if preset == "paper" else "documentation",
        text_folder=str(tmp_path / "glue"),
        tokenizer_folder=str(tmp_path / "wiki"),
        tokenizer_characters=60_000,
    )
    result = run(config, tmp_path)
    assert len(result.data) == (2 if preset == "paper" else 1)
    assert "tokenization/F7-bpe-below-lzw" in result.measured


def test_absent_folder_is_one_line_that_names_the_embedded_text(tmp_path: Path) -> None:
    config = dataclasses.replace(PRESETS["paper"], text_folder=str(tmp_path / "glue"))
    with pytest.raises(UserError, match="embedded alternative"):
        run(config, tmp_path)


def test_every_claim_can_be_measured() -> None:
    """A cpu run measures all claims: every quantity finds its source and size among the rows of such a run."""
    config = PRESETS["cpu"]
    names = ("LZW", "LZW, d symbols", "blocks", "BPE", "BPE, rows of 512", "BPE, greedy")
    on_sources = [
        {
            "order": order,
            "p": p,
            "q": q,
            "seed": 0,
            "tokenizer": name,
            "size": size,
            "unigram": 0.6,
            "redundancy": 0.1,
            "cross_entropy": 2.0,
            "bound_4_3": 0.7 if order == 1 else None,
            "bound_4_5": 0.7 if order == 1 else None,
        }
        for order, p, q in config.sources
        for name in names
        for size in config.sizes
    ]
    text_names = [f"characters, {k}-gram" for k in range(1, config.character_orders + 1)]
    on_text = [{"seed": 0, "tokenizer": name, "size": 9000, "held_out": 2.0, "in_sample": 2.0} for name in text_names]
    on_text += [
        {"seed": 0, "tokenizer": name, "size": size, "held_out": 2.5, "in_sample": 2.0}
        for name in ("LZW", "BPE")
        for size in config.text_sizes
    ]
    measured = measure([0], on_sources, on_text)
    assert set(measured) == {claim.id for claim in CLAIMS}


def block_and_lzw_row(tokenizer: str, size: int, unigram: float, seed: int = 0, **more: object) -> dict:
    row = {"order": 1, "p": 0.05, "q": 0.05, "seed": seed, "tokenizer": tokenizer, "size": size, "unigram": unigram}
    return {**row, "redundancy": 0.1, "bound_4_3": None, "bound_4_5": None, **more}


def test_lzw_is_compared_with_blocks_that_have_no_fewer_tokens() -> None:
    rows = [block_and_lzw_row("LZW", size, loss) for size, loss in ((100, 0.25), (500, 0.2), (1000, 0.1))]
    rows += [block_and_lzw_row("blocks", size, loss) for size, loss in ((256, 0.27), (512, 0.26))]
    assert measure([0], rows, [])["tokenization/Th1-lzw-beats-blocks"] == [pytest.approx(-0.06)]
    few = [row for row in rows if row["tokenizer"] == "blocks" or row["size"] > 512]
    assert "tokenization/Th1-lzw-beats-blocks" not in measure([0], few, [])


@pytest.mark.parametrize("violating", [0, 1, 2])
def test_a_violation_on_one_seed_is_not_averaged_away(violating: int) -> None:
    """Two seeds far inside a bound and one just outside: the measured value is the one outside."""
    p = q = 0.8
    rows = []
    for seed in range(3):
        bad = seed == violating
        loss = 0.71 if bad else 0.3
        more = {"p": p, "q": q, "bound_4_3": 0.7, "bound_4_5": 0.7, "redundancy": -0.02 if bad else 0.5}
        rows.append(block_and_lzw_row("LZW, d symbols", 50, loss, seed, **more))
        closed_form = block_loss(SwitchingSource(1, p, q), 3)
        rows.append(block_and_lzw_row("blocks", 8, closed_form + (0.01 if bad else 0.0), seed, p=p, q=q))
    measured = measure([0, 1, 2], rows, [])
    assert measured["tokenization/Th1-lzw-bound"] == [pytest.approx(0.01)]
    assert measured["tokenization/Thm43-greedy-reduction"] == [pytest.approx(0.01)]
    assert measured["tokenization/Th1-toy-closed-form"] == [pytest.approx(0.01)]
    assert measured["tokenization/Th1-above-entropy-rate"] == [-0.02]
    worst = {claim.id for claim in CLAIMS if claim.deterministic}
    assert {claim for claim, values in measured.items() if len(values) == 1} == worst


@pytest.mark.slow
def test_blocks_that_do_not_divide_the_row_length() -> None:
    """Up to 13 symbols, in rows of 1009, a prime: nothing but whole blocks is scored."""
    rows = source_rows(
        SwitchingSource(1, 0.05, 0.05),
        0,
        sizes=(8192,),
        tokenizer_symbols=30_000,
        loss_symbols=0,
        block_symbols=1009,
        alpha=0.1,
    )
    blocks = [row for row in rows if row["tokenizer"] == "blocks"]
    assert [row["symbols_per_token"] for row in blocks] == list(range(1, 14))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ()}, "sizes must name"),
        ({"sizes": (1, 2)}, "sizes must be 2 or more"),
        ({"folds": 1}, "folds must be"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"loss_symbols": 0}, "loss_symbols must be"),
        ({"seeds": ()}, "seeds must name"),
    ],
)
def test_config_is_checked(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_importing_the_result_is_light() -> None:
    code = (
        "import sys; import experiments.tokenization.dictionary_size; "
        "assert not {'jax', 'tokenizers', 'matplotlib', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_about_names_every_preset() -> None:
    assert set(dictionary_size.ABOUT.minutes) == set(PRESETS)
