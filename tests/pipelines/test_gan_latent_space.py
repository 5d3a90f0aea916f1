"""The latent space of every generator: styles, classes, directions, inversion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import gan, quiet, seeded

from hfgen.models.gan_biggan import BigGANDeepGenerator, BigGANGenerator
from hfgen.models.gan_dcgan import DCGANGenerator
from hfgen.models.gan_lightweight import LightweightGenerator
from hfgen.models.gan_r3gan import R3GANGenerator
from hfgen.models.gan_resnet import ResNetGenerator
from hfgen.models.gan_stylegan2 import StyleGAN2Generator
from hfgen.pipelines.gan_pipeline import GANPipeline

OPTIONS = {"sample_size": 8, "out_channels": 1, "latent_dim": 6, "num_class_embeds": 3}
GENERATORS = {
    DCGANGenerator: {"channels": 4},
    ResNetGenerator: {"channels": 8},
    BigGANGenerator: {"channels": 8},
    BigGANDeepGenerator: {"channels": 8},
    LightweightGenerator: {"channels": 8},
    R3GANGenerator: {"channels": 16, "num_layers": 1},
    StyleGAN2Generator: {"channels": 8, "style_dim": 5},
}


def make(cls=StyleGAN2Generator, **options):
    torch.manual_seed(0)
    generator = cls(**{**OPTIONS, **GENERATORS[cls], **options}).eval()
    if cls is R3GANGenerator:  # its branches start at zero
        for name, parameter in generator.named_parameters():
            if "reduce" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return quiet(GANPipeline(generator))


def z_of(rows=2):
    return torch.randn(rows, 6, generator=seeded())


def array(pipeline, **options):
    return pipeline(output_type="np", **options).images


@pytest.mark.parametrize("cls", GENERATORS)
def test_the_way_between_classes_ends_in_them(cls):
    pipeline, z = make(cls), z_of()
    way = pipeline.interpolate_classes(z, 0, 2, steps=5, output_type="np").images
    assert way.shape[0] == 10
    for row in range(2):
        ends = array(pipeline, latents=z[row].expand(2, -1), class_labels=[0, 2])
        np.testing.assert_allclose(way[[5 * row, 5 * row + 4]], ends, atol=1e-5)
    between = np.abs(np.diff(way[:5], axis=0)).mean((1, 2, 3))
    assert (between > 0).all()


@pytest.mark.parametrize("cls", GENERATORS)
@pytest.mark.parametrize("method", ["sefa", "pca"])
def test_directions_have_length_one_and_move_images(cls, method):
    pipeline, z = make(cls), z_of(1)
    labels = {"class_labels": 1}
    found = pipeline.directions(3, method, **(labels if method == "pca" else {}), num_samples=64)
    size = 5 if cls is StyleGAN2Generator else 6
    assert found.shape == (3, size)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    moved = pipeline.move(z, found[0], (0, 2), output_type="np", **labels).images
    np.testing.assert_allclose(moved[0], array(pipeline, latents=z, **labels)[0], atol=1e-5)
    assert np.abs(moved[1] - moved[0]).max() > 1e-4


@pytest.mark.parametrize("cls", [DCGANGenerator, StyleGAN2Generator])
def test_sefa_is_the_eigenvectors_of_the_first_weights(cls):
    """Shen & Zhou 2021, equation 5, by an eigendecomposition of A^T A."""
    pipeline = make(cls)
    if cls is DCGANGenerator:
        weight = pipeline.generator.project[0].weight[:, :6]
    else:
        layers = [m for m in pipeline.generator.modules() if hasattr(m, "affine")]
        weight = torch.cat([layer.affine.weight for layer in layers])
    values, vectors = torch.linalg.eigh((weight.T @ weight).detach())
    cosine = (pipeline.directions(3) * vectors.T.flip(0)[:3]).sum(1).abs()
    torch.testing.assert_close(cosine, torch.ones(3), rtol=0, atol=1e-4)


class Line(DCGANGenerator):
    """A generator whose image is one direction of z, for a closed form."""

    def forward(self, z, class_labels=None):
        image = torch.zeros(len(z), 1, 8, 8)
        image[:, 0, 0, 0] = 0.1 * (z @ torch.tensor([0.6, 0.0, 0.8, 0, 0, 0]))
        return type(super().forward(z[:1]))(sample=image)


def test_pca_finds_the_only_direction_that_matters():
    options = {k: v for k, v in OPTIONS.items() if k != "num_class_embeds"}
    pipeline = quiet(GANPipeline(Line(**options, channels=4).eval()))
    (found,) = pipeline.directions(1, "pca", num_samples=500)
    # the other coordinates correlate with it by chance alone, 1 / sqrt(500)
    assert abs(found @ torch.tensor([0.6, 0.0, 0.8, 0, 0, 0])) > 0.99


def test_styles_may_stand_wherever_latents_may():
    pipeline, z = make(), z_of()
    w = pipeline.styles(z, [0, 1])
    expected = array(pipeline, latents=z, class_labels=[0, 1])
    np.testing.assert_allclose(array(pipeline, latents=w), expected, atol=1e-5)
    way = pipeline.interpolate(w[:1], w[1:], steps=3, mode="linear", output_type="np").images
    np.testing.assert_allclose(way[[0, 2]], expected, atol=1e-5)


def test_style_mixing_takes_layers_from_both():
    pipeline, z = make(), z_of()
    w = pipeline.styles(z, 0)
    mixed = pipeline.mix_styles(z[:1], z[1:], 2, class_labels=0, output_type="np").images
    expected = array(pipeline, latents=torch.cat([w[:1, :2], w[1:, 2:]], 1))
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    same = pipeline.mix_styles(z, z, class_labels=0, output_type="np").images
    np.testing.assert_allclose(same, array(pipeline, latents=z, class_labels=0), atol=1e-5)


def test_truncation_in_w():
    pipeline = make()
    center = pipeline.style_centers(class_labels=1)
    draws = {"batch_size": 3, "class_labels": 1, "truncation_centers": center}

    def w(psi):
        latent = {"output_type": "latent", "generator": seeded()}
        return pipeline(**draws, **latent, truncation_psi=psi).images

    full = pipeline.styles(torch.randn(3, 6, generator=seeded()), 1)
    torch.testing.assert_close(w(1.0), full, rtol=0, atol=1e-6)
    torch.testing.assert_close(w(0.25), center + 0.25 * (full - center), rtol=0, atol=1e-6)
    many = pipeline.styles(torch.randn(2048, 6, generator=seeded(0)), 1)[:, 0]
    torch.testing.assert_close(center[0], many.mean(0), rtol=0, atol=1e-5)


def test_several_centers_lie_nearer_than_one():
    pipeline = make()
    w = pipeline.styles(torch.randn(500, 6, generator=seeded(5)), 0)[:, 0]
    one, four = (pipeline.style_centers(k, class_labels=0) for k in (1, 4))
    assert four.shape == (4, 5)
    assert torch.cdist(w, four).amin(1).mean() < 0.95 * torch.cdist(w, one).amin(1).mean()
    pulled = pipeline.truncate_styles(w[:, None].expand(-1, 6, -1), 0.0, four)
    assert torch.cdist(pulled[:, 0], four).amin(1).max() < 1e-5


@pytest.mark.parametrize("cls", [DCGANGenerator, StyleGAN2Generator])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_inversion_finds_an_image_that_the_generator_made(cls, weight):
    classes = {"num_class_embeds": 3}
    pipeline = make(cls, **({"norm": "none"} if cls is DCGANGenerator else {}))
    pipeline.register_modules(discriminator=gan(**classes)[1])
    images = pipeline(latents=z_of(), class_labels=[0, 2], output_type="pt").images
    options = {"feature_weight": weight, "num_candidates": 8, "generator": seeded(7)}
    found = pipeline.invert(images, [0, 2], steps=150, learning_rate=0.1, **options)
    labels = {} if found.latents.ndim == 3 else {"class_labels": [0, 2]}
    again = pipeline(latents=found.latents, output_type="pt", **labels).images
    error = 4 * (again - images).square().mean((1, 2, 3))  # on [-1, 1]
    torch.testing.assert_close(error, found.error, rtol=1e-2, atol=1e-5)
    assert found.error.max() < 0.05 * (2 * images - 1).var()
    short = pipeline.invert(images, [0, 2], steps=1, **{**options, "generator": seeded(7)})
    assert (found.error < short.error).all()
    assert all(p.grad is None for p in pipeline.generator.parameters())


def test_inversion_with_given_features():
    pipeline, seen = make(DCGANGenerator), []

    def features(x):
        seen.append(x.shape)
        return torch.nn.functional.avg_pool2d(x, 2)

    images = pipeline(latents=z_of(), class_labels=0, output_type="np").images
    pipeline.invert(images, 0, steps=2, features=features, num_candidates=1)
    assert set(seen) == {(2, 1, 8, 8)} and len(seen) == 5  # the target, a candidate, three steps


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: p.invert(torch.zeros(1, 1, 9, 9), 0), r"must be \[B, 1, 8, 8\]"),
        (lambda p: p.invert(torch.zeros(1, 1, 8, 8), 7), "must be from 0 to 2"),
        (lambda p: p.invert(torch.zeros(1, 1, 8, 8)), "class_labels are missing"),
        (lambda p: p.invert(torch.zeros(1, 1, 8, 8), 0, steps=0), "steps=0: must be at least 1"),
        (lambda p: p.invert(torch.zeros(1, 1, 8, 8), 0, learning_rate=0), "learning_rate=0"),
        (lambda p: p.directions(0), "num_directions=0: must be from 1 to 5"),
        (lambda p: p.directions(1, "ica"), "method='ica' is unknown; valid: sefa, pca"),
        (lambda p: p.move(z_of(), torch.zeros(3), class_labels=0), r"must be \[5\]"),
        (lambda p: p.mix_styles(z_of(), z_of(), 6, class_labels=0), "must be from 1 to 3"),
        (lambda p: p.mix_styles(z_of(), z_of(1), class_labels=0), "2 coarse and 1 fine"),
        (lambda p: p.style_centers(0, class_labels=0), "num_centers=0: must be from 1 to 2048"),
        (lambda p: p.interpolate_classes(z_of(), 0, 3), "must be from 0 to 2"),
        (lambda p: p.interpolate_classes(z_of(), 0, 1, steps=1), "steps=1: must be at least 2"),
        (lambda p: p(latents=torch.zeros(1, 4, 5), class_labels=0), "w holds the class already"),
        (lambda p: p(latents=torch.zeros(1, 4, 6)), r"must be \[B, 4, 5\]"),
        (lambda p: p(class_labels=0, truncation_centers=torch.zeros(5)), r"must be \[K, 5\]"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_line(call, said):
    with pytest.raises(ValueError, match=said) as caught:
        call(make())
    assert "\n" not in str(caught.value)


def test_without_styles_one_line_says_so():
    pipeline = make(DCGANGenerator)
    with pytest.raises(ValueError, match=r"DCGANGenerator has no styles \(W\): use z"):
        pipeline.mix_styles(z_of(), z_of(), class_labels=0)
