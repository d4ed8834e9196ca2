"""Which exceptions become one line, and which keep their traceback."""

import errno
import json

import pytest

from experiments.errors import UserError, one_line
from experiments.results import check_seeds


def raised(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def test_mistakes_are_one_line():
    assert one_line(UserError("two\n  lines")) == "two lines"
    assert one_line(OSError(errno.EROFS, "Read-only file system", "/a")) == "Read-only file system: /a"
    assert one_line(PermissionError(errno.EACCES, "Permission denied")) == "Permission denied"


def test_what_our_own_checks_refuse_is_one_line():
    assert one_line(raised(check_seeds, ())) == "seeds must name at least one seed, got none"


def test_a_value_error_from_inside_a_library_keeps_its_traceback():
    assert one_line(raised(json.loads, "{")) is None
    assert one_line(raised({}.__getitem__, "x")) is None


OUTSIDE = """
def one_liner(x):
    if x: raise ValueError(f"x: got {x}, expected 0")

def over_lines(x):
    raise ValueError(
        f"x: got {x}, "
        f"expected {len('')}"
    )

def passed_on(x):
    try:
        one_liner(x)
    except ValueError as error:
        raise error

def unequal(x):
    return list(zip([x], [], strict=True))

def literal(x):
    return int(f"{x}a")

def inside_a_raise(x):
    raise ValueError(
        f"x: got {int(str(x) + 'a')}"
    )

def inside_a_library(x):
    import json
    try:
        return json.loads("{")
    except ValueError as error:
        raise error

def unpacked(x):
    first, second = [x]
"""


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("one_liner", "x: got 2, expected 0"),
        ("over_lines", "x: got 2, expected 0"),
        ("passed_on", "x: got 2, expected 0"),
        ("unequal", None),
        ("literal", None),
        ("inside_a_raise", None),
        ("inside_a_library", None),
        ("unpacked", None),
    ],
)
def test_only_a_value_error_that_our_code_raises_itself_is_a_mistake(tmp_path, function, line):
    path = tmp_path / "outside.py"
    path.write_text(OUTSIDE)
    names = {"__name__": "outside"}
    exec(compile(OUTSIDE, str(path), "exec"), names)
    assert one_line(raised(names[function], 2)) == line


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: No space left on device [write]",
        "UNAVAILABLE: Read-only file system",
        "x: Permission denied",
    ],
)
def test_a_refusal_of_the_system_is_found_in_what_libraries_make_of_it(message):
    assert one_line(RuntimeError(f"writing failed\n{message}\nsource locations: ...")) == message
    wrapped = RuntimeError("checkpoint failed")
    wrapped.__cause__ = ValueError(message)
    assert one_line(wrapped) == message
    assert one_line(RuntimeError("something else")) is None
