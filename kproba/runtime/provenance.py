"""TODO runtime.provenance."""

import hashlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any


def fingerprint(*parts: Any) -> str:
    """SHA-256 over JSON-able values and the content of files given as `Path`."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            text = json.dumps(part, sort_keys=True)
            digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def provenance() -> dict[str, Any]:
    """Versions and commit that made an artifact (no times: same input, same bytes)."""
    import torch
    import torchvision

    from kproba import __version__

    return {
        "kproba": __version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.machine(),
    }


def _git_commit() -> str | None:
    """The package's commit, with "+changes" when its files are not as committed."""
    here = Path(__file__).parents[1]
    try:
        commit = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
