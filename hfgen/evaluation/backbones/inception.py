"""The FID network: the Inception of December 2015 that TensorFlow served, with its peculiarities.

It differs from the published Inception v3 (Szegedy et al. 2016): 1008 classes, average pooling that
does not count the padding, max pooling in the last block, and TensorFlow 1's bilinear resize. All
published FIDs rest on these four. Parameter names are those of the ports of its weights
(``Mixed_5b.branch1x1.conv.weight`` ...), so that their checkpoints load.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hfgen.evaluation.backbones.base import Backbone, check_digest
from hfgen.evaluation.backbones.inception_weights import (
    FILE,
    ORIGINAL,
    REPO,
    find_weights,
    read_weights,
)

SIZE = 299

Chain = list[tuple[str, int, int | tuple[int, int]]]
"""Convolutions one after the other: name, output channels, kernel."""


class InceptionFID(ModelMixin, ConfigMixin):
    """Images [B, 3, H, W] in 0..255 (float) -> pooled features, logits and spatial features."""

    @register_to_config
    def __init__(self, num_classes: int = 1008):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBN(3, 32, 3, stride=2, padding=0)
        self.Conv2d_2a_3x3 = ConvBN(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = ConvBN(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvBN(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBN(80, 192, 3, padding=0)
        self.Mixed_5b = Mixed(192, *_grid35(32))
        self.Mixed_5c = Mixed(256, *_grid35(64))
        self.Mixed_5d = Mixed(288, *_grid35(64))
        self.Mixed_6a = Reduction(288, _REDUCE_35)
        self.Mixed_6b = Mixed(768, *_grid17(128))
        self.Mixed_6c = Mixed(768, *_grid17(160))
        self.Mixed_6d = Mixed(768, *_grid17(160))
        self.Mixed_6e = Mixed(768, *_grid17(192))
        self.Mixed_7a = Reduction(768, _REDUCE_17)
        self.Mixed_7b = MixedWide(1280, max_pool=False)
        self.Mixed_7c = MixedWide(2048, max_pool=True)
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``features`` [B, 2048]; ``logits`` [B, 1008] with bias, ``logits_unbiased`` without;
        ``spatial`` [B, 7 * 17 * 17], the first 7 channels of mixed_6/conv (sFID)."""
        x = (resize_tf1(images, SIZE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6c(self.Mixed_6b(x))
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :7].flatten(1)
        x = self.Mixed_6e(self.Mixed_6d(x))
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        unbiased = features @ self.fc.weight.T
        return {
            "features": features,
            "logits": unbiased + self.fc.bias,
            "logits_unbiased": unbiased,
            "spatial": spatial,
        }


class InceptionBackbone(Backbone):
    """The FID network with the published weights.

    ``logits`` are those without bias, on which the inception score is defined.

    Args:
        weights: None for the pinned Hub file, or a local ``.safetensors`` or original ``.pth``.
        sha256: what the file's digest must begin with; by default that of the pinned file, and
            nothing for a local one, whose digest stands in the protocol.
    Raises:
        HfgenError: the file cannot be had (the message says how to pass a local one), its digest
            is another, or it does not hold this network.
    """

    name = "inception"
    preprocessing = "TF1 bilinear 299 (no antialiasing), (x - 128) / 128"
    outputs = ("features", "logits", "spatial")
    weights_from = f"{FILE} of {REPO} on the Hub, or {ORIGINAL}; no package brings it"

    def __init__(self, weights: str | Path | None = None, sha256: str | None = None):
        path, expected = find_weights(weights, sha256)
        self.revision = f"sha256:{check_digest(path, expected)}"
        self.network = InceptionFID()
        read_weights(self.network, path)
        self.network.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> InceptionBackbone:
        network: Any = self.network  # diffusers decorates ``to`` in a way that hides its types
        network.to(device)
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.network(images.to(self.network.device).float())
        return {**outputs, "logits": outputs["logits_unbiased"]}


class ConvBN(nn.Module):
    """Convolution without bias, batch norm with epsilon 0.001, ReLU."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | None = None,
    ):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = (sides[0] // 2, sides[1] // 2)
        pad = same if padding is None else (padding, padding)
        self.conv = nn.Conv2d(channels_in, channels_out, sides, stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Parallel chains of convolutions and an average-pooled 1x1, concatenated."""

    def __init__(self, channels: int, chains: list[Chain], pooled: int):
        super().__init__()
        self._chains = [_add_chain(self, channels, chain) for chain in chains]
        self.branch_pool = ConvBN(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [_run_chain(self, names, x) for names in self._chains]
        pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([*branches, self.branch_pool(pooled)], dim=1)


class Reduction(nn.Module):
    """Halves the grid: chains whose last convolution has stride 2, beside a max pooling."""

    def __init__(self, channels: int, chains: list[Chain]):
        super().__init__()
        self._chains = [_add_chain(self, channels, chain, reduce=True) for chain in chains]

    def forward(self, x: Tensor) -> Tensor:
        branches = [_run_chain(self, names, x) for names in self._chains]
        return torch.cat([*branches, F.max_pool2d(x, 3, stride=2)], dim=1)


class MixedWide(nn.Module):
    """The 8x8 blocks, whose 3x3 convolutions split into 1x3 and 3x1 side by side."""

    def __init__(self, channels: int, *, max_pool: bool):
        super().__init__()
        self._max_pool = max_pool
        self.branch1x1 = ConvBN(channels, 320, 1)
        self.branch3x3_1 = ConvBN(channels, 384, 1)
        self.branch3x3_2a = ConvBN(384, 384, (1, 3))
        self.branch3x3_2b = ConvBN(384, 384, (3, 1))
        self.branch3x3dbl_1 = ConvBN(channels, 448, 1)
        self.branch3x3dbl_2 = ConvBN(448, 384, 3)
        self.branch3x3dbl_3a = ConvBN(384, 384, (1, 3))
        self.branch3x3dbl_3b = ConvBN(384, 384, (3, 1))
        self.branch_pool = ConvBN(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        if self._max_pool:
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, dim=1)


def resize_tf1(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's ``resize_bilinear``: output i reads position i * (in / out), not shifted by
    half a pixel, and averages nothing when it shrinks.

    Args:
        images: float [B, C, H, W].
    Returns:
        [B, C, size, size].
    """
    for dim in (2, 3):
        length = images.shape[dim]
        # float32 positions, as TensorFlow computes them
        scale = torch.tensor(length / size, dtype=torch.float32)
        position = torch.arange(size, dtype=torch.float32) * scale
        low = position.floor().long().clamp(max=length - 1)
        fraction = (position - low).to(images)
        low = low.to(images.device)
        first = images.index_select(dim, low)
        second = images.index_select(dim, (low + 1).clamp(max=length - 1))
        shape = [1, 1, 1, 1]
        shape[dim] = size
        images = first + (second - first) * fraction.view(shape)
    return images


def _add_chain(module: nn.Module, channels: int, chain: Chain, reduce: bool = False) -> list[str]:
    for name, out, kernel in chain:
        last = reduce and name == chain[-1][0]
        conv = ConvBN(channels, out, kernel, stride=2 if last else 1, padding=0 if last else None)
        module.add_module(name, conv)
        channels = out
    return [name for name, _, _ in chain]


def _run_chain(module: nn.Module, names: list[str], x: Tensor) -> Tensor:
    for name in names:
        x = module.get_submodule(name)(x)
    return x


def _grid35(pooled: int) -> tuple[list[Chain], int]:
    chains: list[Chain] = [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
    ]
    return chains, pooled


def _grid17(c: int) -> tuple[list[Chain], int]:
    row, column = (1, 7), (7, 1)
    double: Chain = [
        ("branch7x7dbl_1", c, 1),
        ("branch7x7dbl_2", c, column),
        ("branch7x7dbl_3", c, row),
        ("branch7x7dbl_4", c, column),
        ("branch7x7dbl_5", 192, row),
    ]
    single: Chain = [("branch7x7_1", c, 1), ("branch7x7_2", c, row), ("branch7x7_3", 192, column)]
    return [[("branch1x1", 192, 1)], single, double], 192


_REDUCE_35: list[Chain] = [
    [("branch3x3", 384, 3)],
    [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
]
_REDUCE_17: list[Chain] = [
    [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
    [
        ("branch7x7x3_1", 192, 1),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, 3),
    ],
]
