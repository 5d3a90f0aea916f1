"""Every colour mode by its pixel values, sizes by theirs."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
from PIL import Image

from hfgen.data import decode as decode_module
from hfgen.data.decode import Layout, WrongSizeError, decode, header


def layout(channels: int = 3, height: int = 4, width: int = 4, **options) -> Layout:
    settings = {"center_crop": True, "interpolation": "bicubic", "resize": False} | options
    return Layout(channels, height, width, **settings)


def cell(image: Image.Image, kind: str = "PNG", **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def decoded(image: Image.Image, channels: int = 3, kind: str = "PNG", **options) -> np.ndarray:
    return decode(cell(image, kind, **options), layout(channels, image.height, image.width))


def flat(colour: tuple[int, ...] | int, mode: str) -> Image.Image:
    return Image.new(mode, (4, 4), colour)


@pytest.mark.parametrize(
    ("image", "kind", "rgb"),
    [
        (flat((10, 20, 30), "RGB"), "PNG", (10, 20, 30)),
        (flat((255, 0, 0, 255), "RGBA"), "PNG", (255, 0, 0)),
        (flat((255, 0, 0, 0), "RGBA"), "PNG", (255, 255, 255)),
        (flat((200, 0, 100, 51), "RGBA"), "PNG", (244, 204, 224)),  # 0.2 c + 0.8 * 255
        (flat((0, 255, 255, 0), "CMYK"), "TIFF", (255, 0, 0)),
        (flat((0, 0, 0, 255), "CMYK"), "TIFF", (0, 0, 0)),
        (flat(77, "L"), "PNG", (77, 77, 77)),
        (flat(1, "1"), "PNG", (255, 255, 255)),
        (flat((100, 0), "LA"), "PNG", (255, 255, 255)),
        (
            flat((12, 34, 56), "RGB").convert("P", palette=Image.Palette.ADAPTIVE),
            "PNG",
            (12, 34, 56),
        ),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_modes_by_value(image, kind, rgb):
    pixels = decoded(image, kind=kind)
    assert pixels.shape == (3, 4, 4) and pixels.dtype == np.uint8
    assert np.abs(pixels.reshape(3, -1).T.astype(int) - np.array(rgb)).max() <= 1  # PIL's rounding


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 128, 129, 257], [32768, 40000, 65406, 65535]], dtype=np.uint16)
    pixels = decoded(Image.fromarray(values), channels=1)[0]
    assert pixels.tolist() == np.round(values / 257).astype(int).tolist()
    assert header(cell(Image.fromarray(values))).channels == 1


def test_a_transparent_palette_colour_becomes_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 99, 199])
    image.putpixel((0, 0), 0)
    pixels = decoded(image, transparency=0)
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, 1, 1].tolist() == [9, 99, 199]


def test_animated_images_give_their_first_frame_and_say_so_once(caplog, monkeypatch):
    monkeypatch.setattr(decode_module, "_said", set())
    frames = [flat((250, 10, 10), "RGB"), flat((10, 10, 250), "RGB")]
    movie = cell(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            red, _, blue = decode(movie, layout())
            assert red.min() > 200 and blue.max() < 50
    assert [record.message for record in caplog.records] == [
        "animated images are in the data set: the first frame of each is used"
    ]


def test_grey_from_colour_is_luma():
    """ITU-R 601: L = 0.299 R + 0.587 G + 0.114 B."""
    assert abs(int(decoded(flat((200, 100, 50), "RGB"), channels=1)[0, 0, 0]) - 124.2) <= 1


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="no known range"):
        decoded(Image.fromarray(np.ones((4, 4), np.float32)), channels=1, kind="TIFF")


def test_values_beyond_sixteen_bits_are_refused():
    with pytest.raises(ValueError, match="beyond 16 bits"):
        decoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), channels=1, kind="TIFF")


def test_exif_orientation_is_obeyed():
    """Orientation 6: the camera was turned, so the first row of the file is the right column."""
    image = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4) * 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = cell(image, exif=exif)
    assert (header(turned).height, header(turned).width) == (4, 2)
    pixels = decode(turned, layout(1, 4, 2))[0]
    assert pixels[:, 1].tolist() == [0, 30, 60, 90]
    assert pixels[:, 0].tolist() == [120, 150, 180, 210]


def test_resize_cuts_the_middle_out_or_squashes():
    """Thirds in red, green and blue: the middle cut is green, the squashed image has them all."""
    stripes = np.zeros((8, 24, 3), np.uint8)
    for i in range(3):
        stripes[:, 8 * i : 8 * i + 8, i] = 255
    image = cell(Image.fromarray(stripes))
    cut = decode(image, layout(3, 4, 4, resize=True))
    assert cut[1].min() > 230 and cut[0].max() < 25 and cut[2].max() < 25  # bicubic blends edges
    squashed = decode(image, layout(3, 6, 6, resize=True, center_crop=False))
    assert squashed[0, :, 0].min() > 200 and squashed[2, :, 5].min() > 200


@pytest.mark.parametrize("name", ["bicubic", "lanczos", "bilinear"])
def test_interpolation_is_pils(name):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    expected = image.resize((5, 5), Image.Resampling[name.upper()])
    pixels = decode(cell(image), layout(3, 5, 5, resize=True, interpolation=name))
    assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(expected))


def test_another_size_is_an_error_where_none_was_asked_for():
    with pytest.raises(WrongSizeError, match="5x4"):
        decode(cell(Image.new("RGB", (5, 4))), layout())
