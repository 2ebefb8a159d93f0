"""Opens pictures with Pillow: upright, as RGB, and with limits on their size.

A photograph may be stored turned, with an EXIF orientation. All functions here return
upright images. So index, training, bank, evaluation and prediction use the same
picture.
"""

import contextlib
import io
import stat
import warnings
from pathlib import Path

from PIL import ExifTags, Image

# More pixels are refused: one such image needs about 2 GiB for its own copies.
MOST_PIXELS = 2**27
MOST_BYTES = 2**31  # of an image file
PROGRAMS = ("EPS",)  # formats that Pillow decodes by running another program
# Pillow warns of images that it then reads; `MOST_PIXELS` is the limit here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# First letters of Pillow's modes of 16 and 32 bits. Converted to RGB, such images would
# be white.
DEEP_MODES = ("I", "F")


class UnreadableError(OSError):
    """A file is not a usable image; the message gives the reason, without the path."""


def read_file(path: str | Path) -> bytes:
    """The content of a regular file.

    Raises:
        UnreadableError: As `check_file`, or the file must not be read.
    """
    check_file(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error


def check_file(path: str | Path) -> None:
    """Check that a path is a regular file of a reasonable size.

    Raises:
        UnreadableError: The file is missing, a folder, FIFO or device, empty, or larger
            than `MOST_BYTES`. The file is not opened, because that could block.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError(f"is not a file, but {_describe(status.st_mode)}")
        if status.st_size > MOST_BYTES:
            raise UnreadableError(
                f"has {status.st_size / 2**30:.1f} GiB, but the limit is "
                f"{MOST_BYTES // 2**30} GiB"
            )
    except UnreadableError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            raise UnreadableError("is a link to a file that does not exist") from error
        raise UnreadableError(getattr(error, "strerror", None) or str(error)) from error
    if not status.st_size:
        raise UnreadableError("the file is empty")


def _describe(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def open_image(source: bytes | Path) -> Image.Image:
    """An image whose pixels are not yet decoded, as stored.

    Args:
        source: The content of the file, or a file that `check_file` accepts.

    Raises:
        UnreadableError: The format is not known, the header is damaged, or the image
            has more than `MOST_PIXELS`.
    """
    with unreadable_on_error():
        try:
            image = Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source
            )
        except Image.DecompressionBombError as error:  # Pillow's own, higher limit
            raise UnreadableError(
                f"has more than {MOST_PIXELS / 1e6:.0f} million pixels, which is the "
                f"limit; scale it down or cut it"
            ) from error
        width, height = image.size
    if image.format in PROGRAMS:
        raise UnreadableError(f"has the format {image.format}, which is not supported")
    if width * height > MOST_PIXELS:
        raise UnreadableError(
            f"has {width}x{height} pixels, but the limit is {MOST_PIXELS / 1e6:.0f} "
            f"million; scale it down or cut it"
        )
    if not width * height:
        raise UnreadableError(f"has {width}x{height} pixels")
    return image


class _Unreadable(contextlib.ContextDecorator):
    """Turns every exception of a decoder into an `UnreadableError`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, UnreadableError) or not isinstance(error, Exception):
            return
        text = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            text = "does not fit into memory"
        elif "cannot identify" in text:
            text = "no known image format"
        elif isinstance(error, OSError) and error.strerror:
            text = error.strerror
        raise UnreadableError(text) from error


def unreadable_on_error() -> contextlib.AbstractContextManager[None]:
    """A block in which every exception of a decoder becomes an `UnreadableError`.

    Pillow's plug-ins raise nearly every built-in exception for damaged files.
    """
    return _Unreadable()


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 for none or an odd value."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value) if int(value) in range(1, 9) else 1
    except Exception:  # damaged EXIF data raise nearly anything
        return 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image when it is upright."""
    width, height = image.size
    if orientation(image) >= 5 and image.format != "TIFF":
        return height, width
    return width, height


def scaled_size(size: tuple[int, int], long_side: int | None) -> tuple[int, int]:
    """Width and height at which a picture is used: as they are, or scaled down."""
    longest = max(size)
    if long_side is None or longest <= long_side:
        return size
    width, height = (max(1, round(side * long_side / longest)) for side in size)
    return width, height


def turn_upright(image: Image.Image) -> Image.Image:
    """Decode an opened image and turn it upright by its EXIF orientation.

    Raises:
        UnreadableError: It cannot be decoded.
    """
    turned = image.format != "TIFF" and orientation(image) != 1
    with unreadable_on_error():
        image.load()  # Pillow turns TIFFs here
        return turn(image, orientation(image)) if turned else image


def turn(image: Image.Image, how: int) -> Image.Image:
    """Turn a decoded image by an EXIF orientation, 1 to 8."""
    return image if how == 1 else image.transpose(_TRANSPOSED[how])


_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(path: str | Path) -> Image.Image:
    """Decode an image file to an upright RGB image.

    Raises:
        UnreadableError: The file is not a usable image.
    """
    return decode_picture(read_file(path))


def decode_picture(content: bytes) -> Image.Image:
    """Decode the content of an image file to an upright RGB image.

    Raises:
        UnreadableError: It is not a usable image, or has more than 8 bits per
            channel.
    """
    image = open_image(content)
    if image.mode.startswith(DEEP_MODES):
        raise UnreadableError(f"has mode {image.mode}; save it with 8 bits per channel")
    with unreadable_on_error():
        return turn_upright(image).convert("RGB")
