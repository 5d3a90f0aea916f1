"""What every metric asks of its input: finite numbers [N, D], enough rows, equal widths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hfgen.errors import HfgenError

Array = np.ndarray | Tensor


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error (None where no honest one is known)."""

    value: float
    standard_error: float | None = None

    def __float__(self) -> float:
        return self.value


def as_features(x: Array, name: str, *, at_least: int = 2) -> Tensor:
    """``x`` as a floating tensor [N, D] on its own device.

    Raises:
        HfgenError: not a 2-D array, fewer than ``at_least`` rows, no columns, NaN or infinity.
    """
    if not isinstance(x, np.ndarray | Tensor):
        raise HfgenError(f"{name}: expected a numpy array or torch tensor, got {type(x).__name__}")
    tensor = torch.from_numpy(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x.detach()
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise HfgenError(f"{name}: expected features of shape [N, D], got {tuple(tensor.shape)}")
    if len(tensor) < at_least:
        raise HfgenError(f"{name}: {len(tensor)} samples, but at least {at_least} are needed")
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float32 if tensor.dtype.is_floating_point else torch.float64)
    # a finite sum has finite terms only, and costs a tenth of looking at each
    if not bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all()):
        rows = (~torch.isfinite(tensor)).any(1).nonzero().flatten()
        raise HfgenError(
            f"{name}: NaN or infinity in {len(rows)} rows, the first is {int(rows[0])}"
        )
    return tensor


def as_pair(
    a: Array, b: Array, names: tuple[str, str] = ("real", "fake"), *, at_least: int = 2
) -> tuple[Tensor, Tensor]:
    """Both arrays by ``as_features``, of one dtype and device; HfgenError when widths differ."""
    x, y = (as_features(v, n, at_least=at_least) for v, n in zip((a, b), names, strict=True))
    if x.shape[1] != y.shape[1]:
        raise HfgenError(
            f"{names[0]} has {x.shape[1]} features per sample and {names[1]} {y.shape[1]}: "
            "both must come from the same backbone"
        )
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(x.device, dtype)


def slices(count: int, most: int) -> list[slice]:
    """``count`` rows in equal parts of at most ``most``."""
    parts = -(-count // most)
    edges = [count * part // parts for part in range(parts + 1)]
    return [slice(*edge) for edge in zip(edges[:-1], edges[1:], strict=True)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, for many small operations: threads that wait for one another after each
    cost more than they save, on a busy machine fifty times as much.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_double(x: Array, name: str, *, at_least: int = 2) -> np.ndarray:
    """``as_features`` as a float64 numpy array."""
    return as_features(x, name, at_least=at_least).double().cpu().numpy()
