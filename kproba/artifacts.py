"""Writing and reading artifacts: whole or not at all, no pickle, with provenance."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary file name beside `path` that takes its place when the block ends.

    The final name never holds half a file: the content is flushed to disk first and
    renamed after. On an error the temporary file is removed; one that a killed process
    left is overwritten by the next.

    Raises:
        OSError: The disk is full or the folder cannot be written; names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write JSON with a stable layout; NaN becomes null."""
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON artifact."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    if isinstance(value, np.integer):
        return int(value)
    return value


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
    here = Path(__file__).parent
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


def label_palette() -> list[int]:
    """The 256-colour palette of label images: VOC's colour map, 255 is cream.

    Entry i spreads the bits of i over the high bits of red, green and blue, as VOC's
    devkit does, so neighbouring indices get clearly different colours.
    """
    palette = []
    for index in range(256):
        red = green = blue = 0
        for bit in range(8):
            red |= ((index >> (3 * bit)) & 1) << (7 - bit)
            green |= ((index >> (3 * bit + 1)) & 1) << (7 - bit)
            blue |= ((index >> (3 * bit + 2)) & 1) << (7 - bit)
        palette += [red, green, blue]
    return palette


def write_label_image(path: str | Path, labels: np.ndarray) -> None:
    """Write labels (H, W) uint8 as a palette PNG."""
    image = Image.fromarray(labels.astype(np.uint8, copy=False), mode=None).convert("L")
    image.putpalette(label_palette())
    image.save(path, format="PNG")


def read_label_image(path: str | Path) -> np.ndarray:
    """Read the label values (H, W) uint8 of a palette or grey PNG.

    Raises:
        WrongModeError: The file is no single-channel 8-bit image.
    """
    with Image.open(path) as image:
        return label_values(image, path)


class WrongModeError(ValueError):
    """An image that holds something else than labels."""


# Pillow stretches grey images of few bits over 0..255; labels want the stored values.
STRETCHED = {"L;2": 85, "L;4": 17}


def label_values(image: Image.Image, path: str | Path = "the mask") -> np.ndarray:
    """Label values (H, W) uint8 of an opened palette or grey image.

    Raises:
        WrongModeError: It has several channels or more than 8 bits; names `path`.
    """
    if image.mode not in ("P", "L", "1"):
        raise WrongModeError(
            f"Expected a palette or grey 8-bit mask, but {path} has mode "
            f"{image.mode}. Save class numbers, not colours."
        )
    tile = getattr(image, "tile", None)  # of image files only, until they are read
    stored = tile[0][3] if tile else ""
    raw = stored[0] if isinstance(stored, tuple) else stored
    return np.array(image, dtype=np.uint8) // STRETCHED.get(str(raw), 1)
