"""Reads pictures as tensors."""

import contextlib
from pathlib import Path

import torch
from torchvision import io
from torchvision.transforms.v2 import functional as F

from kproba.data.pictures import decode_picture, open_image, orientation, read_file


def read_image(path: str | Path) -> torch.Tensor:
    """Decode an image file to (3, H, W) uint8 RGB, upright.

    Raises:
        UnreadableError: The file is not a usable image.
    """
    return decode_image(read_file(path))


def decode_image(content: bytes) -> torch.Tensor:
    """Decode the content of an image file to (3, H, W) uint8 RGB, upright.

    torchvision decodes JPEGs of one or three channels: it gives the same pixels as
    Pillow in two thirds of the time. Pillow decodes all other images, and damaged ones.

    Raises:
        UnreadableError: It is not a usable image.
    """
    if content[:2] == b"\xff\xd8":
        image = open_image(content)  # checks the size before anything is decoded
        if orientation(image) == 1:
            with contextlib.suppress(RuntimeError):
                buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                decoded = io.decode_jpeg(buffer, mode=io.ImageReadMode.UNCHANGED)
                if decoded.shape[0] in (1, 3):
                    return decoded.expand(3, -1, -1)
    return F.pil_to_tensor(decode_picture(content))
