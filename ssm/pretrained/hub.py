"""The folder of a checkpoint: on this machine, or fetched from Hugging Face's hub."""

import re
from pathlib import Path

from lightnet.backbone.files import CONFIG, INDEX

# Neither pickles nor programs.
FETCHED = [CONFIG, INDEX, "model*.safetensors", "tokenizer.json"]
ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def folder_of(path: str | Path, revision: str | None = None) -> Path:
    """The folder that a path or the id of a repository means.

    Args:
        path: folder with config.json, or "owner/name".
        revision: of the repository.

    Returns:
        The folder; a repository's is in the cache of `huggingface_hub`.

    Raises:
        ValueError: there is neither, or the repository cannot be fetched.
    """
    folder = Path(path)
    if (folder / CONFIG).is_file():
        return folder
    if folder.exists() or not isinstance(path, str) or not ID.fullmatch(path):
        raise ValueError(
            f"path: got {str(path)!r}, expected a folder with {CONFIG} or the id of a repository, owner/name"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"path: there is no folder {path!r}, and repositories need huggingface_hub: pip install huggingface_hub"
        ) from None
    try:
        fetched = Path(snapshot_download(path, revision=revision, allow_patterns=FETCHED))
    except Exception as error:  # of the hub, of its client and of several ways to reach it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"path: there is no folder {path!r}, and no repository from the hub: {reason}") from None
    if not (fetched / CONFIG).is_file():
        raise ValueError(f"path: the repository {path!r} has no {CONFIG}")
    return fetched
