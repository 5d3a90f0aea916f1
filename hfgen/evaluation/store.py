"""Features on disk, block by block: a killed evaluation continues, and nothing is computed
twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from hfgen.errors import HfgenError
from hfgen.evaluation.moments import Moments

BLOCK = 64
"""Images in one unit of work: what is drawn together, sent together and marked as done."""
MERGE = 4096
"""Rows whose moments are taken at once; fixed, so that sums do not depend on how they were made."""
KEPT_IMAGES = 256
KEY = "key.json"


class FeatureStore:
    """Rows of ``count`` images by index; each output of a backbone is one ``.npy`` file.

    Args:
        folder: made when absent.
        key: what the rows depend on. Another key in the folder is refused, never overwritten.
        count: number of images.
    Raises:
        HfgenError: the folder holds features made under another key.
    """

    def __init__(self, folder: Path, key: dict[str, Any], count: int):
        self.folder, self.count = folder, count
        self._key = json.loads(json.dumps({**key, "count": count}, default=str))
        try:
            self._open()
        except OSError as error:
            raise HfgenError(f"features cannot be kept in {folder}: {error.strerror}") from error

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / KEY
        if not path.exists():
            path.write_text(json.dumps(self._key, indent=1))
        found = json.loads(path.read_text())
        if found != self._key:
            names = sorted(
                k for k in found.keys() | self._key.keys() if found.get(k) != self._key.get(k)
            )
            raise HfgenError(
                f"{self.folder}: features made under another protocol ({', '.join(names)} differ); "
                "delete the folder or choose another"
            )
        done = self.folder / "done.npy"
        blocks = -(-self.count // BLOCK)
        exists = done.exists()
        self._done = open_memmap(done, mode="r+" if exists else "w+", dtype=bool, shape=(blocks,))

    @property
    def done(self) -> np.ndarray:
        """Which blocks are whole, [ceil(count / BLOCK)] bool."""
        return np.asarray(self._done)

    def rows(self, block: int) -> range:
        """Indices of the images of one block."""
        return range(block * BLOCK, min((block + 1) * BLOCK, self.count))

    def write(self, rows: np.ndarray, outputs: dict[str, np.ndarray]) -> None:
        """Store outputs [B, D] of whole blocks and mark them as done.

        Args:
            rows: [B] indices; those below 0 are padding and dropped.
            outputs: by name; ``images`` are kept for the first ``KEPT_IMAGES`` only.
        """
        for name, values in outputs.items():
            limit = min(self.count, KEPT_IMAGES) if name == "images" else self.count
            keep = (rows >= 0) & (rows < limit)
            file = self._file(name, (limit, *values.shape[1:]), values.dtype)
            file[rows[keep]] = values[keep]
            file.flush()
        self._done[np.unique(rows[rows >= 0] // BLOCK)] = True
        self._done.flush()

    def output(self, name: str) -> np.ndarray:
        """One output [count, D], mapped from disk; HfgenError when the backbone has none."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            raise HfgenError(f"the backbone of {self.folder.name} gives no {name}")
        return np.load(path, mmap_mode="r")

    def moments(self, name: str = "features") -> Moments:
        """Moments of one output, in index order."""
        values = self.output(name)
        parts = [Moments.of(np.array(values[i : i + MERGE])) for i in range(0, self.count, MERGE)]
        total = parts[0]
        for part in parts[1:]:
            total = total.merge(part)
        return total

    def _file(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.memmap:
        path = self.folder / f"{name}.npy"
        if path.exists():
            return np.load(path, mmap_mode="r+")
        return open_memmap(path, mode="w+", dtype=dtype, shape=shape)
