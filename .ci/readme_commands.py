"""Run the commands of a README as written: each ```bash block in a shell of its own that stops at the first failure.

A block directly after the line `<!-- not run in CI: reason -->` is left out. The first two commands never are.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SKIP = re.compile(r"<!-- not run in CI: (?P<reason>.+) -->")
OTHER_FENCE = re.compile(r"\s+```bash|\s*```(sh|shell|console|zsh)\b")
RUNS_ITSELF = re.compile(r"\bmake check\b|\.ci/run\b")
NEVER_SKIPPED = 2
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Block:
    """One ```bash block: its first line in the file (from 1), its text, and why it is left out, if it is."""

    line: int
    text: str
    skipped: str | None

    @property
    def commands(self) -> list[str]:
        """Its lines that are neither blank nor comments, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def blocks(markdown: str) -> list[Block]:
    """All ```bash blocks of a Markdown text, in order.

    Raises:
        ValueError: if a block is not closed, would go unnoticed or runs this program again, or if one of the first two
            commands is left out.
    """
    found: list[Block] = []
    lines = markdown.splitlines()
    start: int | None = None
    is_bash = False
    for number, line in enumerate(lines):
        if OTHER_FENCE.match(line):
            raise ValueError(f"line {number + 1}: commands belong in a ```bash block that is not indented")
        if start is None and line.startswith("```"):
            start, is_bash = number, line.strip() == "```bash"
        elif start is not None and line.strip() == "```":
            if is_bash:
                before = next((text for text in reversed(lines[:start]) if text.strip()), "")
                skip = SKIP.fullmatch(before.strip())
                found.append(Block(start + 2, "\n".join(lines[start + 1 : number]), skip["reason"] if skip else None))
            start = None
    if start is not None:
        raise ValueError(f"the block that starts in line {start + 1} is not closed")
    for block in found:
        if not block.skipped and RUNS_ITSELF.search(block.text):
            raise ValueError(f"the block in line {block.line} runs all checks, this one too; mark it as not run in CI")
    first = [block for block in found for _ in block.commands][:NEVER_SKIPPED]
    if len(first) < NEVER_SKIPPED or any(block.skipped for block in first):
        raise ValueError(f"its first {NEVER_SKIPPED} commands must be there and must be run")
    return found


def run(block: Block) -> int:
    """Exit status of one block, run in the root of the checkout its .venv first on PATH."""
    path = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ["PATH"]])
    shell = ["bash", "-euo", "pipefail", "-c", block.text]
    return subprocess.run(
        shell, cwd=ROOT, env=os.environ | {"PATH": path}, stdin=subprocess.DEVNULL, check=False
    ).returncode


def main() -> int:
    """Run the blocks, or with --list print them; the exit status is that of the first block that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("readme", type=Path)
    parser.add_argument("--list", action="store_true", help="print the commands, run none")
    options = parser.parse_args()
    try:
        found = blocks(options.readme.read_text(encoding="utf-8"))
    except ValueError as error:
        print(f"error: {options.readme.name}: {error}", file=sys.stderr)
        return 2
    for block in found:
        where = f"{options.readme.name}:{block.line}"
        print(f"{where}: " + (f"not run: {block.skipped}" if block.skipped else "; ".join(block.commands)), flush=True)
        if block.skipped or options.list:
            continue
        start = time.monotonic()
        if status := run(block):
            print(f"error: {where}: exit status {status}", file=sys.stderr)
            return status
        print(f"{where}: ok in {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
