"""A manifest finds each missing, extra and changed file, and each flipped bit."""

import errno
import json
import random
from pathlib import Path

import pytest
from etils import epath

from experiments.training import manifest
from experiments.training.manifest import MANIFEST, damage, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> epath.Path:
    """A folder with files of awkward sizes and its manifest."""
    for name, size in {"a": 0, "b/c": 1, "b/d/e": 2**20, "b/d/f": 2**20 + 1, "g é": 63}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(random.Random(name).randbytes(size))
    write_manifest(epath.Path(tmp_path))
    return epath.Path(tmp_path)


def test_untouched(folder):
    assert damage(folder) is None


@pytest.mark.parametrize("seed", range(20))
def test_any_flipped_bit_is_found(folder, seed):
    draw = random.Random(seed)
    path = draw.choice(sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.stat().st_size))
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    found = damage(folder)
    assert found is not None and "\n" not in found
    if path.name != MANIFEST:
        assert found == f"{path.relative_to(folder)}: bytes differ"


@pytest.mark.parametrize("name", ["a", "b/c", "b/d/f"])
def test_missing(folder, name):
    (folder / name).unlink()
    assert damage(folder) == f"{name}: missing"
    (folder / name).mkdir()
    assert damage(folder) == f"{name}: missing"


def test_extra_at_the_top_and_below(folder):
    (folder / "b" / "z").write_text("")
    assert damage(folder) == "b/z: not in the manifest"
    (folder / "b" / "z").unlink()
    (folder / "b" / MANIFEST).write_text("{}")
    assert damage(folder) == f"b/{MANIFEST}: not in the manifest"


@pytest.mark.parametrize("kept", [0, 1, 2**20])
def test_torn(folder, kept):
    path = folder / "b" / "d" / "f"
    path.write_bytes(path.read_bytes()[:kept])
    assert damage(folder) == f"b/d/f: {kept} bytes, {2**20 + 1} were saved"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files":[]}', '{"files":null}', "\ufffd"])
def test_manifest_that_is_none(folder, text):
    (folder / MANIFEST).write_text(text)
    assert damage(folder) == f"{MANIFEST}: not readable"


@pytest.mark.parametrize("entry", [1, None, {}, "a"])
def test_manifest_with_other_entries(folder, entry):
    names = json.loads((folder / MANIFEST).read_text())["files"]
    (folder / MANIFEST).write_text(json.dumps({"files": dict.fromkeys(names, entry)}))
    assert damage(folder).startswith("a: 0 bytes")


def test_without_manifest_or_folder(folder):
    (folder / MANIFEST).unlink()
    assert damage(folder) == f"{MANIFEST}: missing"
    assert damage(folder / "nowhere") == f"{MANIFEST}: missing"


def test_unreadable_sector_is_damage_but_no_permission_is_not(folder, monkeypatch):
    def failing(code):
        def digest(path):
            raise OSError(code, "refused")

        return digest

    monkeypatch.setattr(manifest, "_digest", failing(errno.EIO))
    assert damage(folder) == "a: not readable"
    monkeypatch.setattr(manifest, "_digest", failing(errno.EACCES))
    with pytest.raises(PermissionError):
        damage(folder)
