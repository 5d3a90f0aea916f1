"""What an adversarial objective remembers between steps, as modules: checkpointed, moved, equal on
every process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class StepSum(nn.Module):
    """Sums of rows over micro-batches, processes and steps, read only between steps.

    What a step sees is therefore the same however its batch is split: ``take`` hands out only what
    *earlier* steps added.

    Args:
        size: number of values that are summed side by side.
    """

    total: Tensor
    count: Tensor
    step: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("total", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("step", torch.full((), -1, dtype=torch.int64))

    @torch.no_grad()
    def add(self, rows: Tensor, step: int) -> None:
        """Add ``rows`` [B, size] of this process to the sums of all."""
        sums = torch.cat([rows.double().sum(0), rows.new_full((1,), len(rows)).double()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        self.total += sums[:-1]
        self.count += sums[-1]
        self.step.fill_(step)

    @torch.no_grad()
    def take(self, step: int, at_least: int = 1) -> tuple[Tensor, int] | None:
        """(mean, rows) of what steps before ``step`` added, and start anew; None while rows <
        ``at_least``.
        """
        if int(self.step) == step or int(self.count) < at_least:
            return None
        mean, rows = self.total / self.count, int(self.count)
        self.total.zero_()
        self.count.zero_()
        return mean, rows


class StepAverage(nn.Module):
    """Exponential moving average over steps of the mean over a step's rows.

    Args:
        size: number of values averaged side by side.
        decay: weight of the old average; the first step's mean replaces the initial zeros.
    """

    value: Tensor
    started: Tensor

    def __init__(self, size: int, decay: float):
        super().__init__()
        self.decay = decay
        self.sums = StepSum(size)
        self.register_buffer("value", torch.zeros(size))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def forward(self, rows: Tensor, step: int) -> tuple[Tensor, bool]:
        """(the average over earlier steps, whether there is one); remembers ``rows`` [B, size]."""
        taken = self.sums.take(step)
        if taken is not None:
            mean = taken[0].to(self.value.dtype)
            self.value.copy_(torch.lerp(mean, self.value, self.decay) if self.started else mean)
            self.started.fill_(True)
        self.sums.add(rows, step)
        return self.value, bool(self.started)
