"""Writing and reading artifacts: whole or not at all, no pickle, with provenance."""

import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from kproba.distributed import Process


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary file name beside `path` that takes its place when the block ends.

    The final name never holds half a file: the content is flushed to disk first and
    renamed after. On an error the temporary file is removed; one that a killed process
    left is overwritten by the next.

    Raises:
        FullDiskError: No space is left; names the file.
        OSError: The folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _full_disk_named(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # libraries make private files
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(
    path: str | Path, process: "Process | None" = None
) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends.

    Args:
        path: The folder, replaced.
        process: This one of several that fill the folder together; the first makes it
            and gives it its name when all are done. None: it is alone.

    Raises:
        FullDiskError: No space is left; names the folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    alone = process is None or process.first
    if alone:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    if process is not None:
        process.wait()
    try:
        with _full_disk_named(path):
            yield temporary
        if process is not None:
            process.wait()
        if alone:
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
    finally:
        if alone:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    """The permissions that new files do not get."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    """Turn what libraries raise on a full disk into one message."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        else:  # torch and safetensors raise their own errors, with or without a reason
            full = "No space left" in str(error)
            full = full or shutil.disk_usage(path.parent).free < 2**20
        if not full or isinstance(error, FullDiskError):
            raise
        raise FullDiskError(
            errno.ENOSPC,
            f"The disk is full: {path} could not be written. What was there before is "
            f"kept. Free some space, or raise the quota, and run again",
        ) from error


class FullDiskError(OSError):
    """There is no space left for an artifact."""

    def __str__(self) -> str:
        return str(self.strerror)


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


def write_label_image(
    path: str | Path, labels: np.ndarray, palette: Sequence[int] | None = None
) -> None:
    """Write labels (H, W) uint8 as a palette PNG, by default with `label_palette`."""
    image = Image.fromarray(labels.astype(np.uint8, copy=False), mode=None).convert("L")
    image.putpalette(label_palette() if palette is None else palette)
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
