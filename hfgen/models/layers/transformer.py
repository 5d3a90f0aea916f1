"""Blocks of modern image transformers: RMSNorm, rotary positions, SwiGLU, adaptive modulation.

Written with plain operations only (no fused attention), so that forward-mode differentiation and
bf16 both work; at the few dozen tokens of a small image that costs nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_sizes(sample_size: int, patch_size: int, hidden_dim: int, heads: int) -> None:
    """ValueError for patches that do not fill the image, or heads that do not share the width."""
    if patch_size < 1 or sample_size % patch_size:
        raise ValueError(f"sample_size {sample_size} is not a multiple of {patch_size=}")
    if hidden_dim % (4 * heads):
        raise ValueError(
            f"hidden_dim {hidden_dim} is not a multiple of 4 * num_attention_heads={heads}"
        )


def row_times(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """The time of each row [B]; one number is for all."""
    return torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))


def join_patches(patches: Tensor, channels: int, size: int, patch_size: int) -> Tensor:
    """[B, N, C * P * P] -> [B, C, size, size]."""
    side = size // patch_size
    grid = patches.reshape(-1, side, side, channels, patch_size, patch_size)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, size, size)


def sinusoidal_embedding(time: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """[cos, sin] of ``time`` [B] at ``width`` / 2 geometric frequencies (Vaswani et al. 2017)."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=time.device) / half
    angle = time.float()[:, None] * torch.exp(-math.log(max_period) * exponent)[None]
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def rotary_angles(rows: int, columns: int, head_width: int) -> Tensor:
    """Angles [rows * columns, head_width / 2] of two-dimensional rotary positions.

    Half of the pairs turn with the row, half with the column (Heo et al. 2024, axial RoPE, with
    base 100 for grids of this size).
    """
    quarter = head_width // 4
    frequency = 100.0 ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    row = torch.arange(rows, dtype=torch.float32)[:, None, None] * frequency
    column = torch.arange(columns, dtype=torch.float32)[None, :, None] * frequency
    grid = torch.cat([row.expand(-1, columns, -1), column.expand(rows, -1, -1)], dim=2)
    return grid.reshape(rows * columns, 2 * quarter)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``x`` [..., N, D] by angles of cosine and sine [N, D / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last dimension (Zhang & Sennrich 2019), in float32."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (wide * scale * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Self-attention, queries and keys normalised (Dehghani et al. 2023), rotary positions."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, D]
        q = rotate_pairs(self.q_norm(q), cos.to(q), sin.to(q))
        k = rotate_pairs(self.k_norm(k), cos.to(k), sin.to(k))
        scores = (q @ k.transpose(-1, -2)) * (width // self.heads) ** -0.5
        mixed = scores.softmax(-1).to(v.dtype) @ v
        return self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))


class SwiGLU(nn.Module):
    """out(silu(gate x) * up x) (Shazeer 2020), hidden width 8/3 of the outer one."""

    def __init__(self, width: int):
        super().__init__()
        hidden = math.ceil(width * 8 / 3 / 32) * 32  # whole tiles of 32
        self.gate_up = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


class ModulatedBlock(nn.Module):
    """Block modulated by a condition, the identity at first (adaLN-Zero, Peebles & Xie 2022)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = SwiGLU(width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        parts = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, cos, sin)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
