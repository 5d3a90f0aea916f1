"""Resampling against an explicit zero-insertion and convolution, and against its adjoint."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hfgen.models.layers.resample import (
    conv_pooled,
    conv_upsampled,
    downsample,
    upsample,
)

KERNEL = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])).double()[None, None]


def test_upsample_is_zero_insertion_and_filter():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    zeros = torch.zeros(2, 3, 10, 8, dtype=torch.float64)
    zeros[:, :, ::2, ::2] = x
    padded = F.pad(zeros, (2, 0, 2, 0))
    expected = F.conv2d(padded, (KERNEL / 4).expand(3, 1, 3, 3), groups=3)
    torch.testing.assert_close(upsample(x), expected)


def test_downsample_is_filter_and_decimation():
    x = torch.randn(2, 3, 10, 8, dtype=torch.float64)
    padded = F.pad(x, (1, 0, 1, 0))
    expected = F.conv2d(padded, (KERNEL / 16).expand(3, 1, 3, 3), groups=3, stride=2)
    torch.testing.assert_close(downsample(x), expected)


def test_constants_stay_constant_inside():
    ones = torch.ones(1, 1, 6, 6)
    torch.testing.assert_close(upsample(ones)[..., 1:, 1:], torch.ones(1, 1, 11, 11))
    torch.testing.assert_close(downsample(ones)[..., 1:, 1:], torch.ones(1, 1, 2, 2))


def test_twice_differentiable():
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: upsample(x).square(), x)
    assert torch.autograd.gradgradcheck(lambda x: downsample(x).square(), x)


def test_convolutions_merged_with_resampling():
    torch.manual_seed(0)
    weight, bias = torch.randn(4, 3, 3, 3).double(), torch.randn(4).double()
    x = torch.randn(2, 3, 6, 8).double()
    big = F.interpolate(x, scale_factor=2.0)
    expected = F.conv2d(big, weight, bias, padding=1)
    torch.testing.assert_close(conv_upsampled(x, weight, bias), expected)
    expected = F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)
    torch.testing.assert_close(conv_pooled(x, weight, bias), expected)
