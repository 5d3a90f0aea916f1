"""A plain transformer on patches of pixels (JiT: Li & He 2025, "Back to Basics")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hfgen.models.layers.transformer import (
    ModulatedBlock,
    RMSNorm,
    check_sizes,
    join_patches,
    rotary_angles,
    row_times,
    sinusoidal_embedding,
)


class PixelTransformer(ModelMixin, ConfigMixin):
    """Large patches, a narrow linear bottleneck into the tokens, and nothing but matrix products.

    It has the interface of ``UNet2DModel``, so every pipeline for that one takes it. Large patches
    want the image as prediction, since the noise of a patch does not fit through the bottleneck
    (section 3 there): a scheduler with ``prediction_type: sample``.

    Args:
        sample_size: side of the images, a multiple of ``patch_size``.
        in_channels, out_channels: of the images and of the output.
        patch_size: side of a patch; each is one token.
        bottleneck_dim: width that a patch is squeezed through; at least as wide as the image's own
            structure, narrower than the patch.
        hidden_dim: width of the tokens, a multiple of 4 * ``num_attention_heads``.
        num_layers, num_attention_heads: depth, heads.
        num_class_embeds: number of labels, a null label included; None for no labels.
        second_time: take a second time ``r`` (MeanFlow, shortcut models).
        time_factor: what times are multiplied by before their sinusoids. 1 tells the 1000 steps of
            a chain apart; flow maps are differentiated by time and want it smooth, 0.02 or so.
        velocity_from_image: make an image inside and put out the velocity that leads to it on the
            linear path, (sample - image) / t with t = timestep / 1000, at least 0.05 (JiT, section
            4.1; for flow maps Lu et al. 2026, "pixel MeanFlow").

    Raises:
        ValueError: sizes that do not divide.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int = 4,
        bottleneck_dim: int = 64,
        hidden_dim: int = 256,
        num_layers: int = 6,
        num_attention_heads: int = 4,
        num_class_embeds: int | None = None,
        second_time: bool = False,
        time_factor: float = 1.0,
        velocity_from_image: bool = False,
    ):
        super().__init__()
        check_sizes(sample_size, patch_size, hidden_dim, num_attention_heads)
        side = sample_size // patch_size
        self.patches_in = nn.Conv2d(in_channels, bottleneck_dim, patch_size, patch_size, bias=False)
        self.tokens_in = nn.Linear(bottleneck_dim, hidden_dim)
        self.time_in = _embedding_mlp(hidden_dim)
        self.second_time_in = _embedding_mlp(hidden_dim) if second_time else None
        self.class_in = nn.Embedding(num_class_embeds, hidden_dim) if num_class_embeds else None
        heads = num_attention_heads
        self.blocks = nn.ModuleList(ModulatedBlock(hidden_dim, heads) for _ in range(num_layers))
        self.norm_out = RMSNorm(hidden_dim)
        self.modulation_out = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.patches_out = nn.Linear(hidden_dim, out_channels * patch_size**2)
        for layer in (self.modulation_out, self.patches_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = rotary_angles(side, side, hidden_dim // heads)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.gradient_checkpointing = False

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        second_timestep: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Output for noisy images.

        Args:
            sample: [B, C, H, W].
            timestep: [B], or one number for all, in the unit of the scheduler (0 to 1000).
            class_labels: int64 [B], for a model with labels.
            second_timestep: [B], for a model with a second time.
        Returns:
            ``.sample`` [B, out_channels, H, W].
        """
        condition = self._condition(sample, timestep, class_labels, second_timestep)
        x = self.tokens_in(self.patches_in(sample).flatten(2).transpose(1, 2))
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, condition, self.cos, self.sin, use_reentrant=False)
            else:
                x = block(x, condition, self.cos, self.sin)
        shift, scale = self.modulation_out(F.silu(condition))[:, None].chunk(2, dim=-1)
        patches = self.patches_out(self.norm_out(x) * (1 + scale) + shift)
        output = self._unpatch(patches)
        if self.config["velocity_from_image"]:
            t = (row_times(timestep, sample) / 1000).clamp(min=0.05)
            output = (sample[:, : output.shape[1]] - output) / t[:, None, None, None]
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def reread(
        self, second_time: bool = False, velocity_from_image: bool = False
    ) -> PixelTransformer:
        """The same weights as a flow map: where a few-step model begins from a trained flow.

        Args:
            second_time: add one, which changes nothing yet: every average velocity is the velocity.
            velocity_from_image: for a network that was trained to put out the image.
        """
        changed = {"second_time": second_time, "velocity_from_image": velocity_from_image}
        config = {k: v for k, v in self.config.items() if not k.startswith("_")}
        model = type(self)(**{**config, **{k: True for k, v in changed.items() if v}})
        if model.second_time_in is not None and self.second_time_in is None:
            nn.init.zeros_(model.second_time_in[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(model.second_time_in[-1].bias)  # type: ignore[arg-type]
        model.load_state_dict({**model.state_dict(), **self.state_dict()})
        return model

    def _condition(
        self, sample: Tensor, timestep: Tensor | float, labels: Tensor | None, second: Tensor | None
    ) -> Tensor:
        if (labels is None) != (self.class_in is None):
            known = self.config["num_class_embeds"]
            raise ValueError(f"class_labels={labels} for a model with num_class_embeds={known}")
        if (second is None) != (self.second_time_in is None):
            raise ValueError(
                f"second_timestep={second} for a model with "
                f"second_time={self.config['second_time']}"
            )
        condition = self._embed(self.time_in, timestep, sample)
        if self.second_time_in is not None and second is not None:
            condition = condition + self._embed(self.second_time_in, second, sample)
        if self.class_in is not None:
            condition = condition + self.class_in(labels)
        return condition

    def _embed(self, mlp: nn.Module, timestep: Tensor | float, sample: Tensor) -> Tensor:
        time = row_times(timestep, sample) * self.config["time_factor"]
        return mlp(sinusoidal_embedding(time, self.config["hidden_dim"]).to(sample.dtype))

    def _unpatch(self, patches: Tensor) -> Tensor:
        size, p = self.config["sample_size"], self.config["patch_size"]
        return join_patches(patches, self.config["out_channels"], size, p)


def _embedding_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
