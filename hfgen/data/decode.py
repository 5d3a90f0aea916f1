"""One image file -> uint8 pixels [C, H, W], whatever its format and colour mode."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
UNREADABLE = (
    OSError,
    SyntaxError,  # how PIL reports a broken PNG chunk
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What PIL raises on files that are not, or not quite, images."""

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
}
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels are decoded."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Layout:
    """What every decoded image shall be.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        height, width: in pixels.
        center_crop: resize the shorter side, then cut the middle out; otherwise squash.
        interpolation: bicubic, lanczos or bilinear.
        resize: whether images of another size are resized (true) or an error (false).
    """

    channels: int
    height: int
    width: int
    center_crop: bool
    interpolation: str
    resize: bool

    def pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 [channels, height, width]; ValueError where the size or mode does not allow it."""
        mode = "L" if self.channels == 1 else "RGB"
        fitted = np.asarray(self._fit(plain(image).convert(mode)))
        return fitted.reshape(self.height, self.width, self.channels).transpose(2, 0, 1)

    def _fit(self, image: Image.Image) -> Image.Image:
        size = (self.width, self.height)
        if image.size == size:
            return image
        if not self.resize:
            raise WrongSizeError(image.height, image.width)
        method = _RESAMPLING[self.interpolation]
        if self.center_crop:
            return ImageOps.fit(image, size, method)
        return image.resize(size, method)


class WrongSizeError(Exception):
    """An image of another size than the rest, where none was asked for."""

    def __init__(self, height: int, width: int):
        super().__init__(f"{width}x{height}")


def open_image(cell: Mapping) -> Image.Image:
    """Open an undecoded cell of an image column, ``{"bytes", "path"}``; pixels are not read yet."""
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("no image")
    if cell["bytes"] is not None:
        return Image.open(io.BytesIO(cell["bytes"]))
    if "://" in cell["path"]:
        from datasets.utils.file_utils import xopen

        with xopen(cell["path"], "rb") as file:
            return Image.open(io.BytesIO(file.read()))  # type: ignore[arg-type]
    return Image.open(cell["path"])


def header(cell: Mapping) -> Header:
    """Size and number of channels, from the file's header alone."""
    with open_image(cell) as image:
        width, height = image.size
        if image.getexif().get(0x0112) in _SIDEWAYS:
            width, height = height, width
        return Header(1 if image.mode in GREY_MODES else 3, height, width)


def decode(cell: Mapping, layout: Layout) -> np.ndarray:
    """uint8 [C, H, W]; one of ``UNREADABLE`` where the file is no whole image."""
    with open_image(cell) as image:
        if getattr(image, "is_animated", False):  # an attribute of multi-frame formats only
            _say_once("animated images are in the data set: the first frame of each is used")
        image.load()
        return layout.pixels(ImageOps.exif_transpose(image))


def plain(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB: 16 bits scaled to 8, transparency composited on white."""
    if image.mode in DEEP_MODES:
        return _scale_16_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        grey = image.mode in GREY_MODES
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    return image.convert("L" if image.mode in GREY_MODES else "RGB")


def _scale_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("grey values beyond 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 / 257 = 255


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message)
