"""What autoencoders with quantised latents share, whatever the shape of their codes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

from hfgen.models.layers.conditioning import one_hot_labels
from hfgen.models.layers.posterior import Deterministic, VAEOutput
from hfgen.models.layers.vq import Quantized


class QuantizedAutoencoder:
    """``encode`` and ``forward`` of a model with ``encode_map``, ``decode`` and a ``codebook``."""

    codebook: Any
    config: Any
    gradient_checkpointing: bool
    _gradient_checkpointing_func: Any

    @abstractmethod
    def encode_map(self, x: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] -> latents before quantisation, [B, *latent_shape]."""

    @abstractmethod
    def decode(
        self, z: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Codes [B, *latent_shape] -> ``sample``, the likelihood's parameters [B, out, H, W]."""

    def quantize(self, latents: Tensor) -> Quantized:
        """Latents [B, *latent_shape] -> codes of the same shape, indices and losses."""
        return self.codebook(latents)

    def encode(
        self, x: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[Deterministic]:
        """Images [B, C, H, W] in [-1, 1] -> ``latent_dist``, all mass on the codes.

        Raises:
            ValueError: images of another size, or labels that do not fit the model.
        """
        codes = self.quantize(self.encode_map(x, class_labels)).codes
        posterior = Deterministic(codes.to(x.dtype))  # a codebook may stay in float32
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)  # type: ignore[arg-type]

    def forward(
        self, sample: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> VAEOutput | tuple:
        """Reconstruct: encode, quantise, decode."""
        posterior = self.encode(sample, class_labels, return_dict=False)[0]  # type: ignore[index]
        params = self.decode(posterior.mode(), class_labels, return_dict=False)[0]  # type: ignore[index]
        return (
            VAEOutput(sample=params, latent_dist=posterior) if return_dict else (params, posterior)
        )

    def _check_images(self, x: Tensor) -> None:
        size = self.config["sample_size"]
        expected = (self.config["in_channels"], size, size)
        if tuple(x.shape[1:]) != expected:
            name = type(self).__name__
            raise ValueError(f"{name}: images must be [B, {expected}], got {tuple(x.shape)}")

    def _run(self, block: nn.Module, h: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, h)
        return block(h)

    def _with_labels(self, h: Tensor, class_labels: Tensor | None) -> Tensor:
        labels = one_hot_labels(class_labels, self.config["num_class_embeds"], len(h), h)
        return torch.cat([h, labels[:, :, None, None].expand(-1, -1, *h.shape[2:])], dim=1)
