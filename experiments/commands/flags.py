"""Command-line flags from dataclasses: tyro reads them, and each of its refusals becomes one line.

Only tyro's public functions are used. Flag names are checked here first, because tyro's own list of near misses takes
a screen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from experiments.errors import UserError
from experiments.files import as_path
from experiments.registry import unknown

_LONGEST_RANGE = 10_000
Dataclass = TypeVar("Dataclass")

RunsDir = Annotated[
    Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: LIGHTNET_RUNS, else runs)")
]


def parse(
    default: Dataclass, prog: str, arguments: Sequence[str], description: str | None = None
) -> tuple[Dataclass, list[str]]:
    """Read flags into a copy of a dataclass instance.

    Args:
        default: a dataclass instance, whose values are the defaults.
        prog: what usage lines call the command.
        arguments: words of the command line.
        description: first lines of `--help`, instead of the dataclass's docstring.

    Returns:
        The new instance, and the words that are not flags, in order.

    Raises:
        UserError: if a flag does not exist or its value is refused.
        SystemExit: with status 0 after `--help`.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Size:
        ...     width: int = 1
        >>> parse(Size(), "demo", ["word", "--width", "3"])
        (Size(width=3), ['word'])
    """
    arguments = list(arguments)
    if not {"-h", "--help"} & set(arguments):
        _check_names(default, arguments)
        with _one_line_refusals(default):
            return _tyro(default, prog, arguments, description)
    _print_help(default, prog, description)
    raise SystemExit(0)


def parse_known(default: Dataclass, prog: str, arguments: Sequence[str]) -> tuple[Dataclass, list[str]]:
    """As `parse`, but flags that the dataclass lacks come back among the other words, and `--help` is ignored.

    Args:
        default: a dataclass instance, whose values are the defaults.
        prog: what usage lines call the command.
        arguments: words of the command line.

    Returns:
        The new instance, and all words that were not used.

    Raises:
        UserError: if the value of a flag is refused.
    """
    words = [word for word in arguments if word not in ("-h", "--help")]
    with _one_line_refusals(default):
        return _tyro(default, prog, words, None)


def flag_names(default: Any, prefix: str = "") -> list[str]:
    """Names of the flags that a dataclass instance gives.

    Args:
        default: a dataclass instance; parts that are dataclasses themselves give dotted names.
        prefix: dotted name of the part that it is.

    Returns:
        The names, without the leading dashes.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Size:
        ...     width: int = 1
        ...     square: bool = False
        >>> flag_names(Size())
        ['width', 'square', 'no_square']
    """
    names = []
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            names += flag_names(value, f"{prefix}{field.name}.")
        else:
            names.append(f"{prefix}{field.name}")
            names += [f"{prefix}no_{field.name}"] if isinstance(value, bool) else []
    return names


def exactly(words: Sequence[str], *names: str) -> list[str]:
    """The words of a command line that are not flags, when there must be so many.

    Args:
        words: what was given.
        names: what each stands for.

    Returns:
        The words.

    Raises:
        UserError: if there are more or fewer.

    Example:
        >>> exactly(["a"], "RUN")
        ['a']
    """
    if len(words) < len(names):
        raise UserError(f"{names[len(words)]} is missing; --help shows what to give")
    if len(words) > len(names):
        raise UserError(f"unexpected argument {words[len(names)]!r}")
    return list(words)


def _tyro(default: Dataclass, prog: str, arguments: list[str], description: str | None) -> tuple[Dataclass, list[str]]:
    """One call of tyro."""
    return tyro.cli(
        type(default),
        default=default,
        prog=prog,
        args=arguments,
        description=description,
        use_underscores=True,
        return_unknown_args=True,
        registry=_registry(),
        config=(tyro.conf.AvoidSubcommands,),  # where a field may be one of several dataclasses, that of the default
    )


def _registry() -> ConstructorRegistry:
    """What we add to tyro: lists of integers may be written `0:5` or `0,3,4` as well as `0 3 4`; no path is empty."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type not in (Path, Path | None):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: _path(words[0]),
            is_instance=lambda value: isinstance(value, PurePath | None),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def integers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if (get_origin(info.type), get_args(info.type)) != (tuple, (int, ...)):  # also typing.Tuple[int, ...]
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="0:5|0,3,4",
            instance_from_str=lambda words: tuple(number for word in words for number in _integers(word)),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(item, int) for item in value),
            str_from_instance=lambda value: [str(item) for item in value],
        )

    return registry


def _path(word: str) -> Path:
    """A path or an address; an empty one, as of a shell variable that is not set, would be the current folder."""
    if not word:
        raise ValueError("needs a path, got an empty one")
    try:
        return as_path(word)
    except UserError as error:
        raise ValueError(str(error)) from None


def _integers(word: str) -> list[int]:
    """Integers of one word."""
    if match := re.fullmatch(r"(-?\d+):(-?\d+)", word):
        first, end = int(match[1]), int(match[2])
        if end - first > _LONGEST_RANGE:
            raise ValueError(f"a range names at most {_LONGEST_RANGE} integers, got {word}")
        return list(range(first, end))
    try:
        return [int(part) for part in word.split(",")]
    except ValueError:
        raise ValueError(f"integers are written 0:5, 0,3,4 or 0 3 4, got {word!r}") from None


def _check_names(default: Any, arguments: Sequence[str]) -> None:
    """Refuse the first flag that does not exist."""
    names = flag_names(default)
    for word in arguments:
        name = word[2:].partition("=")[0]
        if word.startswith("--") and name.replace("-", "_") not in names:
            raise UserError(unknown("flag", f"--{name}", [f"--{known}" for known in names]))


@contextlib.contextmanager
def _one_line_refusals(default: Any) -> Iterator[None]:
    """Turn the box that tyro prints before it exits into a UserError."""
    box = io.StringIO()
    try:
        with _width(100_000), contextlib.redirect_stderr(box):  # so wide that no message is broken over lines
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        rows = [line.strip(" │|") for line in box.getvalue().splitlines()]
        told = [row for row in rows if any(map(str.isalnum, row))]  # without the frame: a title, then the message
        raise UserError(_with_flag_name(default, told[1] if len(told) > 1 else "unusable command line")) from None
    sys.stderr.write(box.getvalue())


def _with_flag_name(default: Any, message: str) -> str:
    """A refusal that begins with the flag it is about.

    Example:
        >>> _with_flag_name(None, "Error parsing --size: invalid literal for int() with base 10: 'x'")
        "--size: expected an integer, got 'x'"
    """
    message = re.sub(r"^Error parsing (\S+):", r"\1:", message).removeprefix(f"{type(default).__name__}: ")
    if match := re.match(r"Missing value for argument '(\S+)'\. Expected (\d+) values", message):
        return f"{match[1]}: needs {'a value' if match[2] == '1' else f'{match[2]} values'}"
    if match := re.match(r"--(\S+): Could not find valid parse for arguments: \[(.*)\]", message):
        given = match[2].strip("'").replace("', '", " ")
        return f"--{match[1]}: expected values such as {_shown_default(default, match[1])}, got {given}"
    message = re.sub(r"invalid literal for int\(\) with base 10:", "expected an integer, got", message)
    message = re.sub(r"could not convert string to float:", "expected a number, got", message)
    if match := re.match(r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*?),?\)", message):
        return f"{match[2]}: unknown value {match[1]}; there is: {match[3]}"
    return _attributed(default, message)


def _shown_default(default: Any, flag: str) -> str:
    """The words that would give a flag its default, for a list of tuples."""
    value = functools.reduce(getattr, flag.split("."), default)
    return " ".join(str(part) for item in value for part in (item if isinstance(item, tuple) else (item,)))


def _attributed(default: Any, message: str) -> str:
    """The refusal of a dataclass (`config.train: steps: got -1`), beginning with the flag, if it is about one."""
    match = re.match(r"([\w.]+): ([\w.]*\w)(: )?", message)
    if match is None:
        return message
    part, field = match[1], match[2]
    names = flag_names(default)
    if part in names:
        return f"--{message}"
    flags = [name for name in names if name.startswith(f"{part}.") and name.endswith(f".{field}")]
    if not flags:
        return message.removeprefix(f"{part}: ")
    return f"--{min(flags, key=len)}: {message[match.end() if match[3] else match.start(2) :]}"


def _print_help(default: Any, prog: str, description: str | None) -> None:
    """Print tyro's help, with the lines around its boxes filled to 100 columns, which it leaves as they are."""
    page = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding or "utf-8")
    with _width(100), contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        _tyro(default, prog, ["--help"], description or inspect.getdoc(default))
    page.seek(0)
    for line in page.read().splitlines():
        print(line if len(line) <= 100 else textwrap.fill(line, 100, break_on_hyphens=False))


@contextlib.contextmanager
def _width(columns: int) -> Iterator[None]:
    """Let tyro write as wide as that; it reads the width from the environment."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
