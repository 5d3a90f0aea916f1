"""StyleGAN2's parts against explicit formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hfgen.models.gan_stylegan2 import (
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    unit_rms,
    upsample_image,
)
from hfgen.models.layers.equalized import (
    EqualConv2d,
    EqualLinear,
    ModulatedConv2d,
    minibatch_stddev,
)
from hfgen.models.layers.resample import blur

TAPS = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8
KERNEL = torch.outer(TAPS, TAPS)[None, None]


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulated_convolution_is_one_set_of_weights_for_each_sample(up, demodulate):
    torch.manual_seed(0)
    layer = ModulatedConv2d(3, 5, 3, 4, up=up, demodulate=demodulate).double()
    torch.nn.init.normal_(layer.bias)
    x, w = torch.randn(6, 3, 8, 8).double(), torch.randn(6, 4).double()
    expected = []
    for row, style in zip(x, layer.affine(w), strict=True):
        weight = style[None, :, None, None] * layer.weight / 27**0.5  # equation 1
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()  # eq. 3
        if up:
            y = F.conv_transpose2d(row[None], weight.transpose(0, 1), stride=2)
            kernel = (4 * KERNEL).expand(5, 1, 4, 4)
            y = F.conv2d(y, kernel, padding=1, groups=5)
        else:
            y = F.conv2d(row[None], weight, padding=1)
        expected.append(y + layer.bias[:, None, None])
    torch.testing.assert_close(layer(x, w), torch.cat(expected), rtol=1e-6, atol=1e-8)


def test_demodulation_gives_unit_variance():
    torch.manual_seed(0)
    layer = ModulatedConv2d(16, 16, 3, 4)
    y = layer(torch.randn(64, 16, 16, 16), 5 * torch.randn(64, 4))[:, :, 2:-2, 2:-2]
    assert abs(y.std() - 1) < 0.05


def test_blur_and_upsample():
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    expected = F.conv2d(x, KERNEL.expand(3, 1, 4, 4), padding=2, groups=3)
    torch.testing.assert_close(blur(x, 2), expected)
    inside = F.interpolate(x, scale_factor=2.0, mode="bilinear")[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(upsample_image(x)[:, :, 1:-1, 1:-1], inside)  # bilinear, half-pixel


def test_equalised_layers_start_at_unit_variance():
    torch.manual_seed(0)
    assert abs(EqualLinear(256, 256, rate=0.01)(torch.randn(512, 256)).std() - 1) < 0.05
    assert abs(EqualConv2d(32, 32, 3)(torch.randn(8, 32, 16, 16))[..., 1:-1].std() - 1) < 0.1


def test_minibatch_stddev():
    x = torch.randn(8, 3, 2, 2)
    out = minibatch_stddev(x, 4)
    assert out.shape == (8, 4, 2, 2) and torch.equal(out[:, :3], x)
    expected = x[4:].var(0, unbiased=False).sqrt().mean()
    torch.testing.assert_close(out[4:, 3], expected.expand(4, 2, 2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out[:4], minibatch_stddev(x[:4], 4))  # a split changes nothing
    with pytest.raises(ValueError, match="groups of 4 images, which 6"):
        minibatch_stddev(x[:6], 4)
    with pytest.raises(ValueError, match="groups of 4 images, which 1"):
        StyleGAN2Discriminator(8, 1, channels=8)(torch.zeros(1, 1, 8, 8))


def test_styles_act_on_their_own_layers():
    """Mixing w at layer k leaves everything before it; one w for all layers is ``forward``."""
    torch.manual_seed(0)
    generator = StyleGAN2Generator(16, 3, latent_dim=6, style_dim=8, channels=8)
    z = torch.randn(2, 6)
    w = generator.map(z)
    assert w.shape == (2, generator.num_styles, 8) and generator.num_styles == 6
    assert torch.equal(generator.synthesize(w).sample, generator(z).sample)
    images = []
    for k in range(generator.num_styles):
        mixed = w.clone()
        mixed[0, k] = w[1, k]
        images.append(generator.synthesize(mixed).sample)
        assert not torch.equal(images[-1][0], generator(z).sample[0])
        assert torch.equal(images[-1][1], generator(z).sample[1])


def test_mapping_does_not_see_the_length_of_z():
    generator = StyleGAN2Generator(8, 1, latent_dim=6, style_dim=8, channels=8)
    z = torch.randn(2, 6)
    torch.testing.assert_close(generator.map(3 * z), generator.map(z), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unit_rms(z).square().mean(1), torch.ones(2))
