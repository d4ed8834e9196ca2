"""The program that runs the README's commands finds every block, and refuses to overlook one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIRST = "```bash\ntrue  # first\necho second\n```\n"


def run(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program on a README with this text."""
    (folder / "README.md").write_text(text)
    command = [sys.executable, str(ROOT / ".ci" / "readme_commands.py"), str(folder / "README.md"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_runs_blocks_in_order_and_leaves_out_what_is_marked(tmp_path: Path) -> None:
    left_out = "```python\nexit(1)\n```\n\n<!-- not run in CI: needs a GPU -->\n\n```bash\nexit 3\n```\n"
    done = run(tmp_path, FIRST + left_out + "```bash\necho third \\\n  word\n```\n")
    assert done.returncode == 0, done.stderr
    assert "not run: needs a GPU" in done.stdout
    output = [line for line in done.stdout.splitlines() if not line.startswith("README.md:")]
    assert output == ["second", "third word"]


def test_list_runs_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, FIRST + f"```bash\ntouch '{tmp_path}/made'\n```\n", "--list")
    assert done.returncode == 0
    assert "touch" in done.stdout and not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["exit 3", "(exit 3)\ntrue", "(exit 3) | cat", 'echo "$undefined_name"'])
def test_a_failing_command_fails(tmp_path: Path, text: str) -> None:
    done = run(tmp_path, FIRST + f"```bash\n{text}\n```\n```bash\necho not reached\n```\n")
    assert done.returncode != 0
    assert "error: README.md:6: exit status" in done.stderr
    assert "not reached" not in [line for line in done.stdout.splitlines() if not line.startswith("README.md:")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first 2 commands"),
        ("```bash\ntrue\n```\n", "first 2 commands"),
        ("<!-- not run in CI: slow -->\n" + FIRST, "first 2 commands"),
        ("```bash\ntrue\n```\n<!-- not run in CI: slow -->\n```bash\nfalse\n```\n", "first 2 commands"),
        (FIRST + "```bash\ntrue\n", "line 5 is not closed"),
        (FIRST + "   ```bash\n   false\n   ```\n", "line 5: commands belong"),
        (FIRST + "```sh\nfalse\n```\n", "line 5: commands belong"),
        (FIRST + "```bash\nmake check\n```\n", "line 6 runs all checks"),
    ],
)
def test_refuses_what_would_go_unnoticed(tmp_path: Path, text: str, message: str) -> None:
    done = run(tmp_path, text)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_readme_is_readable_by_it() -> None:
    command = [sys.executable, ".ci/readme_commands.py", "README.md", "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "make reproduce" in done.stdout and "make test" in done.stdout
