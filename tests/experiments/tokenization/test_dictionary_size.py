"""The result `tokenization/dictionary_size`: its contract, a small run of each preset, and folders of text."""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import results
from experiments.errors import UserError
from experiments.tokenization import dictionary_size
from experiments.tokenization.dictionary_size import CLAIMS, PRESETS, Config, plot, run
from experiments.tokenization.measurements import measure

TINY = {
    "seeds": (0, 1),
    "sources": ((2, 0.8, 0.8),),
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


def test_a_small_run(tiny: tuple[results.Result, Path]) -> None:
    result, _ = tiny
    assert set(result.measured) <= {claim.id for claim in CLAIMS}
    assert all(len(values) == 2 for values in result.measured.values())
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


def test_a_run_is_a_function_of_its_config(tiny: tuple[results.Result, Path], tmp_path: Path) -> None:
    again = run(Config(**TINY), tmp_path)  # type: ignore[arg-type]
    assert again.measured == tiny[0].measured


def test_seeds_differ(tiny: tuple[results.Result, Path]) -> None:
    values = tiny[0].measured["tokenization/F7-bpe-below-lzw"]
    assert values[0] != values[1]


def test_figure(tiny: tuple[results.Result, Path]) -> None:
    result, folder = tiny
    figure = plot(stored(result, folder))
    figure.savefig(folder / "figure.png")
    assert (folder / "figure.png").stat().st_size > 10_000
    assert all("nats" in panel.get_ylabel() for panel in figure.axes if panel.axison)


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
            "regret": 0.1,
            "cross_entropy": 2.0,
            "bound_4_3": 0.7,
            "bound_4_5": 0.7,
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
    assert set(measure([0], on_sources, on_text)) == {claim.id for claim in CLAIMS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ()}, "sizes must name"),
        ({"sizes": (1, 2)}, "sizes must be 2 or more"),
        ({"held_out": 1.0}, "held_out must be"),
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
