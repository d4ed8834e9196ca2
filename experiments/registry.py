"""Which result files exist, found without importing anything heavy, and the contract that each must keep.

A result of a paper is a file `experiments/<paper>/<name>.py` that defines ABOUT and PRESETS; its id is
`<paper>/<name>`. A file anywhere else can be named by its path; its id is its stem.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from experiments.errors import UserError
from experiments.results import PRESET_NAMES, About, Claim, Config, Result, StoredResult, check_seeds

PACKAGE = Path(__file__).resolve().parent
_MOST_NAMES = 12  # that one line may list
NOT_PAPERS = frozenset(
    {"training", "sources", "baselines", "commands", "planning", "records", "reporting", "scan_benchmark"}
)


@dataclass(frozen=True)
class ResultFile:
    """A result file that keeps the contract.

    Args:
        id: `<paper>/<name>`, or the stem of an outside file.
        title: first line of its docstring.
        about: its ABOUT.
        presets: its PRESETS.
        claims: its CLAIMS.
        run: its `run(config, run_dir)`.
        plot: its `plot(result)`.
        target: what the command line calls it: its id, or the name of an outside file.
    """

    id: str
    title: str
    about: About
    presets: Mapping[str, Config]
    claims: tuple[Claim, ...]
    run: Callable[[Any, Path], Result]
    plot: Callable[[StoredResult], Any]
    target: str

    def preset(self, name: str) -> Config:
        """Config of a preset.

        Args:
            name: which.

        Returns:
            Its Config.

        Raises:
            UserError: if this result has no such preset.
        """
        if name not in self.presets:
            raise UserError(unknown(f"preset of {self.id}", name, self.presets))
        return self.presets[name]


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """One line about a name that does not exist.

    Args:
        what: kind of thing that was named.
        given: the name.
        known: names that exist.

    Returns:
        The line, with the nearest valid name, or with all of them or the nearest few.

    Example:
        >>> unknown("preset", "cpuu", ["smoke", "cpu"])
        "unknown preset 'cpuu'; nearest: cpu"
    """
    known = list(known)
    # A name given without its folder is as near as one with a typing mistake.
    tails = {name.rpartition("/")[2]: name for name in known}
    spelled = {name.lower(): tails.get(name, name) for name in (*tails, *known)}
    near = difflib.get_close_matches(given.lower(), spelled, n=1, cutoff=0.5)
    if not near and len(known) > _MOST_NAMES:
        near = difflib.get_close_matches(given.lower(), spelled, n=3, cutoff=0.0)
    if near:
        return f"unknown {what} {given!r}; nearest: {', '.join(dict.fromkeys(spelled[name] for name in near))}"
    return f"unknown {what} {given!r}; there is: {', '.join(known) or 'none'}"


def discover(package: Path = PACKAGE) -> dict[str, Path]:
    """Ids and files of all results of the papers, without importing any.

    Args:
        package: folder of the `experiments` package.

    Returns:
        id -> file, sorted by id.

    Example:
        >>> all("/" in id for id in discover())
        True
    """
    files = (path for path in sorted(package.glob("*/*.py")) if path.parent.name not in NOT_PAPERS)
    return {f"{path.parent.name}/{path.stem}": path for path in files if _is_result_file(path)}


def load_id(id: str) -> ResultFile:
    """Import one result of the papers.

    Args:
        id: `<paper>/<name>`.

    Returns:
        The result file.

    Raises:
        UserError: if there is none, or it does not keep the contract.
    """
    if id not in (known := discover()):
        raise UserError(unknown("result", id, known))
    name = f"experiments.{id.replace('/', '.')}"
    return _checked(_import(known[id], lambda: importlib.import_module(name)), id, target=id)


def load_path(path: str | Path) -> ResultFile:
    """Import a result file by its path; modules beside it can be imported by it.

    Args:
        path: of the file.

    Returns:
        The result file, whose id is the stem of the path unless the file belongs to a paper.

    Raises:
        UserError: if there is no such file, or it does not keep the contract.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise UserError(f"no result file {path}")
    for id, file in discover().items():
        if file == path:
            return load_id(id)
    if not re.fullmatch(r"[A-Za-z_]\w*", path.stem):
        raise UserError(
            f"{path.name}: a result file is named like a Python module, with letters, digits and underscores"
        )
    return _checked(_import(path, lambda: _import_outside(path)), path.stem, target=path.name)


def select(target: str) -> list[ResultFile]:
    """Results that a word of the command line names.

    Args:
        target: an id, a paper, `headline`, `all`, or the path of a result file.

    Returns:
        One or more result files.

    Raises:
        UserError: if it names none.
    """
    known = discover()
    papers = sorted({id.partition("/")[0] for id in known})
    if target in known:
        return [load_id(target)]
    if target in papers:
        return [load_id(id) for id in known if id.startswith(f"{target}/")]
    if target in ("all", "headline"):
        results = [load_id(id) for id in known]
        return [result for result in results if target == "all" or result.about.headline]
    if target.endswith(".py") or Path(target).is_file():
        return [load_path(target)]
    raise UserError(unknown("result", target, [*known, *papers]))


def _is_result_file(path: Path) -> bool:
    """Whether a file assigns ABOUT and PRESETS at its top level."""
    return _defines_result(path, path.stat().st_mtime_ns)


@functools.cache
def _defines_result(path: Path, changed: int) -> bool:
    """The same, read once for each change of the file: every result that is loaded looks through all files."""
    del changed
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return "ABOUT" in path.read_text(encoding="utf-8", errors="replace")  # then importing it tells what is wrong
    names = set()
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {"ABOUT", "PRESETS"} <= names


def _import(path: Path, load: Callable[[], ModuleType]) -> ModuleType:
    """Import a result file; whatever goes wrong is told in one line."""
    try:
        return load()
    except Exception as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
        raise UserError(f"{path.name} cannot be imported: {line}{type(error).__name__}: {error}") from error


class _AsItIs(SourceFileLoader):
    """Python's cached bytecode would be taken for a file of the same size that was changed within the same second."""

    def get_code(self, fullname: str) -> CodeType:
        """Compiled from the text, each time."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _import_outside(path: Path) -> ModuleType:
    """Import a file under its stem, so that worker processes can import it under the same name."""
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: a file there hides no installed package
    loaded = sys.modules.get(path.stem)
    name = path.stem if loaded is None or getattr(loaded, "__file__", None) == str(path) else f"{path.stem}_result_file"
    spec = importlib.util.spec_from_file_location(name, path, loader=_AsItIs(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _checked(module: ModuleType, id: str, target: str) -> ResultFile:
    """Hold a module to the contract of a result file."""
    for problem in _problems(module):
        raise UserError(f"{Path(str(module.__file__)).name} is not a result file: {problem}")
    title = str(module.__doc__).strip().splitlines()[0]
    return ResultFile(id, title, module.ABOUT, module.PRESETS, module.CLAIMS, module.run, module.plot, target)


def _problems(module: ModuleType) -> Iterable[str]:
    """What a module lacks to be a result file, first things first."""
    if not (module.__doc__ or "").strip():
        yield "it has no docstring"
    kinds = {"ABOUT": About, "PRESETS": dict, "CLAIMS": tuple, "Config": type}
    for name, kind in kinds.items():
        if not isinstance(getattr(module, name, None), kind):
            yield f"it must define {name}, {'a class' if kind is type else f'of type {kind.__name__}'}"
    for name in ("run", "plot"):
        if not callable(getattr(module, name, None)):
            yield f"it must define the function {name}"
    own = vars(module.Config).get(
        "__dataclass_params__"
    )  # not inherited: without its own decorator it has no new field
    if not (issubclass(module.Config, Config) and own is not None and own.frozen):
        yield "Config must be a frozen dataclass that inherits experiments.results.Config"
    yield from _preset_problems(module)
    if not all(isinstance(claim, Claim) for claim in module.CLAIMS):
        yield "CLAIMS must hold experiments.results.Claim"
    ids = [claim.id for claim in module.CLAIMS]
    if len(set(ids)) != len(ids):
        yield "CLAIMS repeats an id"


def _preset_problems(module: ModuleType) -> Iterable[str]:
    """What is wrong with the presets of a module."""
    if not module.PRESETS:
        yield "PRESETS is empty"
    for name, config in module.PRESETS.items():
        if name not in PRESET_NAMES:
            yield unknown("preset", name, PRESET_NAMES)
        if type(config) is not module.Config or not dataclasses.is_dataclass(config):
            yield f"PRESETS[{name!r}] must be a Config of this file"
        check_seeds(config.seeds)  # a Config may have a __post_init__ that forgets the one it inherits
    if set(module.ABOUT.minutes) != set(module.PRESETS):
        yield f"ABOUT.minutes must name the presets {', '.join(module.PRESETS)}"
