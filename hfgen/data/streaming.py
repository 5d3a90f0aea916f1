"""Images read while training, for sets that do not fit on the disk."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from itertools import islice
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from hfgen.data.build import Unreadable, place, try_decode
from hfgen.data.config import DataConfig
from hfgen.data.locate import Location
from hfgen.data.order import Draws, batch_too_large
from hfgen.data.plan import Plan, make_plan
from hfgen.data.sampling import permutation
from hfgen.data.source import DataSpec, Indices, Source
from hfgen.data.tables import Table, open_stream
from hfgen.errors import HfgenError


def open_streaming(location: Location, config: DataConfig) -> StreamingSource:
    """The training images of ``config`` as a stream."""
    if config.binarize == "static":
        raise HfgenError(
            "data.binarize: static pixels are drawn once for all images, which a stream cannot "
            "keep; set data.binarize: dynamic, or data.streaming: false"
        )
    table = open_stream(location, config, "train")
    plan = make_plan(table, config)
    return StreamingSource(table, plan, config)


class StreamingSource(Source):
    """A source that is only ever read in order. It has no length and no images by index.

    An image that cannot be decoded is replaced by the next one of its batch, in every process
    alike; more than ``data.max_corrupt`` different ones are an error.
    """

    def __init__(self, table: Table, plan: Plan, config: DataConfig):
        self._table = table
        self._plan = plan
        self._config = config
        self._corrupt: dict[str, None] = {}
        self._pool = ThreadPoolExecutor()
        self._spec = DataSpec(
            name=config.path,
            split="train",
            num_images=None,
            channels=plan.layout.channels,
            height=plan.layout.height,
            width=plan.layout.width,
            class_names=plan.class_names,
            has_captions=False,
            fingerprint=table.identity,
            binarize=config.binarize,
            credit=table.credit,
        )

    @property
    def spec(self) -> DataSpec:
        """As of any source; the fingerprint is that of the files: the content is not read yet."""
        return self._spec

    def __len__(self) -> int:
        self._no("length")

    def pixels(self, indices: Indices) -> Tensor:
        self._no("images by index")

    def labels(self, indices: Indices) -> Tensor:
        self._no("labels by index")

    def captions(self, indices: Indices) -> list[str]:
        self._no("captions by index")

    def draws(self, total_batch_size: int, seed: int) -> Draws:
        return StreamedDraws(self, total_batch_size, seed)

    def blocks(self, seed: int) -> Blocks:
        """Its rows from the beginning, endlessly; each call has a position of its own."""
        return Blocks(deepcopy(self._table.rows), self._config.shuffle_buffer, seed)

    def decode(self, batch: list[Mapping], start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Pixels and labels of the rows [start, stop) of a batch of undecoded rows."""
        found = list(self._pool.map(lambda i: self._readable(batch, i), range(start, stop)))
        pixels = torch.from_numpy(np.stack([image for image, _ in found]))
        column = self._table.columns.label
        if column is None:
            return pixels, None
        return pixels, torch.tensor([self._plan.number(row[column], column) for _, row in found])

    def _readable(self, batch: list[Mapping], i: int) -> tuple[np.ndarray, Mapping]:
        for row in (batch[(i + k) % len(batch)] for k in range(len(batch))):
            cell = row[self._table.columns.image]
            image = try_decode(cell, self._plan.layout)
            if not isinstance(image, Unreadable):
                return image, row
            self._count(f"{place(cell)}: {image.why}")
        raise HfgenError(f"data.path: {self._spec.name!r} has a whole batch of unreadable images")

    def _count(self, corrupt: str) -> None:
        self._corrupt[corrupt] = None
        if len(self._corrupt) > self._config.max_corrupt:
            raise HfgenError(
                f"data.max_corrupt is {self._config.max_corrupt}, but there are at least "
                f"{len(self._corrupt)} unreadable images in {self._spec.name!r}: "
                f"{'; '.join(list(self._corrupt)[:10])}; remove them, or raise data.max_corrupt"
            )

    def _no(self, what: str) -> NoReturn:
        raise HfgenError(
            f"data.streaming: the stream {self._spec.name!r} has no {what}; "
            "set data.streaming: false, or use its validation images"
        )


class Blocks:
    """The rows of a stream without end, in shuffled blocks of ``size``; each epoch reads the
    shards in another order.

    A block is shuffled with a permutation of (seed, epoch, block), so the position before a block
    is all that has to be saved: a shuffle buffer in the usual sense would have to be saved with
    its content.
    """

    def __init__(self, rows, size: int, seed: int):
        self._rows = rows
        self._size = size
        self._seed = seed
        self._iterator: Iterator[Mapping] | None = None
        self._files = ExitStack()
        weakref.finalize(self, self._files.close)  # before the interpreter takes pyarrow apart
        self._epoch = 0
        self._block = 0
        self._seen: int | None = 0
        self.epoch_size: int | None = None
        """Number of images, known after the first whole epoch."""

    def state_dict(self) -> dict:
        """The position before the next block; ``dataset`` is None at the start of an epoch."""
        dataset = None if self._iterator is None else self._rows.state_dict()
        return {"epoch": self._epoch, "block": self._block, "dataset": dataset}

    def load_state_dict(self, state: dict) -> None:
        self._epoch, self._block = state["epoch"], state["block"]
        self._rows.load_state_dict(state["dataset"])
        self._iterator = None if state["dataset"] is None else self._start()
        self._seen = 0 if self._iterator is None else None  # None: not from its start

    def read(self) -> list[Mapping]:
        """The next block, shuffled."""
        block = self._take()
        if not block:
            self._next_epoch()
            block = self._take()
        order = permutation(len(block), self._seed, "block", self._epoch, self._block)
        self._block += 1
        return [block[i] for i in order]

    def _take(self) -> list[Mapping]:
        if self._iterator is None:
            self._iterator = self._start()
        block = list(islice(self._iterator, self._size))
        if self._seen is not None:
            self._seen += len(block)
        return block

    def _start(self) -> Iterator[Mapping]:
        self._rows.set_epoch(self._epoch)  # shuffles the shards
        self._files.close()
        iterator = iter(self._rows)
        self._files.callback(iterator.close)
        return iterator

    def _next_epoch(self) -> None:
        if self._seen is not None:
            self.epoch_size = self._seen
        if self.epoch_size == 0:
            raise HfgenError("data.path: the stream has no images")
        self._epoch, self._block, self._seen, self._iterator = self._epoch + 1, 0, 0, None


class StreamedDraws(Draws):
    """Global batches of consecutive rows; the position is a block and an offset in it."""

    def __init__(self, source: StreamingSource, total_batch_size: int, seed: int):
        self._source = source
        self._size = total_batch_size
        self._blocks = source.blocks(seed)
        self._before = self._blocks.state_dict()  # of the block in hand
        self._block: list[Mapping] = []
        self._offset = 0  # of the first row after the current batch
        self._position = {"before": self._before, "offset": 0}  # of the current batch
        self._batch: list[Mapping] = []  # read when it is asked for

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        return self._source.decode(self._read(), start, stop)

    def advance(self) -> None:
        self._read()
        self._batch = []
        self._position = {"before": self._before, "offset": self._offset}

    def state_dict(self) -> dict:
        return self._position

    def load_state_dict(self, state: dict) -> None:
        self._blocks.load_state_dict(state["before"])
        self._before = state["before"]
        self._block = self._blocks.read()
        self._offset = state["offset"]
        self._position = state
        self._batch = []

    def _read(self) -> list[Mapping]:
        while len(self._batch) < self._size:
            if self._offset == len(self._block):
                self._before = self._blocks.state_dict()
                self._block, self._offset = self._blocks.read(), 0
                self._check_size()
            stop = self._offset + self._size - len(self._batch)
            taken = self._block[self._offset : stop]
            self._batch += taken
            self._offset += len(taken)
        return self._batch

    def _check_size(self) -> None:
        there = self._blocks.epoch_size
        if there is not None and there < self._size:
            raise batch_too_large(self._size, there, self._source.spec.name)
