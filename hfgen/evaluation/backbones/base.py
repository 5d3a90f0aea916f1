"""What a backbone is: 8-bit RGB images in, features out, with its identity for the protocol."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hfgen.errors import HfgenError

MICRO_BATCH = 8
"""Images a network sees at once. Fixed, and aligned to an image's position in its block, so that
no batch size changes a bit of the features; on a CPU it also keeps activations in the cache."""


class Backbone(ABC):
    """A fixed network that measures images.

    Attributes:
        name: as users write it.
        revision: what identifies the weights, e.g. ``sha256:...``; empty where nothing does (then
            no statistics are cached).
        preprocessing: how an 8-bit image becomes the network's input, in words.
        outputs: names of what ``extract`` gives: ``features`` always, ``logits`` and ``spatial``
            where the network has them.
        packaged: whether a package brings the weights.
        weights_from: where they are otherwise.
    """

    name: str
    revision: str
    preprocessing: str
    outputs: tuple[str, ...] = ("features",)
    packaged: bool = False
    weights_from: str = "the user"

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs [B, D] for RGB images [B, 3, H, W], uint8, on the backbone's device."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Backbone:
        """Move the network; returns itself."""

    @torch.inference_mode()
    def extract(self, images: Tensor) -> dict[str, Tensor]:
        """Float32 outputs on the CPU, [B, D] each.

        Args:
            images: uint8 [B, C, H, W], C 1 (repeated to 3) or 3.
        Raises:
            HfgenError: another dtype or number of channels, or an output that is not finite.
        """
        rgb = to_rgb(images)
        parts = [self.forward(part) for part in rgb.split(MICRO_BATCH)]
        result = {
            name: torch.cat([part[name] for part in parts]).float().cpu() for name in self.outputs
        }
        for name, value in result.items():
            if value.ndim != 2 or len(value) != len(images):
                shape = tuple(value.shape)
                raise HfgenError(f"backbone {self.name}: {name} must be [B, D], got {shape}")
            if not bool(torch.isfinite(value).all()):
                raise HfgenError(f"backbone {self.name}: {name} hold NaN or infinity")
        return result


class CallableBackbone(Backbone):
    """Any function of the user's.

    Args:
        function: uint8 RGB [B, 3, H, W] -> features [B, D].
        name: shown beside every number.
        revision: what identifies its weights; without it reference statistics are not cached.
    """

    preprocessing = "the callable's own"

    def __init__(self, function: Callable[[Tensor], Tensor], name: str = "", revision: str = ""):
        self.function = function
        self.name = name or getattr(function, "__qualname__", type(function).__qualname__)
        self.revision = revision

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.function(images)}

    def to(self, device: torch.device | str) -> CallableBackbone:
        return self


def to_rgb(images: Tensor) -> Tensor:
    """uint8 [B, 1 or 3, H, W] -> [B, 3, H, W]."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        shape = tuple(images.shape)
        raise HfgenError(f"images: expected uint8 [B, C, H, W], got {images.dtype} {shape}")
    if images.shape[1] not in (1, 3):
        raise HfgenError(f"images: {images.shape[1]} channels; a backbone takes 1 (grey) or 3")
    return images.expand(-1, 3, -1, -1)


def file_digest(path: str | Path) -> str:
    """sha256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: str | Path, expected: str) -> str:
    """The file's sha256; HfgenError naming both when it does not begin with ``expected``."""
    digest = file_digest(path)
    if not digest.startswith(expected):
        raise HfgenError(
            f"{path}: sha256 is {digest}, expected {expected}: corrupt or another file"
        )
    return digest
