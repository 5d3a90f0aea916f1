"""The wavelet filters of ADA: against closed forms, numpy's convolution and spectra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hfgen.objectives import gan_filters as filters
from hfgen.objectives import gan_transforms as transforms
from hfgen.rng import Rng


@pytest.mark.parametrize(("taps", "moments"), [(filters.SYM2, 2), (filters.SYM6, 6)])
def test_symlets_are_orthonormal_with_vanishing_moments(taps, moments):
    """|H(w)|^2 / 2 = cos(w/2)^2N sum_k C(N-1+k, k) sin(w/2)^2k (Daubechies 1992, section 6.1)."""
    w = np.linspace(0, np.pi, 33)
    power = np.abs(np.exp(-1j * np.outer(w, np.arange(len(taps)))) @ taps) ** 2 / 2
    sine = np.sin(w / 2) ** 2
    terms = [math.comb(moments - 1 + k, k) * sine**k for k in range(moments)]
    np.testing.assert_allclose(power, (1 - sine) ** moments * sum(terms), atol=1e-11)
    np.testing.assert_allclose(sum(taps), math.sqrt(2), atol=1e-12)


def test_bands_lie_where_they_should():
    """They sum to an impulse; each has its largest gain inside its octave, and is a wavelet's."""
    bands = filters.band_filters().numpy()
    np.testing.assert_allclose(bands.sum(0), np.eye(43)[21], atol=1e-12)
    w = np.linspace(0, np.pi, 257)
    phases = np.exp(-1j * np.outer(w, np.arange(43) - 21))
    gains = phases @ bands.T
    np.testing.assert_allclose(gains.imag, 0, atol=1e-12)

    def low(k):
        return np.abs(np.exp(-1j * np.outer(k * w, np.arange(4))) @ filters.SYM2) ** 2 / 2

    np.testing.assert_allclose(gains.real[:, 3], 1 - low(1), atol=1e-12)
    np.testing.assert_allclose(gains.real[:, 0], low(1) * low(2) * low(4), atol=1e-12)
    edges = [(0, 1 / 8), (1 / 8, 1 / 4), (1 / 4, 1 / 2), (1 / 2, 1)]
    for band, (start, stop) in zip(gains.real.T, edges, strict=True):
        assert start <= w[band.argmax()] / np.pi <= stop


@pytest.mark.parametrize("shape", [(16, 12), (64, 5)])
def test_band_filter_is_a_convolution(shape):
    """Against numpy's, of the image mirrored at its edges as far as the filter reaches."""
    images = torch.randn(3, 2, *shape, dtype=torch.float64)
    gains = transforms.band_gains(3, 1.0, Rng(0)).double()
    kernels = (gains @ filters.band_filters()).numpy()
    found = transforms.band_filter(images, 1.0, Rng(0))
    for row, kernel in enumerate(kernels):
        padded = np.pad(images[row].numpy(), ((0, 0), (21, 21), (21, 21)), mode="symmetric")
        for axis in (1, 2):
            padded = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
        np.testing.assert_allclose(found[row].numpy(), padded, atol=1e-6)


def test_gains_are_one_without_and_keep_natural_power_with():
    torch.testing.assert_close(transforms.band_gains(8, 0.0, Rng(0)), torch.ones(8, 4))
    gains = transforms.band_gains(10_000, 1.0, Rng(1)).double()
    spectrum = torch.tensor(transforms.SPECTRUM).double()
    half = transforms.band_gains(10_000, 0.5, Rng(2))
    untouched = ((half - 1).abs() < 1e-6).all(1).double().mean()
    assert abs(untouched - 0.5**4) < 0.01  # each band on its own
    # One band alone, x = 2^n times: power is kept exactly; log ratios of bands have no drift.
    alone = half[(half[:, 1:] - half[:, 1:2]).abs().amax(1) < 1e-6].double()
    torch.testing.assert_close(
        (alone.square() * spectrum).sum(1), torch.ones(len(alone)).double(), rtol=1e-5, atol=1e-5
    )
    ratios = (gains[:, 1:] / gains[:, :1]).log2()
    assert ratios.mean(0).abs().max() < 0.04
    assert (ratios.std(0) - math.sqrt(2)).abs().max() < 0.04


def test_up_and_down_again_is_the_identity():
    images = torch.randn(4, 1, 16, 20, dtype=torch.float64)
    same = transforms.warp_oversampled(images, torch.eye(3).expand(4, 3, 3))
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    torch.testing.assert_close(same[inner], images[inner], rtol=0, atol=1e-6)
    ones = torch.ones(4, 1, 16, 20, dtype=torch.float64)
    maps = transforms.geometry(ones, 1.0, Rng(3))
    torch.testing.assert_close(transforms.warp_oversampled(ones, maps), ones)


def test_oversampling_keeps_what_bilinear_sampling_blurs():
    """A turned wave, known in closed form: the error is a small part of the plain warp's."""
    side = 64
    at = (torch.arange(side, dtype=torch.float64) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    turn = transforms._rotation(torch.tensor([0.3], dtype=torch.float64))

    def wave(x, y):
        return torch.sin(9 * math.pi * x) * torch.sin(10 * math.pi * y)

    points = turn[0] @ torch.stack([x.flatten(), y.flatten(), torch.ones(side**2).double()])
    expected = wave(points[0], points[1]).view(side, side)
    inner = (slice(16, 48), slice(16, 48))
    plain, fine = (
        (warp(wave(x, y)[None, None], turn)[0, 0][inner] - expected[inner]).abs().mean()
        for warp in (transforms.warp, transforms.warp_oversampled)
    )
    assert fine < 0.4 * plain, (fine, plain)


@pytest.mark.parametrize("change", ["filter", "oversampled"])
def test_twice_differentiable(change):
    images = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    maps = transforms.geometry(images, 1.0, Rng(6)).double()

    def energy(x):
        if change == "filter":
            return transforms.band_filter(x, 1.0, Rng(7)).square()
        return transforms.warp_oversampled(x, maps).square()

    assert torch.autograd.gradcheck(energy, images)
    assert torch.autograd.gradgradcheck(energy, images)
