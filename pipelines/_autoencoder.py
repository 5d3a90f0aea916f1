"""Images to latents that a diffusion model trains on, and back, for any image autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from ..likelihoods import likelihood_from_config  # pyright: ignore[reportMissingImports]


def latent_scale(vae: Any) -> tuple[Tensor, Tensor]:
    """shift and scale, [c] or [1], of (z - shift) * scale: what diffusers' latent models train on.

    ``latents_mean`` or ``shift_factor``, and ``scaling_factor`` over ``latents_std``, of the
    autoencoder's config; 0 and 1 where it has none.
    """
    config = vae.config
    shift = config.get("latents_mean") or config.get("shift_factor") or 0.0
    std = torch.as_tensor(config.get("latents_std") or 1.0, dtype=torch.float32)
    scale = config.get("scaling_factor", 1.0) / std
    return torch.as_tensor(shift, dtype=torch.float32).reshape(-1), scale.reshape(-1)


def latent_moments(vae: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and standard deviation of q(z|x) of images [B, C, H, W] in [-1, 1].

    Of any of diffusers' encoders: ``latent_dist`` (AutoencoderKL), ``latents`` (VQModel,
    AutoencoderTiny) or ``latent`` (AutoencoderDC); None for the last, which are deterministic.
    """
    encode = apply_forward_hook(type(vae).encode)
    output = encode(vae, images.to(vae.device, vae.dtype))
    (found,) = output.to_tuple()
    if "latent_dist" not in output:
        return found.float(), None
    std = getattr(found, "std", None)  # codes have none
    return found.mode().float(), None if std is None else std.float()


def encode_images(vae: Any, images: Tensor) -> Tensor:
    """Scaled means [B, c, h, w]."""
    shift, scale = (part.to(vae.device).reshape(-1, 1, 1) for part in latent_scale(vae))
    return (latent_moments(vae, images)[0] - shift) * scale


def decode_latents(vae: Any, latents: Tensor, likelihood: dict | None = None) -> Tensor:
    """Images [B, C, H, W] in [-1, 1] of scaled latents.

    Args:
        likelihood: what the decoder's output means; None where it is the image itself.
    """
    shift, scale = (part.to(latents.device).reshape(-1, 1, 1) for part in latent_scale(vae))
    decode = apply_forward_hook(type(vae).decode)
    params = decode(vae, (latents / scale + shift).to(vae.dtype)).sample.float()
    return params if likelihood is None else likelihood_from_config(likelihood).mean(params)


def latent_channels(vae: Any) -> int | None:
    """Channels of a latent map, where the config says so."""
    for name in ("latent_channels", "z_channels"):
        if vae.config.get(name) is not None:
            return vae.config[name]
    return None
