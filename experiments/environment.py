"""What a run ran on: versions, commit and devices. No host name and no path, because results are committed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTIONS = (
    "lightnet-lab",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scipy",
    "scikit-learn",
    "tokenizers",
    "tensorflow-datasets",
    "matplotlib",
    "tyro",
)


def describe() -> dict[str, Any]:
    """Versions, commit and devices of this process.

    Returns:
        `python`, `platform`, `cpus`, `versions`, `commit`, `dirty` and `devices`.

    Example:
        >>> sorted(describe())
        ['commit', 'cpus', 'devices', 'dirty', 'platform', 'python', 'versions']
    """
    commit, dirty = git_state()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "versions": versions(),
        "commit": commit,
        "dirty": dirty,
        "devices": devices(),
    }


def versions() -> dict[str, str]:
    """Distribution -> version, of those that are installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def devices() -> list[str]:
    """Kinds of the devices that JAX uses, empty when JAX was not loaded.

    Loading it here would start a backend before the result has chosen its settings, and costs a second that many
    commands do not need.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return []
    try:
        return [f"{device.platform}: {device.device_kind}" for device in jax.devices()]
    except RuntimeError as error:
        return [f"unavailable: {error}"]


def git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout and whether its code differs from that commit; None where there is no checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", "*.py", "*.toml")
    return commit or None, None if changed is None else bool(changed)


def code_version(commit: str | None, dirty: bool | None) -> str:
    """The code that something ran with, in words.

    Args:
        commit: its hash, None where there was no checkout.
        dirty: whether the code differed from that commit.

    Returns:
        The words.

    Example:
        >>> code_version("0123456789abcdef", True), code_version(None, None)
        ('commit 0123456789ab with changes', 'commit unknown')
    """
    return f"commit {(commit or 'unknown')[:12]}{' with changes' if dirty else ''}"


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, None if it failed or git is absent."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
