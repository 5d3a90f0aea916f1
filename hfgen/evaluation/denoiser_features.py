"""Features of a denoising network: what one layer holds of an image at one noise level (Baranchuk
et al. 2022, "Label-efficient semantic segmentation with diffusion models"; Xiang et al. 2023,
"Denoising diffusion autoencoders are unified self-supervised learners").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfgen.errors import HfgenError
from hfgen.evaluation.likelihood_diffusion import denoiser
from hfgen.hidden import layer_outputs, middle_layer
from hfgen.rng import Rng

NOISE = 0.3
"""sigma / alpha by default: a third of the images' range, the details gone and the shapes not."""


@torch.no_grad()
def denoiser_features(
    pipeline: Any, images: Tensor, layer: str = "", noise: float = NOISE, start: int = 0
) -> Tensor:
    """[B, D]: the output of ``layer`` for noisy images, averaged over positions.

    The network is told no class: the null label, where it has classes.

    Args:
        images: [B, C, H, W] in [-1, 1].
        layer: name of a module of the network; "" for the middle one.
        noise: sigma / alpha of the noise that is added, the same for all paths.
        start: number of the first image; its noise depends on it.
    Raises:
        HfgenError: a pipeline that is no denoiser of pixels, or knows nothing but classes; a layer
            that it has not; a noise level that it was not trained on.
    """
    param, network = denoiser(pipeline, None)
    low, high = param.path.ratios
    if not low <= noise <= high:
        raise HfgenError(f"feature noise {noise}: the network knows {low:.3g} to {high:.3g}")
    t = param.path.snap(param.path.at_ratio(torch.full((len(images),), noise)))
    x_t = param.path.add_noise(images, Rng(0, start=start).randn("noise", images.shape), t)
    with layer_outputs(pipeline.unet, layer or middle_layer(pipeline.unet)) as found:
        network(*param.path.model_input(x_t.to(pipeline.device), t.to(pipeline.device)))
    return pooled(found[-1]).float().cpu()


def pooled(output: Tensor) -> Tensor:
    """[B, C, H, W] or tokens [B, N, D] -> [B, C] or [B, D]."""
    return output.flatten(2).mean(2) if output.ndim == 4 else output.mean(1)
