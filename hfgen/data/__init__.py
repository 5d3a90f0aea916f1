"""Images for training and evaluation: dataset rows -> cached uint8 -> batches of tensors in [-1,
1].

The names below are imported on first use, so that reading a recipe (``hfgen.data.config``) does
not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfgen.data.cache import CachedSource
    from hfgen.data.config import DataConfig
    from hfgen.data.load import load_source
    from hfgen.data.source import DataSpec, IndexedSource, Source, TensorSource
    from hfgen.data.stream import BatchStream
    from hfgen.data.streaming import StreamingSource

__all__ = [
    "BatchStream",
    "CachedSource",
    "DataConfig",
    "DataSpec",
    "IndexedSource",
    "Source",
    "StreamingSource",
    "TensorSource",
    "load_source",
]

_MODULES = {
    "BatchStream": "stream",
    "CachedSource": "cache",
    "DataConfig": "config",
    "DataSpec": "source",
    "IndexedSource": "source",
    "Source": "source",
    "StreamingSource": "streaming",
    "TensorSource": "source",
    "load_source": "load",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hfgen.data.{_MODULES[name]}"), name)
