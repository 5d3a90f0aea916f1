"""One learned scale for all pixels of all images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SharedScale(nn.Module):
    """Appends a learned ln(scale) per channel, the same for every pixel and image.

    That is the shared variance of the sigma-VAE (Rybkin et al. 2021, section 4) for a likelihood
    that reads its scale from the decoder's second half of channels.

    Args:
        channels: of the image.
        start: first value of ln(scale).
    """

    def __init__(self, channels: int, start: float = -1.0):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((channels,), start))

    def forward(self, location: Tensor) -> Tensor:
        """Locations [B, C, H, W] -> [B, 2 C, H, W]."""
        scale = self.log_scale.to(location.dtype)[None, :, None, None].expand_as(location)
        return torch.cat([location, scale], dim=1)


def scale_head(shared: bool, out_channels: int) -> tuple[int, nn.Module]:
    """How many channels the network puts out, and what completes them to ``out_channels``.

    Raises:
        ValueError: an odd number of channels, which cannot be locations and scales.
    """
    if not shared:
        return out_channels, nn.Identity()
    if out_channels % 2:
        raise ValueError(
            f"shared_scale: out_channels must be even (locations and scales), got {out_channels}; "
            "the likelihood must read its scale from the decoder, e.g. {type: gaussian, std: null}"
        )
    return out_channels // 2, SharedScale(out_channels // 2)
