"""In which order images come: an endless stream of global batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hfgen.data.sampling import permutation
from hfgen.errors import HfgenError

if TYPE_CHECKING:
    from hfgen.data.source import IndexedSource


class Draws(ABC):
    """Endless global batches of stored pixels: the same ones in every process, for a given seed."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Stored pixels [stop - start, C, H, W] and labels of the current rows [start, stop)."""

    def extras(self, start: int, stop: int) -> dict[str, Tensor]:
        """What else the batch holds for the current rows [start, stop): nothing, by default."""
        return {}

    @abstractmethod
    def advance(self) -> None:
        """Go to the next batch."""

    @abstractmethod
    def state_dict(self) -> dict:
        """The position, as plain values."""

    @abstractmethod
    def load_state_dict(self, state: dict) -> None:
        """Continue from ``state_dict()``."""


def batch_too_large(total_batch_size: int, images: int, name: str) -> HfgenError:
    return HfgenError(
        f"training.total_batch_size is {total_batch_size}, but data set {name!r} has only "
        f"{images} images to train on; valid: 1 to {images}"
    )


class Permutations:
    """Element i of the endless stream of indices is ``permutation(i // size)[i % size]``.

    Each epoch has its own permutation, drawn from (seed, epoch) alone; only those in use are kept.
    """

    def __init__(self, size: int, seed: int):
        self._size = size
        self._seed = seed
        self._epochs: dict[int, Tensor] = {}

    def __call__(self, start: int, stop: int) -> Tensor:
        """Indices [stop - start] (int64) of the elements [start, stop) of the stream."""
        first, last = start // self._size, (stop - 1) // self._size
        self._epochs = {epoch: self._permutation(epoch) for epoch in range(first, last + 1)}
        whole = torch.cat(list(self._epochs.values())) if last > first else self._epochs[first]
        return whole[start - first * self._size : stop - first * self._size]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch in self._epochs:
            return self._epochs[epoch]
        return permutation(self._size, self._seed, "epoch", epoch)


class IndexedDraws(Draws):
    """Global batches of a source with random access; batches run on across the ends of epochs."""

    def __init__(self, source: IndexedSource, total_batch_size: int, seed: int):
        if total_batch_size > len(source):
            raise batch_too_large(total_batch_size, len(source), source.spec.name)
        self._source = source
        self._size = total_batch_size
        self._order = Permutations(len(source), seed)
        self._draw = 0
        self._indices = self._order(0, total_batch_size)

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        indices = self._indices[start:stop]
        return self._source.pixels(indices), self._source.labels(indices)

    def extras(self, start: int, stop: int) -> dict[str, Tensor]:
        return self._source.extras(self._indices[start:stop])

    def advance(self) -> None:
        self._go(self._draw + 1)

    def state_dict(self) -> dict:
        return {"draw": self._draw}

    def load_state_dict(self, state: dict) -> None:
        self._go(int(state["draw"]))

    def _go(self, draw: int) -> None:
        self._draw = draw
        self._indices = self._order(draw * self._size, (draw + 1) * self._size)
