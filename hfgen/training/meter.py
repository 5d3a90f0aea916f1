"""Means of loss terms between two lines of the log."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


class Meter:
    """Sums on the device; the numbers are read only when a line is written, so no step waits for
    the GPU.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """One step's terms; a lazy phase's terms count only the steps on which it ran."""
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes; starts anew."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        means = torch.stack([self._sums[name].float() / self._counts[name] for name in names])
        means = accelerator.reduce(means, reduction="mean")
        self._sums, self._counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))  # type: ignore[union-attr]
