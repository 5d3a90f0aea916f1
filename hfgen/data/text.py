"""Images with their captions as tensors: tokens, or embeddings that were computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfgen.data.captions import words
from hfgen.data.source import DataSpec, IndexedSource, Indices, Source
from hfgen.errors import HfgenError
from hfgen.rng import Rng

NAMED = 3
"""How many images without a caption a message names."""
AT_ONCE = 10_000


class TextSource(IndexedSource):
    """A source whose batches hold, beside the images, rows of tables of texts.

    Args:
        images: images, latents or codes, with captions.
        rows: number of the text of each image, int64 [N].
        tables: name in the batch -> [U, ...], one row for each different text; the last row is
            the empty text.
        parts: components that were made from the captions or for them, by role.
    """

    def __init__(
        self,
        images: IndexedSource,
        rows: Tensor,
        tables: Mapping[str, np.ndarray],
        parts: Mapping[str, Any],
    ):
        self.images, self._rows, self.tables = images, rows, dict(tables)
        self._parts = dict(parts)

    @property
    def spec(self) -> DataSpec:
        return self.images.spec

    @property
    def parts(self) -> dict[str, Any]:
        return self._parts

    @property
    def words(self) -> tuple[str, ...]:
        """Words of all captions, in lower case, in alphabetic order."""
        return tuple(sorted(words(distinct_captions(self.images)[0])))

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, indices: Indices) -> Tensor:
        return self.images.pixels(indices)

    def labels(self, indices: Indices) -> Tensor | None:
        return self.images.labels(indices)

    def captions(self, indices: Indices) -> list[str]:
        return self.images.captions(indices)

    def prepare(
        self, stored: Tensor, rng: Rng, flip: bool, device: torch.device | str = "cpu"
    ) -> Tensor:
        return self.images.prepare(stored, rng, flip, device)

    def uint8(self, indices: Indices) -> Tensor:
        return self.images.uint8(indices)

    def extras(self, indices: Indices) -> dict[str, Tensor]:
        """Rows of the tables, and ``null_NAME`` [...], the row of the empty text, for each."""
        rows = self._rows[torch.as_tensor(indices, dtype=torch.int64)].numpy()
        batch: dict[str, Tensor] = {}
        for name, table in self.tables.items():
            batch[name] = torch.from_numpy(np.array(table[rows]))
            batch[f"null_{name}"] = torch.from_numpy(np.array(table[-1]))
        return batch

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        return {**self.images.batch(indices), **self.extras(indices)}


def distinct_captions(source: Source) -> tuple[list[str], Tensor]:
    """The different captions of ``source`` in alphabetic order, and the number of each image's.

    Raises:
        HfgenError: a stream; no captions at all; images without one, which are counted.
    """
    spec = source.spec
    if not isinstance(source, IndexedSource):
        raise HfgenError("data.streaming: captions are read beforehand; set it to false")
    if not spec.has_captions:
        raise HfgenError(
            f"data.path: all {len(source)} images of {spec.name!r} are without captions; name a "
            "text column in data.caption_column, or make captions of the classes, as in "
            'data.caption_template: "a {label}"'
        )
    texts: list[str] = []
    for start in range(0, len(source), AT_ONCE):
        texts += source.captions(np.arange(start, min(start + AT_ONCE, len(source))))
    check_captions(texts, f"data.path: {spec.name!r}")
    distinct = sorted(set(texts))
    number = {text: i for i, text in enumerate(distinct)}
    return distinct, torch.tensor([number[text] for text in texts])


def check_captions(texts: Sequence[str], where: str) -> None:
    """HfgenError that counts the images without a caption."""
    empty = [i for i, text in enumerate(texts) if not text.strip()]
    if empty:
        named = ", ".join(map(str, empty[:NAMED])) + (", ..." if len(empty) > NAMED else "")
        raise HfgenError(
            f"{where}: {len(empty)} of {len(texts)} images are without a caption (rows {named}); "
            "give them one, or leave them out"
        )
