"""Time spent on compiling: programs that outlive the process, so that a run that is continued does not compile again,
and programs that are hardly optimised, for runs that are over before that would pay.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_FOLDER = "JAX_COMPILATION_CACHE_DIR"
# What decides which machine code a processor runs; XLA's programs for one are not valid on another.
_PROCESSOR = ("vendor_id", "model name", "flags", "CPU part", "Features")


def keep_compiled_programs() -> None:
    """Let JAX keep what it compiles in `default_folder`, unless the environment says where or not to.

    To be called before JAX is imported, which reads these settings from the environment; does nothing later, or where
    the folder cannot be written.
    """
    if "jax" in sys.modules or _FOLDER in os.environ:
        return
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower() in ("0", "false", "f", "no", "n", "off"):
        return
    folder = default_folder(os.environ)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):
        return
    os.environ[_FOLDER] = str(folder)
    # JAX keeps only what took a second to compile; a small run consists of many programs that take less.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")


def compile_quickly() -> None:
    """Let XLA leave out most optimisations, unless the environment says otherwise: nearly all of a smoke run's time.

    To be called before JAX is imported, which reads this setting from the environment; does nothing later.
    """
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")


def default_folder(environment: Mapping[str, str]) -> Path:
    """Folder of the compiled programs of this user on this kind of machine; it can be removed at any time.

    Args:
        environment: of the process; XDG_CACHE_HOME stands for ~/.cache.

    Returns:
        The folder, which need not exist.

    Example:
        >>> default_folder({"XDG_CACHE_HOME": "/caches"}).parent.as_posix()
        '/caches/lightnet-lab/compiled'
    """
    given = environment.get("XDG_CACHE_HOME", "")
    caches = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.cache"))
    return caches / "lightnet-lab" / "compiled" / hashlib.sha256(_machine().encode()).hexdigest()[:12]


def _machine() -> str:
    """Kind of processor, as far as it decides which machine code is valid."""
    try:
        described = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        described = []
    lines = [line for line in described if line.partition(":")[0].strip() in _PROCESSOR]
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *lines])
