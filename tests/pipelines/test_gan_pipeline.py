"""GANPipeline: what it draws, truncation, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import draw, gan, quiet, seeded
from scipy.stats import kstest, truncnorm

from hfgen.pipelines.gan_pipeline import GANPipeline, truncate


def latents(pipeline, **options):
    return pipeline(output_type="latent", **options).images


def test_images_are_the_generators(gan_pipeline):
    z = torch.randn(3, 4, generator=seeded())
    images = gan_pipeline(latents=z, output_type="pt").images
    expected = (gan_pipeline.generator(z).sample.detach() + 1) / 2
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_grey_and_colour(channels, mode):
    pipeline = quiet(GANPipeline(gan(channels)[0]))
    (image,) = pipeline(generator=seeded()).images
    assert image.mode == mode and image.size == (8, 8)
    array = pipeline(generator=seeded(), output_type="np").images
    np.testing.assert_array_equal(
        np.asarray(image).reshape(8, 8, channels), (array[0] * 255).round().astype(np.uint8)
    )


def test_a_list_of_generators_gives_each_image_whatever_the_batch(gan_pipeline):
    generators = [seeded(i) for i in range(5)]
    together = gan_pipeline(batch_size=5, generator=generators, output_type="np").images
    for i in range(5):
        alone = gan_pipeline(generator=[seeded(i)], output_type="np").images
        np.testing.assert_allclose(alone[0], together[i], atol=1e-6)


def test_the_discriminator_is_optional_and_travels_along(gan_pipeline, tmp_path):
    gan_pipeline.save_pretrained(tmp_path / "both")
    both = quiet(GANPipeline.from_pretrained(tmp_path / "both"))
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    torch.testing.assert_close(
        both.discriminator(x).logits, gan_pipeline.discriminator(x).logits, rtol=0, atol=0
    )
    GANPipeline(gan_pipeline.generator).save_pretrained(tmp_path / "one")
    one = quiet(GANPipeline.from_pretrained(tmp_path / "one"))
    assert one.discriminator is None
    np.testing.assert_array_equal(draw(one), draw(both))


def test_conditional():
    pipeline = quiet(GANPipeline(gan(num_class_embeds=3)[0]))
    each = draw(pipeline, class_labels=[0, 1, 2, 1])
    one = draw(pipeline, class_labels=1)
    np.testing.assert_array_equal(each[[1, 3]], one[[1, 3]])
    assert not np.allclose(each[0], one[0])


@pytest.mark.parametrize("bound", [0.5, 1.0, 2.0])
def test_truncation_draws_the_truncated_normal(bound):
    """Brock et al. resample what falls outside; the distribution of the result is scipy's."""
    inside = torch.special.erf(torch.tensor(bound / 2**0.5)).item()
    z = truncate(torch.randn(20_000, generator=seeded()), inside)
    assert z.abs().max() <= bound + 1e-5
    assert kstest(z.numpy(), truncnorm(-bound, bound).cdf).pvalue > 0.01


def test_truncation_is_smooth_monotone_and_ends_in_nothing():
    z = torch.randn(1000, generator=seeded())
    assert truncate(z, 1.0) is z
    torch.testing.assert_close(truncate(z, 1 - 1e-12), z, rtol=0, atol=1e-4)
    order = z.argsort()
    assert (truncate(z, 0.7)[order].diff() >= 0).all()
    norms = [truncate(z, psi).norm() for psi in (0.1, 0.4, 0.7, 0.95, 1.0)]
    assert norms == sorted(norms)
    far = torch.tensor([-8.0, 8.0])
    assert truncate(far, 0.99).isfinite().all()


def test_truncation_reaches_the_pipeline(gan_pipeline):
    z = latents(gan_pipeline, batch_size=50, generator=seeded(), truncation_psi=0.5)
    expected = truncate(latents(gan_pipeline, batch_size=50, generator=seeded()), 0.5)
    torch.testing.assert_close(z, expected)


def test_interpolation_and_traversal(gan_pipeline):
    a, b = torch.randn(2, 1, 4, generator=seeded())
    path = gan_pipeline.interpolate(a, b, steps=3, output_type="np").images
    ends = gan_pipeline(latents=torch.cat([a, b]), output_type="np").images
    np.testing.assert_allclose(path[[0, 2]], ends, atol=1e-5)
    assert len(gan_pipeline.traverse(a, [0], (-1, 1)).images) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": -1}, "batch_size=-1: must be at least 1"),
        ({"batch_size": 1, "generator": [seeded(), seeded()]}, "2 generators for batch_size=1"),
        ({"output_type": "jpg"}, "output_type='jpg' is unknown"),
        ({"truncation_psi": 0.0}, "truncation_psi=0.0: must be above 0 and at most 1"),
        ({"truncation_psi": 1.5}, "truncation_psi=1.5: must be above 0 and at most 1"),
        ({"latents": torch.zeros(1, 4), "truncation_psi": 0.5}, "given latents are not truncated"),
        ({"latents": torch.zeros(2, 5)}, r"latents of shape \[2, 5\]: must be \[B, 4\]"),
        ({"class_labels": 0}, "the model has no classes"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(gan_pipeline, options, said):
    with pytest.raises(ValueError, match=said) as caught:
        gan_pipeline(**options)
    assert "\n" not in str(caught.value)
