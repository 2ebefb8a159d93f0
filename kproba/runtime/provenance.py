"""Fingerprints of inputs, and the versions and commit that wrote an artifact."""

import hashlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from kproba.runtime.package import PACKAGE


def file_digest(path: str | Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal.

    Raises:
        OSError: It cannot be read; the message names it.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Expected the file {path}, but it does not exist. Create it again, or "
            f"correct the path."
        ) from None
    except OSError as error:
        raise OSError(
            f"Expected to read {path}, but: {error.strerror}. Check its permissions "
            f"and its disk."
        ) from error


def fingerprint(*parts: Any) -> str:
    """SHA-256 over JSON-able values and the content of files given as `Path`.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            digest.update(bytes.fromhex(file_digest(part)))
        else:
            text = json.dumps(part, sort_keys=True)
            digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def provenance() -> dict[str, Any]:
    """Versions and commit that made an artifact.

    It contains no times, so that equal inputs result in equal files.
    """
    import torch
    import torchvision

    from kproba import __version__

    return {
        "kproba": __version__,
        "commit": package_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.machine(),
    }


def package_commit() -> str | None:
    """The git commit of the package, None outside a repository.

    Ends in "+changes" if any file of the package differs from that commit.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(*words: str) -> str:
    """Output of git, run in the folder of the package."""
    done = subprocess.run(
        ["git", *words], cwd=PACKAGE, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
