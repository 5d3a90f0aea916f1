"""Images from a variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.utils import logging
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from ..likelihoods import Likelihood, likelihood_from_config  # pyright: ignore[reportMissingImports]
from ._common import (
    Generators,
    check_batch,
    check_labels,
    check_latents,
    check_output_type,
    draw_latents,
    to_tensor,
)
from ._latents import LatentsMixin
from ._self_contained import SelfContainedMixin

logger = logging.get_logger(__name__)


class VAEPipeline(LatentsMixin, SelfContainedMixin, DiffusionPipeline):
    """z ~ prior, image = mean of p(x | z) (Kingma & Welling 2013).

    Args:
        vae: a model with AutoencoderKL's interface: ``encode(x).latent_dist`` and
            ``decode(z).sample``, the parameters of the likelihood. AutoencoderKL itself will do.
        prior: None for the standard normal, or a model with
            ``sample(batch_size, generator, class_labels, temperature) -> [B, *latent_shape]``,
            where ``generator`` may be a list of one per row.
        likelihood: what the decoder's output means, e.g. ``{"type": "bernoulli"}``; None for a
            Gaussian, whose mean is the output itself. Kept in ``model_index.json``.
        latents_mean, latents_std: moments by channel of the latents of training images, for models
            that are trained on them; the autoencoder's own ``scaling_factor`` is 1 over the
            standard deviation of all channels together.
        deterministic: the encoder's mode alone was trained, so that q(z | x) has no spread and
            bounds of ln p(x) mean nothing.
    """

    model_cpu_offload_seq = "prior->vae"
    _optional_components = ["prior"]

    def __init__(
        self,
        vae: ModelMixin,
        prior: ModelMixin | None = None,
        likelihood: dict | None = None,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        deterministic: bool = False,
    ):
        super().__init__()
        self.register_modules(vae=vae, prior=prior)
        self.register_to_config(likelihood=likelihood or {"type": "gaussian"})
        self.register_to_config(latents_mean=latents_mean, latents_std=latents_std)
        self.register_to_config(deterministic=deterministic)
        likelihood_from_config(self.config["likelihood"])  # an unknown one fails here

    @property
    def likelihood(self) -> Likelihood:
        """p(x | decoder output)."""
        return likelihood_from_config(self.config["likelihood"])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        if not isinstance(self.vae, AutoencoderKL):
            return self.vae.latent_shape
        halvings = len(self.vae.config["block_out_channels"]) - 1
        side = self.vae.config["sample_size"] // 2**halvings
        return (self.vae.config["latent_channels"], side, side)

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the model is conditioned on, if any."""
        return self.vae.config.get("num_class_embeds")

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        class_labels: int | list[int] | Tensor | None = None,
        temperature: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: number of images; that of ``latents`` where they are given.
            generator: one for the batch, or a list of one per image.
            latents: [B, *latent_shape] to decode instead of drawing some.
            class_labels: one label, or one per image, for a class-conditional model.
            temperature: factor on the prior's standard deviation; below 1 images are more typical
                and less varied.
            output_type: "pil", "np" [B, H, W, C] or "pt" [B, C, H, W] in [0, 1], or "latent".
            return_dict: an ``ImagePipelineOutput``, or a tuple of one.
        Raises:
            ValueError: an argument that does not fit the model or the others.
        """
        check_output_type(output_type)
        if temperature < 0:
            raise ValueError(f"temperature={temperature}: must not be negative")
        batch_size = batch_size if latents is None else len(latents)
        check_batch(batch_size, generator)
        device = self._execution_device
        labels = check_labels(class_labels, self.num_classes, batch_size, device)
        if latents is None:
            latents = self._draw(batch_size, generator, labels, temperature)
        check_latents(latents, self.latent_shape)
        return self._finish(latents, labels, output_type, return_dict)

    @torch.no_grad()
    def encode(self, images: Any, class_labels: int | list[int] | Tensor | None = None) -> Tensor:
        """Mean of the posterior, [B, *latent_shape].

        Args:
            images: PIL images, or an array [B, H, W, C] or a tensor [B, C, H, W] in [0, 1], of the
                model's size.
            class_labels: for a class-conditional model.
        """
        config, device = self.vae.config, self._execution_device
        shape = (config["in_channels"], config["sample_size"], config["sample_size"])
        x = to_tensor(images, shape, device).to(self.vae.dtype)
        labels = check_labels(class_labels, self.num_classes, len(x), device)
        encode = apply_forward_hook(type(self.vae).encode)
        latents = encode(self.vae, x, **_only_given(labels)).latent_dist.mode()
        self.maybe_free_model_hooks()
        return latents.float()

    def reconstruct(
        self,
        images: Any,
        class_labels: int | list[int] | Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """``images`` through the encoder's mean and the decoder; types as in ``encode``."""
        latents = self.encode(images, class_labels)
        return self(
            latents=latents,
            class_labels=class_labels,
            output_type=output_type,
            return_dict=return_dict,
        )

    def attribute(
        self,
        having: Any,
        lacking: Any,
        class_labels: int | list[int] | Tensor | None = None,
    ) -> Tensor:
        """The direction of an attribute, [*latent_shape]: the mean latent of images that have it
        minus that of images that lack it (Larsen et al. 2016, section 4.2); types as in ``encode``.
        """
        first, second = self.encode(having, class_labels), self.encode(lacking, class_labels)
        return first.mean(0) - second.mean(0)

    def move(
        self,
        latents: Tensor,
        direction: Tensor,
        strengths: Sequence[float] = (-1, 0, 1),
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images of latent + strength * direction: attribute arithmetic.

        Args:
            latents: [B, *latent_shape].
            direction: [*latent_shape], say of ``attribute``.
            strengths: how far, image by image.
            **kwargs: ``class_labels`` (one for all images), ``output_type``, ``return_dict``.
        Returns:
            B * len(strengths) images, latent by latent.
        """
        check_latents(latents, self.latent_shape)
        if tuple(direction.shape) != self.latent_shape:
            raise ValueError(
                f"direction of shape {list(direction.shape)}: must be {list(self.latent_shape)}"
            )
        far = torch.as_tensor(strengths, dtype=latents.dtype, device=latents.device)
        steps = far.view(-1, *[1] * direction.dim()) * direction.to(latents)
        return self(latents=(latents[:, None] + steps).flatten(0, 1), **kwargs)

    @property
    def _metric(self) -> Any:
        return self.prior

    def _draw(
        self, batch_size: int, generator: Generators, labels: Tensor | None, temperature: float
    ) -> Tensor:
        if self.prior is None:
            if "quantizer" in self.vae.config:
                _warn(
                    "This autoencoder has no prior over its codes: what follows is decoded noise. "
                    "Fit one: hfgen fit-prior RUN --prior codes"
                )
            noise = draw_latents(batch_size, self.latent_shape, generator, self._execution_device)
            return temperature * noise
        sample = apply_forward_hook(type(self.prior).sample)  # so that offloading sees the call
        return sample(self.prior, batch_size, generator, labels, temperature)

    def _decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        decode = apply_forward_hook(type(self.vae).decode)
        params = decode(self.vae, latents.to(self.vae.dtype), **_only_given(labels)).sample
        return self.likelihood.mean(params.float())


@lru_cache
def _warn(line: str) -> None:
    """Once in a process."""
    logger.warning(line)


def _only_given(labels: Tensor | None) -> dict[str, Tensor]:
    """AutoencoderKL takes no labels at all, so they are passed only where there are some."""
    return {} if labels is None else {"class_labels": labels}
