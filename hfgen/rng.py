"""Random draws that do not depend on how a batch is split over micro-batches and processes.

A draw is keyed by (seed, key, name, block of rows): every 16 rows of the *global* batch have their
own generator, so the rows [4, 8) drawn alone equal the rows [4, 8) of the whole batch. A generator
per row would cost 0.55 ms against 0.016 ms for 128 x 20 numbers; one sequential generator would not
be split-invariant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 16


def seed_from(*key: object) -> int:
    """A 63-bit seed that depends on every part of ``key``."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch seeds are signed 64-bit


class Rng:
    """Named draws for the rows ``[start, start + shape[0])`` of a global batch.

    Args:
        *key: what identifies the draw, e.g. ``(seed, step, phase)``.
        start: first row of the global batch that this part of it holds.
        device: where the tensors live; numbers are drawn on that device's own generator.
    """

    def __init__(self, *key: object, start: int = 0, device: torch.device | str = "cpu"):
        self._key = key
        self._start = start
        self.device = torch.device(device)

    @property
    def start(self) -> int:
        """First row of the global batch that this part of it holds."""
        return self._start

    def randn(self, name: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Standard normal numbers, float32, of ``shape``; its first dimension is the batch."""
        return self._draw(name, shape, torch.randn)

    def rand(self, name: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Uniform numbers in [0, 1), float32, of ``shape``; its first dimension is the batch."""
        return self._draw(name, shape, torch.rand)

    def randint(self, name: str, high: int, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Integers in [0, high), int64, of ``shape``; its first dimension is the batch."""

        def draw(size: tuple[int, ...], **options) -> Tensor:
            return torch.randint(high, size, **options)

        return self._draw(name, shape, draw)

    def fork(self, *key: object) -> Rng:
        """An independent source for the same rows, e.g. for one term of a loss."""
        return Rng(*self._key, *key, start=self._start, device=self.device)

    def repeat(self, k: int) -> Rng:
        """A source for k rows in place of each row: row i gets rows i k to i k + k - 1."""
        return Rng(*self._key, start=self._start * k, device=self.device)

    def _draw(self, name: str, shape: tuple[int, ...], draw: Callable[..., Tensor]) -> Tensor:
        rows, rest = int(shape[0]), tuple(shape[1:])
        first, last = self._start // BLOCK, (self._start + rows - 1) // BLOCK
        generator = torch.Generator(device=self.device)
        blocks = []
        for block in range(first, last + 1):
            generator.manual_seed(seed_from(*self._key, name, block))
            blocks.append(draw((BLOCK, *rest), generator=generator, device=self.device))
        offset = self._start - first * BLOCK
        whole = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return whole[offset : offset + rows]
