"""LPIPS (Zhang et al. 2018, eq. 1) with AlexNet: distance as a network sees it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.errors import HfgenError

CHANNELS = (64, 192, 384, 256, 256)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """AlexNet features of five layers, unit length by position, squared differences weighed by
    channel and summed.

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
            difference = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square()
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


def load_lpips(weights: str | Path | None) -> LPIPS:
    """The network with weights from a local file, ``.safetensors`` or ``.pth``.

    Raises:
        HfgenError: no file given (no package index or pinned Hub file holds these weights), or one
            that does not hold this network.
    """
    if weights is None:
        raise HfgenError(
            "lpips: no weights at hand; join torchvision's alexnet-owt-7be5be79.pth (features.*) "
            "and LPIPS 0.1's weights/v0.1/alex.pth (lin*) in one file and pass --weights lpips=PATH"
        )
    # here, not above: the file's reader is shared with the FID network
    from hfgen.evaluation.backbones.inception_weights import read_tensors

    network = LPIPS()
    state = {k: v for k, v in read_tensors(Path(weights)).items() if k in network.state_dict()}
    missing = sorted(network.state_dict().keys() - state.keys())
    if missing:
        raise HfgenError(f"lpips: {weights} lacks {len(missing)} tensors, first {missing[0]}")
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
