"""Images from a generative adversarial network."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from torch import Tensor

from ._common import (
    Generators,
    check_batch,
    check_labels,
    check_output_type,
    draw_latents,
)
from ._latent_space import LatentSpaceMixin
from ._self_contained import SelfContainedMixin


class GANPipeline(LatentSpaceMixin, SelfContainedMixin, DiffusionPipeline):
    """z ~ N(0, I), image = G(z) (Goodfellow et al. 2014).

    Args:
        generator: ``forward(z, class_labels)`` with ``.sample`` [B, C, H, W] in [-1, 1]; its config
            has ``latent_dim`` and ``num_class_embeds``.
        discriminator: not needed to draw images; it travels along so that training can go on.
    """

    model_cpu_offload_seq = "generator"
    _optional_components = ["discriminator"]
    _exclude_from_cpu_offload = ["discriminator"]

    def __init__(self, generator: ModelMixin, discriminator: ModelMixin | None = None):
        super().__init__()
        self.register_modules(generator=generator, discriminator=discriminator)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return (self.generator.config["latent_dim"],)

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the model is conditioned on, if any."""
        return self.generator.config.get("num_class_embeds")

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        class_labels: int | list[int] | Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_centers: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: number of images; that of ``latents`` where they are given.
            generator: one for the batch, or a list of one per image.
            latents: z [B, latent_dim] to use instead of drawing some; for a generator with styles
                also w [B, num_styles, style_dim], which holds the class already.
            class_labels: one label, or one per image, for a class-conditional model.
            truncation_psi: in (0, 1]; below 1, z is drawn from a truncated normal (see
                ``truncate``): images are more typical and less varied.
            truncation_centers: [K, style_dim] of ``style_centers``: styles are truncated instead,
                each towards its nearest centre.
            output_type: "pil", "np" [B, H, W, C] or "pt" [B, C, H, W] in [0, 1], or "latent".
            return_dict: an ``ImagePipelineOutput``, or a tuple of one.
        Raises:
            ValueError: an argument that does not fit the model or the others.
        """
        check_output_type(output_type)
        if not 0 < truncation_psi <= 1:
            raise ValueError(f"truncation_psi={truncation_psi}: must be above 0 and at most 1")
        if latents is not None and (truncation_psi != 1 or truncation_centers is not None):
            raise ValueError(f"truncation_psi={truncation_psi}: given latents are not truncated")
        if latents is not None:
            self._check_latents(latents)
        batch_size = batch_size if latents is None else len(latents)
        check_batch(batch_size, generator)
        device = self._execution_device
        if latents is not None and latents.ndim == 3:
            if class_labels is not None:
                raise ValueError("class_labels were given, but w holds the class already")
            return self._finish(latents, None, output_type, return_dict)
        labels = check_labels(class_labels, self.num_classes, batch_size, device)
        if latents is None:
            latents = draw_latents(batch_size, self.latent_shape, generator, device)
            if truncation_centers is None:
                latents = truncate(latents, truncation_psi)
            else:
                w = self.styles(latents, labels)
                latents = self.truncate_styles(w, truncation_psi, truncation_centers)
        return self._finish(latents, labels, output_type, return_dict)

    def _decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        if latents.ndim == 3:
            return self.generator.synthesize(latents.to(self.generator.dtype)).sample
        return self.generator(latents.to(self.generator.dtype), class_labels=labels).sample


def truncate(z: Tensor, psi: float) -> Tensor:
    """The truncation trick (Brock et al. 2018, section 3.1) on standard normal numbers.

    The truncated normal on [-t, t], where t is such that a normal number falls inside with
    probability ``psi`` (0.38 means t = 0.5). It is drawn by its inverse distribution function
    rather than by resampling: so one draw gives one image, which changes smoothly with ``psi``, and
    ``psi=1`` changes nothing.
    """
    if psi == 1:
        return z
    uniform = 0.5 + psi * (torch.special.ndtr(z.double()) - 0.5)
    return torch.special.ndtri(uniform).to(z.dtype)
