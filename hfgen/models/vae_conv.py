"""A convolutional VAE with a flat latent."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hfgen.models.layers.conditioning import one_hot_labels
from hfgen.models.layers.conv import down_stack, group_norm, halved_sizes, up_stack
from hfgen.models.layers.posterior import Posterior, VAEOutput
from hfgen.models.layers.posterior_families import build_posterior
from hfgen.models.layers.scale import scale_head


class ConvVAE(ModelMixin, ConfigMixin):
    """Residual encoder and decoder around a flat latent.

    The first convolution already halves the image, so that no residual block runs at full
    resolution: that is what makes it fast on a CPU. Any size of at least 2^len(block_out_channels)
    works; odd ones are rounded up on the way down and named on the way up
    (28 -> 14 -> 7 -> 4 -> 7 -> 14 -> 28).

    Args:
        sample_size: side of the square image in pixels.
        in_channels: channels of the image.
        out_channels: channels of the decoder's output (the likelihood's parameters); those of the
            image when None.
        block_out_channels: channels after each halving.
        layers_per_block: residual blocks per resolution.
        latent_dim: length of the latent.
        posterior: its ``type`` ("gaussian", "planar", "radial", "iaf", "maf", "vmf", "poincare")
            and options; a diagonal Gaussian by default.
        shared_scale: the second half of the decoder's channels is one learned value each
            (sigma-VAE), rather than predicted per pixel.
        num_class_embeds: number of classes; labels join the image as constant planes and the latent
            as one-hot vectors.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        out_channels: int | None = None,
        block_out_channels: tuple[int, ...] = (32, 64, 128),
        layers_per_block: int = 1,
        latent_dim: int = 32,
        posterior: dict | None = None,
        shared_scale: bool = False,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        sizes = halved_sizes("ConvVAE", sample_size, block_out_channels)
        self.gradient_checkpointing = False
        classes, width = num_class_embeds or 0, block_out_channels[-1]
        self.inner_shape = (width, sizes[-1], sizes[-1])
        features = width * sizes[-1] ** 2

        self.down_blocks = down_stack(in_channels + classes, block_out_channels, layers_per_block)
        self.head = build_posterior(posterior, latent_dim, features)
        self.to_features = nn.Sequential(group_norm(width), nn.SiLU(), nn.Flatten())
        self.to_posterior = nn.Linear(features, latent_dim + self.head.spread_size)
        self.from_latent = nn.Linear(latent_dim + classes, features)
        predicted, self.scale = scale_head(shared_scale, out_channels or in_channels)
        self.up_blocks = up_stack(predicted, block_out_channels, layers_per_block, sizes)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return (self.config["latent_dim"],)

    def _run(self, block: nn.Module, h: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, h)  # type: ignore[misc]
        return block(h)

    def encode(
        self, x: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[Posterior]:
        """Images [B, C, H, W] in [-1, 1] -> ``latent_dist``, over [B, latent_dim].

        Raises:
            ValueError: images of another size, or labels that do not fit the model.
        """
        size = self.config["sample_size"]
        if tuple(x.shape[1:]) != (self.config["in_channels"], size, size):
            expected = (self.config["in_channels"], size, size)
            raise ValueError(f"ConvVAE: images must be [B, {expected}], got {tuple(x.shape)}")
        labels = one_hot_labels(class_labels, self.config["num_class_embeds"], len(x), x)
        h = torch.cat([x, labels[:, :, None, None].expand(-1, -1, size, size)], dim=1)
        for block in self.down_blocks:
            h = self._run(block, h)
        features = self.to_features(h)
        sizes = [self.config["latent_dim"], self.head.spread_size]
        posterior = self.head(*self.to_posterior(features).split(sizes, dim=1), features)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)  # type: ignore[arg-type]

    def decode(
        self, z: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents [B, latent_dim] -> ``sample``, the likelihood's parameters [B, out_channels, H,
        W].
        """
        labels = one_hot_labels(class_labels, self.config["num_class_embeds"], len(z), z)
        h = self.from_latent(torch.cat([z, labels], dim=1)).unflatten(1, self.inner_shape)
        for block in self.up_blocks:
            h = self._run(block, h)
        h = self.scale(h)
        return DecoderOutput(sample=h) if return_dict else (h,)

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> VAEOutput | tuple:
        """Reconstruct: encode, take the posterior's mode (or draw from it), decode."""
        posterior = self.encode(sample, class_labels, return_dict=False)[0]
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        params = self.decode(z, class_labels, return_dict=False)[0]
        return (
            VAEOutput(sample=params, latent_dist=posterior) if return_dict else (params, posterior)
        )
