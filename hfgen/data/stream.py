"""Training batches: any rows of the global batch, flipped, binarised and normalised."""

from __future__ import annotations

import torch
from torch import Tensor

from hfgen.data.config import BINARIZE
from hfgen.data.source import Source
from hfgen.errors import HfgenError, one_of
from hfgen.rng import Rng


class BatchStream:
    """An endless stream of global batches, a pure function of (seed, draw).

    Every process makes the same stream and takes its rows of each batch, so that any split over
    processes and micro-batches sees the same numbers. Random numbers are drawn on the CPU: the
    batch is the same on every device.

    Args:
        source: where the images come from.
        total_batch_size: images of one draw, over all processes and micro-batches.
        seed: of the order, the flips and the binarisation.
        random_flip: mirror each image left to right with probability 1/2.
        binarize: ``dynamic`` draws each pixel from {-1, 1} with probability (x + 1) / 2 of 1; by
            default what the source's spec says (``static`` pixels have been drawn already).
    Raises:
        HfgenError: the batch is larger than the data set, or smaller than 1.
    """

    def __init__(
        self,
        source: Source,
        total_batch_size: int,
        seed: int,
        *,
        random_flip: bool = False,
        binarize: str | None = None,
    ):
        if total_batch_size < 1:
            raise HfgenError(f"training.total_batch_size: must be > 0, got {total_batch_size}")
        if binarize not in (None, *BINARIZE):
            raise one_of("data.binarize", binarize, BINARIZE)
        self.total_batch_size = total_batch_size
        self._source = source
        self._draws = source.draws(total_batch_size, seed)
        self._seed = seed
        self._draw = 0
        self._flip = random_flip
        self._binarize = (binarize or source.spec.binarize) == "dynamic"

    def rows(self, start: int, stop: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The rows [start, stop) of the current global batch.

        Returns:
            ``images`` float32 [stop - start, C, H, W] in [-1, 1] (or scaled latents) and, where
            there are classes, ``labels`` int64; with texts, rows of their tables (``TextSource``).
        """
        pixels, labels = self._draws.rows(start, stop)
        rng = Rng(self._seed, "data", self._draw, start=start)
        images = self._source.prepare(pixels, rng, self._flip, device)
        if self._binarize:
            uniform = rng.rand("binarize", images.shape).to(device)
            images = (uniform < (images + 1) / 2).float().mul_(2).sub_(1)
        rest = self._draws.extras(start, stop) | ({} if labels is None else {"labels": labels})
        return {"images": images, **{name: value.to(device) for name, value in rest.items()}}

    def advance(self) -> None:
        """Go to the next draw."""
        self._draw += 1
        self._draws.advance()

    def state_dict(self) -> dict:
        """The position, as plain values: enough to continue bit for bit."""
        return {"draw": self._draw, "source": self._draws.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Continue where ``state_dict()`` was taken."""
        self._draw = int(state["draw"])
        self._draws.load_state_dict(state["source"])
