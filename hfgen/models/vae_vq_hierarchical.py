"""A quantised autoencoder whose codes form a hierarchy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hfgen.models.layers.conv import down_stack, group_norm, halved_sizes, up_stack
from hfgen.models.layers.vq_autoencoder import QuantizedAutoencoder
from hfgen.models.layers.vq_hierarchical import HierarchicalQuantizer

Choose = Callable[[int, Tensor | None], Tensor]
"""Given a level and what the levels above have decoded to, [B, C, r, r], its codes [B, D, r, r];
None above the top.
"""


class HierarchicalVQVAE(QuantizedAutoencoder, ModelMixin, ConfigMixin):
    """VQ-VAE-2 (Razavi et al. 2019, algorithm 1): coarse codes for layout, finer ones for detail.

    Each level quantises the encoder's features at its resolution together with what the codes above
    decode to; the decoder takes all levels. A latent is the sequence of all levels' codes, the
    coarsest first, [D, L]: so an autoregressive prior over it is the paper's p(top) p(bottom | top)
    in one model.

    Args:
        sample_size: side of the square image in pixels.
        in_channels: channels of the image.
        out_channels: channels of the decoder's output (the likelihood's parameters); those of the
            image when None.
        block_out_channels: channels after each halving.
        num_levels: how many of the last resolutions have codes.
        layers_per_block: residual blocks per resolution.
        quantizer: arguments of each level's ``VectorQuantizer``; 512 codes of 32 by default.
        num_class_embeds: number of classes; labels join the image and the top codes as constant
            planes.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        out_channels: int | None = None,
        block_out_channels: tuple[int, ...] = (32, 64, 64),
        num_levels: int = 2,
        layers_per_block: int = 1,
        quantizer: dict | None = None,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        depth = len(block_out_channels)
        sizes = halved_sizes("HierarchicalVQVAE", sample_size, block_out_channels)
        if not 1 <= num_levels <= depth:
            raise ValueError(
                f"HierarchicalVQVAE: num_levels must be from 1 to {depth}, the number of "
                f"block_out_channels, got {num_levels}"
            )
        self.gradient_checkpointing = False
        classes, self.num_levels = num_class_embeds or 0, num_levels
        self.sizes = sizes[: -num_levels - 1 : -1]  # of the levels, from the top
        coded = block_out_channels[: -num_levels - 1 : -1]
        options = dict(quantizer or {})
        if options.pop("type", "vq") != "vq":
            raise ValueError(
                f"quantizer: a hierarchy takes type vq alone, got {quantizer['type']!r}"  # type: ignore[index]
            )
        try:
            self.codebook = HierarchicalQuantizer(tuple(s * s for s in self.sizes), **options)
        except TypeError as error:
            raise ValueError(f"quantizer: vq does not take these options: {error}") from None
        self.down_blocks = down_stack(in_channels + classes, block_out_channels, layers_per_block)
        self.to_latents = nn.ModuleList(
            [_to_latents(c if i == 0 else 2 * c, self.codebook.dim) for i, c in enumerate(coded)]
        )
        self.from_latents = nn.ModuleList(
            [
                nn.Conv2d(self.codebook.dim + (classes if i == 0 else 0), c, 1)
                for i, c in enumerate(coded)
            ]
        )
        ends = out_channels or in_channels
        self.up_blocks = up_stack(ends, block_out_channels, layers_per_block, sizes)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent: channels and the number of codes of all levels."""
        return (self.codebook.dim, sum(self.codebook.positions))

    def _walk(self, choose: Choose, class_labels: Tensor | None) -> Tensor:
        """From the top down, each level's codes chosen on the way -> the last level's state."""
        state: Tensor | None = None
        for level, from_latents in enumerate(self.from_latents):
            if state is None:
                state = from_latents(self._with_labels(choose(level, None), class_labels))
            else:
                above = self._run(self.up_blocks[level - 1], state)
                state = above + from_latents(choose(level, above))
        assert state is not None  # there is at least one level
        return state

    def encode_map(self, x: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] -> latents before quantisation, [B, *latent_shape].

        Those below the top depend on the codes above them.
        """
        self._check_images(x)
        h, features = self._with_labels(x, class_labels), []
        for block in self.down_blocks:
            h = self._run(block, h)
            features.insert(0, h)
        latents: list[Tensor] = []

        def choose(level: int, above: Tensor | None) -> Tensor:
            seen = features[level] if above is None else torch.cat([features[level], above], dim=1)
            latents.append(self.to_latents[level](seen).flatten(2))
            side = self.sizes[level]
            return self.codebook.peek(level, latents[-1]).unflatten(2, (side, side))

        self._walk(choose, class_labels)
        return torch.cat(latents, dim=2)

    def decode(
        self, z: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Codes [B, *latent_shape] -> ``sample``, the likelihood's parameters [B, out, H, W]."""
        parts = z.split(self.codebook.positions, dim=2)
        maps = [part.unflatten(2, (s, s)) for part, s in zip(parts, self.sizes, strict=True)]
        h = self._walk(lambda level, _: maps[level], class_labels)
        for block in self.up_blocks[self.num_levels - 1 :]:
            h = self._run(block, h)
        return DecoderOutput(sample=h) if return_dict else (h,)


def _to_latents(channels: int, dim: int) -> nn.Sequential:
    return nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, dim, 1))
