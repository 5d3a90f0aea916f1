"""Rows with undecoded images -> the folder that ``CachedSource`` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hfgen.data import cache
from hfgen.data.captions import caption_of
from hfgen.data.decode import UNREADABLE, Layout, WrongSizeError, decode
from hfgen.data.plan import CHUNK, Plan
from hfgen.data.tables import Table
from hfgen.errors import HfgenError
from hfgen.rng import Rng


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be decoded, and why."""

    why: str


def build(
    table: Table,
    plan: Plan,
    folder: Path,
    *,
    name: str,
    static_seed: int | None,
    template: str | None = None,
) -> None:
    """Decode all rows into ``folder``; unreadable ones are left out and named in its ``meta.json``.

    Args:
        table: rows with undecoded images.
        plan: of the training images.
        name: for the progress bar and messages.
        static_seed: binarise pixels once, keyed by this seed and the number of the row; None
            leaves them grey.
        template: what captions are made of (``data.caption_template``).
    Raises:
        HfgenError: an image of another size where none was asked for; a label outside the classes.
    """
    with (folder / cache.IMAGES).open("wb") as out:
        writer = _Writer(out, plan, table, template)
        for start, rows, images in _decoded(table, plan.layout, name):
            if static_seed is not None:
                images = binarize_once(images, static_seed, start)
            for i, image in enumerate(images):
                row = {column: values[i] for column, values in rows.items()}
                writer.add(row, image, start + i)
    writer.finish(folder)


def _decoded(table: Table, layout: Layout, name: str) -> Iterator[tuple[int, Mapping, list]]:
    """Number of the first row, rows and images of each chunk, decoded by a thread per core."""
    from datasets.utils.tqdm import tqdm

    bar = tqdm(total=table.num_rows, desc=f"Decoding {name}", unit="img", disable=None)
    with ThreadPoolExecutor() as pool, bar:
        start = 0
        for rows in table.rows.iter(batch_size=CHUNK):
            cells = rows[table.columns.image]
            yield start, rows, list(pool.map(lambda cell: try_decode(cell, layout), cells))
            start += len(cells)
            bar.update(len(cells))


def try_decode(cell: Mapping, layout: Layout) -> np.ndarray | Unreadable:
    """uint8 [C, H, W], or why not; HfgenError where only its size is wrong."""
    try:
        return decode(cell, layout)
    except WrongSizeError as error:
        raise HfgenError(
            f"data.resolution: image {place(cell)} is {error}, but others are "
            f"{layout.width}x{layout.height}; set one size for all, e.g. "
            f"data.resolution: {min(layout.width, layout.height)}"
        ) from error
    except UNREADABLE as error:
        return Unreadable(" ".join(str(error).split()) or type(error).__name__)


def binarize_once(images: list, seed: int, start: int) -> list:
    """Pixels 0 or 255, drawn from (seed, row number) with the grey value as probability."""
    readable = [i for i, image in enumerate(images) if not isinstance(image, Unreadable)]
    if not readable:
        return images
    shape = (len(images), *images[readable[0]].shape)
    uniform = Rng(seed, "static binarization", start=start).rand("pixels", shape).numpy()
    drawn = list(images)
    for i in readable:
        drawn[i] = (uniform[i] * 255 < images[i]).astype(np.uint8) * np.uint8(255)
    return drawn


def place(cell: Mapping | None, row: int | None = None) -> str:
    """What a user can find an image by: its path, or else the number of its row."""
    if cell is not None and cell["path"]:
        return str(cell["path"])
    return "without a name" if row is None else f"in row {row}"


class _Writer:
    """Appends rows to the files of a cache."""

    def __init__(self, out: BinaryIO, plan: Plan, table: Table, template: str | None):
        _check_template(template, table)
        self._template = template
        self._has_captions = table.columns.caption is not None or template is not None
        self._out = out
        self._plan = plan
        self._table = table
        self._labels: list[int] = []
        self._captions: list[bytes] = []
        self._corrupt: list[str] = []
        self._count = 0
        self._digest = hashlib.blake2b(digest_size=8)

    def add(self, row: Mapping, image: np.ndarray | Unreadable, number: int) -> None:
        columns = self._table.columns
        if isinstance(image, Unreadable):
            self._corrupt.append(f"{place(row[columns.image], number)}: {image.why}")
            return
        data = image.tobytes()
        self._out.write(data)
        self._digest.update(data)
        self._count += 1
        label = None
        if columns.label is not None:
            self._labels.append(self._plan.number(row[columns.label], columns.label))
            label = (self._plan.class_names or ())[self._labels[-1]]
        if self._has_captions:
            text = None if columns.caption is None else row[columns.caption]
            self._captions.append(f"{caption_of(text, label, self._template)}\n".encode())

    def finish(self, folder: Path) -> None:
        """Write labels, captions and, last, what the folder holds."""
        labels = np.array(self._labels, dtype=np.int64)
        ends = np.cumsum([len(caption) for caption in self._captions], dtype=np.int64)
        text = b"".join(self._captions)
        np.save(folder / cache.LABELS, labels)
        np.save(folder / cache.CAPTION_ENDS, ends)
        (folder / cache.CAPTIONS).write_bytes(text)
        layout = self._plan.layout
        shape = repr((layout.channels, layout.height, layout.width)).encode()
        for part in (shape, labels.tobytes(), ends.tobytes(), text):
            self._digest.update(part)
        meta = cache.Meta(
            num_images=self._count,
            channels=layout.channels,
            height=layout.height,
            width=layout.width,
            class_names=self._plan.class_names,
            has_captions=self._has_captions,
            fingerprint=self._digest.hexdigest(),
            corrupt=tuple(self._corrupt),
            credit=self._table.credit,
        )
        cache.write_meta(folder, meta)


def _check_template(template: str | None, table: Table) -> None:
    for name in ("caption", "label"):
        if f"{{{name}}}" in (template or "") and getattr(table.columns, name) is None:
            raise HfgenError(
                f"data.caption_template: {template!r} names {{{name}}}, but the data has no "
                f"{name} column; name one in data.{name}_column"
            )
