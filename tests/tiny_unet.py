"""The smallest stock UNet that has two resolutions, for tests of denoisers."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel


def tiny_unet(seed: int = 0, **options) -> UNet2DModel:
    """For grey images of 8x8 in [-1, 1]; ``options`` of its constructor go before ours."""
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1}
    widths = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    return UNet2DModel(**{**blocks, **sizes, **widths, **options}).eval()
