"""`doctor`: what of this installation works. It never crashes, and each check stands alone."""

from __future__ import annotations

import importlib
import importlib.util
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import environment
from experiments.commands import PROGRAM
from experiments.commands.flags import RunsDir, exactly, parse
from experiments.files import is_object_store
from experiments.registry import discover, load_id
from experiments.runs import runs_folder

# Distribution-level names would not show a broken binary, so the modules are imported.
REQUIRED = (
    "jax",
    "flax",
    "optax",
    "orbax.checkpoint",
    "grain",
    "numpy",
    "scipy",
    "sklearn",
    "tokenizers",
    "matplotlib",
)
OPTIONAL = {
    "tensorflow_datasets": "published data sets",
    "tensorboardX": "TensorBoard metrics",
    "gcsfs": "run folders at gs://",
    "huggingface_hub": "extra hf: checkpoints from the Hugging Face Hub",
    "safetensors": "checkpoint files",
    "torch": "extra parity: comparison with PyTorch",
    "transformers": "extra parity: comparison with Transformers",
    "jupytext": "extra notebooks",
}


@dataclass(frozen=True)
class Flags:
    """Versions, devices, optional parts, what is writable. Exit status 1 if something required is broken."""

    runs_dir: RunsDir = None
    """folder of run folders"""


@dataclass(frozen=True)
class Check:
    """What one check found: `ok` is None for something that is optional or only a remark."""

    name: str
    ok: bool | None
    told: str


def main(arguments: Sequence[str]) -> int:
    """Print every check.

    Args:
        arguments: words after `doctor`.

    Returns:
        0, or 1 if something required is broken.
    """
    flags, words = parse(Flags(), f"{PROGRAM} doctor", arguments)
    exactly(words)
    checks: list[Callable[[], list[Check]]] = [
        _python,
        _libraries,
        _devices,
        _optional,
        _results,
        _hidden,
        lambda: [
            _writable("runs folder", runs_folder(flags.runs_dir)),
            _writable("temporary folder", Path(tempfile.gettempdir())),
        ],
    ]
    found = [item for check in checks for item in _safely(check)]
    for item in found:
        print(f"{ {True: 'ok', False: 'BROKEN', None: '-'}[item.ok]:<7}{item.name:<21}{item.told}")
    broken = [item.name for item in found if item.ok is False]
    print(f"\nbroken: {', '.join(broken)}" if broken else "\neverything required works")
    return 1 if broken else 0


def other_packages(folders: Sequence[str]) -> list[Path]:
    """Packages or modules named `experiments` that are not this one.

    Args:
        folders: where Python may look, such as the current folder and `sys.path`.

    Returns:
        Their paths.
    """
    ours = Path(__file__).resolve().parent.parent
    found = []
    for folder in dict.fromkeys(Path(folder or ".").resolve() for folder in folders):
        for path in (folder / "experiments", folder / "experiments.py"):
            is_package = (path / "__init__.py").is_file() or path.suffix == ".py"
            if path.exists() and is_package and path.resolve() != ours:
                found.append(path)
    return found


def _safely(check: Callable[[], list[Check]]) -> list[Check]:
    """A check that itself fails is a finding."""
    try:
        return check()
    except Exception as error:
        return [Check(getattr(check, "__name__", "check").strip("_<>"), False, _brief(error))]


def _python() -> list[Check]:
    """The interpreter, and the commit of a checkout."""
    commit, dirty = environment.git_state()
    code = environment.code_version(commit, dirty) if commit else "not a git checkout"
    version = f"{sys.version.split()[0]} at {sys.prefix}"
    package = environment.versions().get("lightnet-lab", "not installed: run from its checkout")
    return [Check("python", sys.version_info >= (3, 11), version), Check("lightnet-lab", None, f"{package}; {code}")]


def _libraries() -> list[Check]:
    """Required libraries, by importing them."""
    versions = environment.versions()
    distribution = {"orbax.checkpoint": "orbax-checkpoint", "sklearn": "scikit-learn"}
    found = []
    for module in REQUIRED:
        name = distribution.get(module, module)
        try:
            importlib.import_module(module)
            found.append(Check(name, True, versions.get(name, "?")))
        except Exception as error:  # a broken binary raises whatever it likes
            found.append(Check(name, False, _brief(error)))
    return found


def _devices() -> list[Check]:
    """Devices, and one computation on them."""
    import jax

    total = float(jax.numpy.ones(3).sum())
    names = environment.devices()
    return [Check("devices", total == 3.0, f"{len(names)} x {', '.join(sorted(set(names)))}")]


def _optional() -> list[Check]:
    """Optional parts, without importing them."""
    return [
        Check(module, None, f"{'there' if importlib.util.find_spec(module) else 'absent'} ({purpose})")
        for module, purpose in OPTIONAL.items()
    ]


def _results() -> list[Check]:
    """Every result file keeps its contract."""
    found = []
    for id in discover():
        try:
            load_id(id)
        except Exception as error:
            found.append(Check(id, False, _brief(error)))
    return found or [Check("results", True, f"{len(discover())} result files")]


def _hidden() -> list[Check]:
    """Other packages of our name."""
    others = other_packages(["", *sys.path])
    told = "; ".join(
        f"{path} hides this one where it comes first, so that `{PROGRAM}` from {path.parent} fails in Python itself"
        " ('No module named ...' or 'cannot be directly executed'): use lightnet-lab, or another folder"
        for path in others
    )
    return [Check("package experiments", None, told or str(Path(__file__).resolve().parent.parent))]


def _writable(name: str, folder: Path) -> Check:
    """Whether files can be made in a folder, which need not exist yet; leaves nothing behind."""
    if is_object_store(folder):
        return _writable_store(name, folder)
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        return Check(name, True, f"{folder} is writable")
    except OSError as error:
        return Check(name, False, f"{folder}: {error.strerror or error}")


def _writable_store(name: str, folder: Path) -> Check:
    """Whether an object can be written, read and removed; a store's client raises whatever it likes."""
    probe = folder / f".doctor-{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"x")
        read = probe.read_bytes()
        probe.unlink()
        return Check(name, read == b"x", f"{folder} is writable")
    except Exception as error:
        return Check(name, False, f"{folder}: {_brief(error)}")


def _brief(error: BaseException) -> str:
    """The first line of an exception."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
