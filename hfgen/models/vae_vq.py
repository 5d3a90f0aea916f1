"""A convolutional autoencoder with a discrete latent map."""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hfgen.models.layers.conv import down_stack, group_norm, halved_sizes, up_stack
from hfgen.models.layers.vq import build_quantizer
from hfgen.models.layers.vq_autoencoder import QuantizedAutoencoder


class VQVAE(QuantizedAutoencoder, ModelMixin, ConfigMixin):
    """Residual encoder, quantiser, residual decoder (van den Oord et al. 2017).

    The latent map has the image's size halved once per entry of ``block_out_channels``.

    Args:
        sample_size: side of the square image in pixels.
        in_channels: channels of the image.
        out_channels: channels of the decoder's output (the likelihood's parameters); those of the
            image when None.
        block_out_channels: channels after each halving.
        layers_per_block: residual blocks per resolution.
        quantizer: its ``type`` (vq, residual, fsq, lfq, gumbel) and arguments; a codebook of 512
            vectors of 32 by default.
        num_class_embeds: number of classes; labels join the image and the latent map as constant
            planes.
        scaling_factor: 1 over the standard deviation of the codes, for models trained on them.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        out_channels: int | None = None,
        block_out_channels: tuple[int, ...] = (64, 128),
        layers_per_block: int = 1,
        quantizer: dict | None = None,
        num_class_embeds: int | None = None,
        scaling_factor: float = 1.0,
    ):
        super().__init__()
        sizes = halved_sizes("VQVAE", sample_size, block_out_channels)
        self.gradient_checkpointing = False
        classes, width = num_class_embeds or 0, block_out_channels[-1]
        self.codebook = build_quantizer(quantizer or {"type": "vq"})
        self.size = sizes[-1]
        self.down_blocks = down_stack(in_channels + classes, block_out_channels, layers_per_block)
        self.to_latents = nn.Sequential(
            group_norm(width), nn.SiLU(), nn.Conv2d(width, self.codebook.dim, 1)
        )
        self.from_latents = nn.Conv2d(self.codebook.dim + classes, width, 1)
        ends = out_channels or in_channels
        self.up_blocks = up_stack(ends, block_out_channels, layers_per_block, sizes)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent map."""
        return (self.codebook.dim, self.size, self.size)

    def encode_map(self, x: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] -> latents before quantisation, [B, *latent_shape]."""
        self._check_images(x)
        h = self._with_labels(x, class_labels)
        for block in self.down_blocks:
            h = self._run(block, h)
        return self.to_latents(h)

    def decode(
        self, z: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Codes [B, *latent_shape] -> ``sample``, the likelihood's parameters [B, out, H, W]."""
        h = self.from_latents(self._with_labels(z, class_labels))
        for block in self.up_blocks:
            h = self._run(block, h)
        return DecoderOutput(sample=h) if return_dict else (h,)
