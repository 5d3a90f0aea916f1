"""A transformer on patches whose layers keep magnitudes (EDM2: Karras et al. 2024, appendix B)."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from hfgen.models.layers.magnitude import MPLinear, mp_silu, mp_sum, unit
from hfgen.models.layers.transformer import (
    check_sizes,
    join_patches,
    rotary_angles,
    rotate_pairs,
    row_times,
    sinusoidal_embedding,
)


class MPBlock(nn.Module):
    """Cosine attention and a modulated layer, both joined to the stream by ``mp_sum``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.attention_out = MPLinear(width, 3 * width), MPLinear(width, width)
        self.up, self.down = MPLinear(width, 2 * width), MPLinear(2 * width, width)
        self.modulation = MPLinear(width, 2 * width)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = unit(x)  # an attention's mean of values is shorter than they are
        x = mp_sum(x, self._attend(x, cos, sin))
        scale = 1 + self.modulation(condition, self.gain)[:, None]
        return mp_sum(x, self.down(mp_silu(self.up(mp_silu(x)) * scale)))

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = unit(qkv).permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, D]
        q, k = (rotate_pairs(part, cos.to(part), sin.to(part)) for part in (q, k))
        weights = ((q @ k.transpose(-1, -2)) * (width // self.heads) ** -0.5).softmax(-1)
        mixed = weights.to(v.dtype) @ v
        return self.attention_out(mixed.transpose(1, 2).reshape(rows, tokens, width))


class MagnitudePreservingTransformer(ModelMixin, ConfigMixin):
    """Patches in, patches out, with the interface of ``UNet2DModel``.

    Normalised weights ask for another learning rate: 0.01 or so, falling (section 2.4 there).

    Args:
        sample_size: side of the images, a multiple of ``patch_size``.
        in_channels, out_channels: of the images and of the output.
        patch_size: side of a patch; each is one token.
        hidden_dim: width of the tokens, a multiple of 4 * ``num_attention_heads``.
        num_layers, num_attention_heads: depth, heads.
        num_class_embeds: number of labels, a null label included; None for no labels.

    Raises:
        ValueError: sizes that do not divide.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int = 4,
        hidden_dim: int = 256,
        num_layers: int = 6,
        num_attention_heads: int = 4,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        check_sizes(sample_size, patch_size, hidden_dim, num_attention_heads)
        self.patches_in = MPLinear(in_channels * patch_size**2, hidden_dim)
        self.time_in = MPLinear(hidden_dim, hidden_dim)
        self.class_in = MPLinear(num_class_embeds, hidden_dim) if num_class_embeds else None
        self.blocks = nn.ModuleList(
            MPBlock(hidden_dim, num_attention_heads) for _ in range(num_layers)
        )
        self.patches_out = MPLinear(hidden_dim, out_channels * patch_size**2)
        self.gain_out = nn.Parameter(torch.zeros(()))
        side = sample_size // patch_size
        # each token's own vector: rotary angles alone say only where tokens are to one another
        self.position = nn.Parameter(torch.randn(side**2, hidden_dim))
        angles = rotary_angles(side, side, hidden_dim // num_attention_heads)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Output for noisy images.

        Args:
            sample: [B, C, H, W].
            timestep: [B], or one number for all, in the unit of the scheduler (0 to 1000).
            class_labels: int64 [B], for a model with labels.
        Returns:
            ``.sample`` [B, out_channels, H, W].
        """
        condition = self._condition(sample, timestep, class_labels)
        x = self.patches_in(self._patches(sample))
        x = mp_sum(x, unit(self.position).to(x.dtype), 0.5)
        for block in self.blocks:
            x = block(x, condition, self.cos, self.sin)
        output = self._unpatch(self.patches_out(x, self.gain_out))
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _condition(self, sample: Tensor, timestep: Tensor | float, labels: Tensor | None) -> Tensor:
        known = self.config["num_class_embeds"]
        if (labels is None) != (self.class_in is None):
            raise ValueError(f"class_labels={labels} for a model with num_class_embeds={known}")
        time = row_times(timestep, sample)
        waves = 2**0.5 * sinusoidal_embedding(time, self.config["hidden_dim"])
        condition = self.time_in(waves.to(sample.dtype))
        if self.class_in is not None and labels is not None:
            one_hot = nn.functional.one_hot(labels, known).to(sample.dtype) * known**0.5
            condition = mp_sum(condition, self.class_in(one_hot), 0.5)
        return mp_silu(condition)

    def _patches(self, sample: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, C * P * P]."""
        rows, channels, size, _ = sample.shape
        p = self.config["patch_size"]
        grid = sample.reshape(rows, channels, size // p, p, size // p, p)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(rows, (size // p) ** 2, channels * p * p)

    def _unpatch(self, patches: Tensor) -> Tensor:
        size, p = self.config["sample_size"], self.config["patch_size"]
        return join_patches(patches, self.config["out_channels"], size, p)
