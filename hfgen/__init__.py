"""hfgen: train, measure and share generative models of images on the Hugging Face stack.

``hfgen.train`` and ``hfgen.load`` are imported when first used, so that ``import hfgen`` stays
instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "train"]

if TYPE_CHECKING:
    from hfgen.hub.load import load
    from hfgen.run import train

_LAZY = {"train": "hfgen.run", "load": "hfgen.hub.load"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hfgen' has no attribute {name!r}")
