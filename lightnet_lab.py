"""The `lightnet-lab` command: `python -m experiments`, once `experiments` is known to be the package beside this file.

A user's own package named `experiments` that comes earlier on `sys.path` (through `PYTHONPATH`, or the current folder
with `python -m lightnet_lab`) would otherwise be run in its place, with a confusing error.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def hidden_by() -> str | None:
    """What Python would import as `experiments` in place of the package beside this file.

    Returns:
        None if it is ours; otherwise the path of the other one, or "nothing" if there is none.

    Example:
        >>> hidden_by() is None
        True
    """
    ours = Path(__file__).resolve().parent / "experiments" / "__init__.py"
    spec = importlib.util.find_spec("experiments")
    if spec is None:
        return "nothing"
    if spec.origin is not None:
        found = Path(spec.origin)
        return None if found.resolve() == ours else str(found.parent if found.name == "__init__.py" else found)
    return next(iter(spec.submodule_search_locations or ()), "nothing")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of `experiments`, or say in one line what hides it.

    Args:
        arguments: the words after the command's name; `sys.argv[1:]` if None.

    Returns:
        The exit status: 2 if another `experiments` hides ours.
    """
    other = hidden_by()
    if other is not None:
        ours = Path(__file__).resolve().parent
        hint = "unset PYTHONPATH" if os.environ.get("PYTHONPATH") else "run from another folder"
        print(
            f"error: {other} hides the package `experiments` of lightnet-lab in {ours}: rename it, or {hint}",
            file=sys.stderr,
        )
        return 2
    from experiments.__main__ import main as run_command_line

    return run_command_line(arguments)


if __name__ == "__main__":
    sys.exit(main())
