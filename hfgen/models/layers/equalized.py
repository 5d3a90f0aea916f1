"""Layers with an equalised learning rate (Karras et al. 2018, progressive growing, section 4.1).

Weights are kept at N(0, 1) and scaled by 1 / sqrt(fan_in) at each call, so that Adam moves all
layers at one pace.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.models.layers.resample import blur


def activate(x: Tensor) -> Tensor:
    """sqrt(2) LeakyReLU(x), slope 0.2."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class EqualLinear(nn.Module):
    """x W^T / sqrt(fan_in) * rate + bias * rate.

    Args:
        rate: multiplies the learning rate (0.01 in the mapping network).
        bias: the initial bias.
    """

    def __init__(self, inputs: int, outputs: int, rate: float = 1.0, bias: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        scale = self.rate / math.sqrt(self.weight.shape[1])
        return F.linear(x, self.weight * scale, self.bias * self.rate)


class EqualConv2d(nn.Module):
    """A convolution with weights scaled by 1 / sqrt(fan_in); ``padding`` keeps the size by
    default.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.stride = stride
        self.padding = kernel // 2 if padding is None else padding

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / math.sqrt(self.weight[0].numel())
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ModulatedConv2d(nn.Module):
    """w'_ijk = s_i w_ijk, w''_ijk = w'_ijk / sqrt(sum_ik w'_ijk^2 + eps) (Karras et al. 2020,
    equations 1, 3).

    Scaling the input by s and the output by the demodulation is the same as one set of weights for
    each sample, without a grouped convolution.

    Args:
        style: size of w; a linear map of it gives s.
        up: double the size: transposed convolution of stride 2, then the [1, 3, 3, 1] filter.
        demodulate: divide by the expected standard deviation (not in the layers to RGB).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style: int,
        *,
        up: bool = False,
        demodulate: bool = True,
    ):
        super().__init__()
        self.affine = EqualLinear(style, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.up, self.demodulate = up, demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[B, inputs, H, W] with styles of w [B, style]."""
        weight = self.weight / math.sqrt(self.weight[0].numel())
        style = self.affine(w)
        x = x * style[:, :, None, None]
        if self.up:
            x = blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), 1, gain=4)
        else:
            x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
        if self.demodulate:
            energy = style.square() @ weight.square().sum((2, 3)).T
            x = x * (energy + 1e-8).rsqrt()[:, :, None, None]
        return x + self.bias[:, None, None]


def minibatch_stddev(x: Tensor, group: int = 4) -> Tensor:
    """x with one more channel: the mean over it of the standard deviation in groups of rows.

    Karras et al. 2018, section 3. Groups are consecutive rows, so that micro-batches whose size is
    a multiple of ``group`` change nothing, nor does judging real and generated images together.

    Raises:
        ValueError: the rows cannot be grouped.
    """
    rows = x.shape[0]
    if rows % group:
        raise ValueError(
            f"minibatch standard deviation takes groups of {group} images, which {rows} are not a "
            "multiple of"
        )
    grouped = x.unflatten(0, (-1, group))  # [B / group, group, C, H, W]
    spread = (grouped.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    channel = spread.repeat_interleave(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat([x, channel], dim=1)
