"""What a recipe trains on: its images, or their latents or codes where it holds a frozen
autoencoder; and their captions, where it holds a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from diffusers import ModelMixin

from hfgen.build import build_component, component_settings, frozen_autoencoder
from hfgen.data import Source, load_source
from hfgen.data.codes import CodeSource, encode_codes
from hfgen.data.latents import LatentSource, encode_source
from hfgen.errors import HfgenError
from hfgen.pipelines._autoencoder import (  # pyright: ignore[reportMissingImports]
    latent_moments,
    latent_scale,
)
from hfgen.recipe import Recipe
from hfgen.text import with_text

SCALE = (0.5, 2.0)
"""Standard deviation that scaled latents may have: the noise levels are made for 1."""


def training_source(recipe: Recipe, device: torch.device | str = "cpu") -> Source:
    """The training images of ``recipe``, their latents or codes; with their captions.

    Raises:
        HfgenError: an autoencoder that does not fit the images, or whose latents are of another
            scale than its config says; captions that are missing.
    """
    images = load_source(recipe.data, split="train")
    if "codes" in component_settings(recipe):
        encoded: Source = _codes(recipe, images, device)
    else:
        role = frozen_autoencoder(recipe)
        encoded = images if role is None else _latents(recipe, role, images, device)
    return with_text(recipe, encoded, device)


def _codes(recipe: Recipe, images: Source, device: torch.device | str) -> CodeSource:
    codes = build_component("codes", component_settings(recipe)["codes"])
    if not hasattr(codes, "codebook"):
        raise HfgenError(f"model.codes: {type(codes).__name__} has no codebook; valid: VQVAE")
    _check_fits("model.codes", codes, images)
    codes = codes.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(batch: torch.Tensor) -> torch.Tensor:
        try:
            latents = codes.encode_map(batch.to(codes.device, codes.dtype))
        except ValueError as error:
            raise HfgenError(f"model.codes: {error}; set data.resolution") from None
        return codes.quantize(latents).indices

    name, flip = weights_hash(codes), recipe.data.random_flip
    return encode_codes(images, encode, name=name, flip=flip, cache_dir=recipe.data.cache_dir)


def _latents(recipe: Recipe, role: str, images: Source, device: torch.device | str) -> LatentSource:
    where = f"model.{role}"
    vae = build_component(role, component_settings(recipe)[role])
    if not isinstance(vae, ModelMixin):
        raise HfgenError(f"{where}: {type(vae).__name__} is no autoencoder")
    _check_fits(where, vae, images)
    vae.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    shift, scale = latent_scale(vae)
    latents = encode_source(
        images,
        _encoder(where, vae),
        name=weights_hash(vae),
        flip=recipe.data.random_flip,
        shift=shift,
        scale=scale,
        cache_dir=recipe.data.cache_dir,
    )
    _check_scale(where, vae, latents, recipe.pipeline)
    return latents


def weights_hash(model: Any) -> str:
    """Sixteen hexadecimal digits of a model's config and weights."""
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    scaling = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    kept = {k: v for k, v in config.items() if k not in scaling}  # applied after the cache
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps([type(model).__name__, kept], sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _encoder(where: str, vae: Any) -> Any:
    @torch.no_grad()
    def encode(images: torch.Tensor) -> Any:
        try:
            return latent_moments(vae, images)
        except (RuntimeError, ValueError, TypeError) as error:
            raise HfgenError(
                f"{where}: {type(vae).__name__} cannot encode images of {list(images.shape[1:])}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error

    return encode


def _check_fits(where: str, vae: Any, images: Source) -> None:
    name, spec = type(vae).__name__, images.spec
    if vae.config.get("num_class_embeds") is not None:
        raise HfgenError(f"{where}: {name} is class-conditional; latents need one without classes")
    channels = vae.config.get("in_channels")
    if channels not in (None, spec.channels):
        raise HfgenError(
            f"{where}: {name} takes {channels} channel(s), the data has {spec.channels}; "
            f"set data.channels to {channels}"
        )


def _check_scale(where: str, vae: Any, latents: LatentSource, pipeline: str) -> None:
    _, std = latents.moments
    if not SCALE[0] <= std <= SCALE[1]:
        factor = vae.config.get("scaling_factor", 1.0)
        raise HfgenError(
            f"{where}: its latents have standard deviation {std:.3g} after scaling_factor "
            f"{factor:.4g}, not about 1; set {where}.scaling_factor to {factor / std:.4g}"
        )
    shift, scale = latent_scale(vae)
    plain = len(scale) == 1 and not bool(shift.any())
    if pipeline in ("LDMPipeline", "DiTPipeline") and not plain:
        raise HfgenError(
            f"pipeline: {pipeline} knows only the autoencoder's scaling_factor, but this one has a "
            "shift or a scale per channel too; valid: DenoisingPipeline"
        )
