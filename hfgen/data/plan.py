"""What the training images fix for all splits: size, channels and classes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hfgen.data.config import DataConfig
from hfgen.data.decode import UNREADABLE, Header, Layout, header
from hfgen.data.tables import STREAM_HELD_OUT, Table
from hfgen.errors import HfgenError
from hfgen.rng import BLOCK

CHUNK = 16 * BLOCK
"""Rows read at a time; whole blocks of random numbers."""
PROPOSALS = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Plan:
    """Layout of every image, and the classes.

    Attributes:
        layout: what images are decoded to.
        class_names: name of label 0, 1, ...; None without labels.
        coded: whether the label column holds those numbers (``ClassLabel``) or the names.
    """

    layout: Layout
    class_names: tuple[str, ...] | None
    coded: bool

    def number(self, value: object, column: str) -> int:
        """The class number of a cell of the label column; HfgenError where it is no class."""
        names = self.class_names or ()
        if self.coded and isinstance(value, int) and 0 <= value < len(names):
            return value
        if not self.coded and value is not None and str(value) in names:
            return names.index(str(value))
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise HfgenError(
            f"data.label_column: column {column!r} holds {value!r}, none of the {len(names)} "
            f"training classes ({shown}); choose another column, or data.label_column: none"
        )


def make_plan(table: Table, config: DataConfig) -> Plan:
    """Reads the headers of the training images where the recipe leaves size or channels open.

    Raises:
        HfgenError: no image can be read; sizes differ and no resolution is set.
    """
    coded = table.columns.class_names
    if coded is not None or table.columns.label is None:
        return Plan(_layout(table, config), coded, coded=True)
    values = {value for value in table.rows[table.columns.label] if value is not None}
    names = tuple(str(value) for value in sorted(values))
    return Plan(_layout(table, config), names, coded=False)


def layout_of(headers: list[Header], config: DataConfig) -> Layout:
    """The layout for these images; HfgenError where sizes differ and no resolution is set."""
    channels = config.channels or max(found.channels for found in headers)
    if config.resolution is not None:
        return _square(config.resolution, channels, config)
    sizes = sorted({(found.width, found.height) for found in headers})
    width, height = sizes[0]
    if len(sizes) > 1:
        raise HfgenError(
            f"data.resolution: the images of {config.path!r} have {len(sizes)} sizes, from "
            f"{width}x{height} to {sizes[-1][0]}x{sizes[-1][1]}; set one for all, "
            f"e.g. data.resolution: {_proposal(headers)}"
        )
    return Layout(channels, height, width, config.center_crop, config.interpolation, resize=False)


def _layout(table: Table, config: DataConfig) -> Layout:
    if config.resolution is not None and config.channels is not None:
        return _square(config.resolution, config.channels, config)
    found = list(_headers(table))
    if not found:
        raise HfgenError(
            f"data.path: {config.path!r} has no images to train on; where a stream has no split to "
            f"validate on, its first {STREAM_HELD_OUT:,} are held out: set data.streaming: false"
        )
    headers = [header for header in found if header is not None]
    if not headers:
        raise HfgenError(f"data.path: no image of {config.path!r} can be read")
    return layout_of(headers, config)


def _square(side: int, channels: int, config: DataConfig) -> Layout:
    return Layout(channels, side, side, config.center_crop, config.interpolation, resize=True)


def _proposal(headers: list[Header]) -> int:
    """The largest power of two that at least half of the images need not be enlarged for."""
    shorter = statistics.median_high(min(found.width, found.height) for found in headers)
    return max((side for side in PROPOSALS if side <= shorter), default=PROPOSALS[0])


def _headers(table: Table) -> Iterator[Header | None]:
    """Headers of all images; of a stream, those of its first chunk."""
    with ThreadPoolExecutor() as pool:
        for rows in table.rows.iter(batch_size=CHUNK):
            yield from pool.map(_header, rows[table.columns.image])
            if table.num_rows is None:
                return


def _header(cell: Mapping) -> Header | None:
    try:
        return header(cell)
    except UNREADABLE:
        return None  # named when it is decoded
