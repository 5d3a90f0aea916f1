"""VAEPipeline: what it draws, encodes and walks through, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import conv_vae, draw, mlp_vae, quiet, seeded
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from hfgen.likelihoods import likelihood_from_config
from hfgen.pipelines.vae_pipeline import VAEPipeline

BERNOULLI = {"type": "bernoulli"}


class ShiftedPrior(ModelMixin, ConfigMixin):
    """N(label, temperature^2), or N(5, .) without labels."""

    @register_to_config
    def __init__(self, latent_dim: int = 4):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.full((latent_dim,), 5.0))

    def sample(self, batch_size, generator, class_labels, temperature):
        noise = randn_tensor((batch_size, self.config["latent_dim"]), generator)
        center = self.mean if class_labels is None else class_labels[:, None]
        return center + temperature * noise


def latents(pipeline, **options):
    return pipeline(output_type="latent", **options).images


def test_images_are_the_likelihoods_mean_of_the_decoder(vae_pipeline):
    z = torch.randn(3, 4, generator=seeded())
    params = vae_pipeline.vae.decode(z).sample
    expected = torch.sigmoid(params)
    images = vae_pipeline(latents=z, output_type="pt").images
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [BERNOULLI, {"type": "gaussian", "std": 0.1}, None])
def test_the_likelihood_is_kept_as_plain_values(config, tmp_path):
    pipeline = quiet(VAEPipeline(mlp_vae(), likelihood=config))
    pipeline.save_pretrained(tmp_path)
    loaded = quiet(VAEPipeline.from_pretrained(tmp_path))
    assert loaded.likelihood == likelihood_from_config(config or {"type": "gaussian"})
    np.testing.assert_array_equal(draw(loaded), draw(pipeline))


def test_an_unknown_likelihood_is_refused_at_once():
    with pytest.raises(ValueError, match="unknown likelihood 'poisson'"):
        VAEPipeline(mlp_vae(), likelihood={"type": "poisson"})


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_grey_and_colour(channels, mode):
    pipeline = quiet(VAEPipeline(conv_vae(in_channels=channels)))
    (image,) = pipeline(generator=seeded()).images
    assert image.mode == mode and image.size == (8, 8)
    array = pipeline(generator=seeded(), output_type="np").images
    assert array.shape == (1, 8, 8, channels) and array.dtype == np.float32
    tensor = pipeline(generator=seeded(), output_type="pt").images
    assert tensor.shape == (1, channels, 8, 8)
    np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    pixels = np.asarray(image).reshape(8, 8, channels)
    np.testing.assert_array_equal(pixels, (array[0] * 255).round().astype(np.uint8))


def test_a_list_of_generators_gives_each_image_whatever_the_batch(vae_pipeline):
    together = vae_pipeline(
        batch_size=5, generator=[seeded(i) for i in range(5)], output_type="np"
    ).images
    for i in range(5):
        alone = vae_pipeline(generator=[seeded(i)], output_type="np").images
        np.testing.assert_allclose(alone[0], together[i], atol=1e-6)
        plain = vae_pipeline(generator=seeded(i), output_type="np").images
        np.testing.assert_array_equal(alone, plain)


def test_large_batches_are_decoded_in_parts(vae_pipeline, monkeypatch):
    whole = draw(vae_pipeline)
    monkeypatch.setattr("hfgen.pipelines._latents.AT_ONCE", 3)
    np.testing.assert_allclose(draw(vae_pipeline), whole, atol=1e-6)
    conditional = quiet(VAEPipeline(mlp_vae(num_class_embeds=4)))
    parts = draw(conditional, class_labels=[0, 1, 2, 3])
    monkeypatch.undo()
    np.testing.assert_allclose(draw(conditional, class_labels=[0, 1, 2, 3]), parts, atol=1e-6)


def test_temperature_scales_the_prior(vae_pipeline):
    hot = latents(vae_pipeline, batch_size=3, generator=seeded(), temperature=2.0)
    one = latents(vae_pipeline, batch_size=3, generator=seeded())
    torch.testing.assert_close(hot, 2 * one)
    assert latents(vae_pipeline, generator=seeded(), temperature=0).abs().max() == 0
    assert one.std() > 0


def test_a_seed_means_one_image_in_every_dtype(vae_pipeline):
    single = draw(vae_pipeline)
    half = draw(vae_pipeline.to(torch.bfloat16))
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, single, atol=0.02)


def test_latents_come_out_and_go_in(vae_pipeline):
    z = latents(vae_pipeline, batch_size=3, generator=seeded())
    again = vae_pipeline(latents=z, output_type="np").images
    direct = vae_pipeline(batch_size=3, generator=seeded(), output_type="np").images
    np.testing.assert_array_equal(again, direct)
    (tuple_images,) = vae_pipeline(latents=z, output_type="np", return_dict=False)
    np.testing.assert_array_equal(tuple_images, direct)


def test_conditional():
    pipeline = quiet(VAEPipeline(mlp_vae(num_class_embeds=3), likelihood=BERNOULLI))
    each = draw(pipeline, class_labels=[0, 1, 2, 1])
    one = draw(pipeline, class_labels=1)
    np.testing.assert_array_equal(each[[1, 3]], one[[1, 3]])
    assert not np.allclose(each[0], one[0])
    np.testing.assert_array_equal(draw(pipeline, class_labels=torch.tensor([0, 1, 2, 1])), each)
    images = pipeline.reconstruct(one, class_labels=1, output_type="np").images
    assert images.shape == one.shape


def test_a_prior_is_a_component_like_any_other():
    pipeline = quiet(VAEPipeline(mlp_vae(), prior=ShiftedPrior()))
    z = latents(pipeline, batch_size=100, generator=seeded(), temperature=0.1)
    assert abs(z.mean() - 5) < 0.1 and z.std() < 0.2
    rows = latents(pipeline, batch_size=2, generator=[seeded(0), seeded(1)])
    torch.testing.assert_close(rows[1:], latents(pipeline, generator=seeded(1)))
    conditional = quiet(VAEPipeline(mlp_vae(num_class_embeds=9), prior=ShiftedPrior()))
    z = latents(
        conditional,
        batch_size=2,
        class_labels=[1, 8],
        generator=[seeded(0), seeded(1)],
        temperature=0,
    )
    torch.testing.assert_close(z.mean(1), torch.tensor([1.0, 8.0]))


def test_a_stock_autoencoder_will_do():
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        norm_num_groups=4,
        sample_size=8,
    ).eval()
    pipeline = quiet(VAEPipeline(vae))
    assert pipeline.latent_shape == (2, 4, 4)
    images = draw(pipeline)
    assert images.shape == (4, 8, 8, 3)
    z = pipeline.encode(images)
    expected = vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1).latent_dist.mean
    torch.testing.assert_close(z, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_encode_takes_what_comes_out(channels):
    pipeline = quiet(VAEPipeline(conv_vae(in_channels=channels)))
    options = {"batch_size": 3, "generator": seeded()}
    z = latents(pipeline, **options)
    tensor = pipeline(latents=z, output_type="pt").images
    expected = pipeline.vae.encode(tensor * 2 - 1).latent_dist.mean
    torch.testing.assert_close(pipeline.encode(tensor), expected)
    torch.testing.assert_close(pipeline.encode(tensor.permute(0, 2, 3, 1).numpy()), expected)
    pictures = pipeline(latents=z).images
    quantised = pipeline.encode(pictures)
    torch.testing.assert_close(quantised, expected, rtol=0, atol=0.05)
    torch.testing.assert_close(pipeline.encode(pictures[0]), quantised[:1], rtol=0, atol=1e-5)
    again = pipeline.reconstruct(tensor, output_type="pt").images
    direct = pipeline(latents=expected, output_type="pt").images
    torch.testing.assert_close(again, direct)


def test_pictures_of_other_modes_are_converted(vae_pipeline):
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    expected = vae_pipeline.encode(grey)
    for mode in ("RGB", "RGBA", "CMYK"):
        torch.testing.assert_close(
            vae_pipeline.encode(grey.convert(mode)), expected, rtol=0, atol=0.02
        )


def test_interpolation_starts_and_ends_where_it_should(vae_pipeline):
    a, b = torch.randn(2, 2, 4, generator=seeded())
    for mode in ("linear", "spherical"):
        path = vae_pipeline.interpolate(a, b, steps=5, mode=mode, output_type="latent").images
        assert path.shape == (10, 4)
        torch.testing.assert_close(path[[0, 5]], a)
        torch.testing.assert_close(path[[4, 9]], b, rtol=0, atol=1e-6)
    images = vae_pipeline.interpolate(a, b, steps=3, output_type="np").images
    assert images.shape == (6, 8, 8, 1)


def test_spherical_interpolation_keeps_the_norm_and_the_pace(vae_pipeline):
    a = torch.tensor([[2.0, 0, 0, 0]])
    b = torch.tensor([[0, 2.0, 0, 0]])
    path = vae_pipeline.interpolate(a, b, steps=4, output_type="latent").images
    angle = torch.linspace(0, torch.pi / 2, 4)
    expected = 2 * torch.stack([angle.cos(), angle.sin(), 0 * angle, 0 * angle], dim=1)
    torch.testing.assert_close(path, expected, rtol=0, atol=1e-6)
    straight = vae_pipeline.interpolate(a, 2 * a, steps=3, output_type="latent").images
    torch.testing.assert_close(straight[:, 0], torch.tensor([2.0, 3.0, 4.0]))
    same = vae_pipeline.interpolate(0 * a, a, steps=3, output_type="latent").images
    assert same.isfinite().all()


def test_an_attribute_moves_latents_from_those_without_to_those_with_it(vae_pipeline):
    having, lacking = (vae_pipeline(3, seeded(i), output_type="pt").images for i in (0, 1))
    direction = vae_pipeline.attribute(having, lacking)
    first, second = vae_pipeline.encode(having), vae_pipeline.encode(lacking)
    torch.testing.assert_close((second + direction).mean(0), first.mean(0))
    moved = vae_pipeline.move(second, direction, (0, 2), output_type="latent").images
    expected = torch.stack([second, second + 2 * direction], dim=1).flatten(0, 1)
    torch.testing.assert_close(moved, expected)


def test_traversal_changes_one_coordinate_at_a_time(vae_pipeline):
    z = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    path = vae_pipeline.traverse(z, [2, 0], (-1, 0, 1), output_type="latent").images
    assert path.shape == (6, 4)
    torch.testing.assert_close(path[:3, 2], torch.tensor([-1.0, 0, 1]))
    torch.testing.assert_close(path[3:, 0], torch.tensor([-1.0, 0, 1]))
    torch.testing.assert_close(path[:, [1, 3]], z[:, [1, 3]].expand(6, 2))
    assert len(vae_pipeline.traverse(z).images) == 4 * 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"batch_size": 2, "generator": [seeded()]}, "1 generators for batch_size=2"),
        ({"output_type": "jpg"}, "output_type='jpg' is unknown; valid: pil, np, pt, latent"),
        ({"temperature": -1.0}, "temperature=-1.0: must not be negative"),
        ({"latents": torch.zeros(2, 5)}, r"latents of shape \[2, 5\]: must be \[B, 4\]"),
        ({"latents": torch.zeros(4)}, r"latents of shape \[4\]: must be \[B, 4\]"),
        ({"latents": torch.zeros(0, 4)}, "batch_size=0"),
        ({"class_labels": 0}, "the model has no classes"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(vae_pipeline, options, said):
    with pytest.raises(ValueError, match=said) as caught:
        vae_pipeline(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "class_labels are missing: the model has classes 0 to 2"),
        ({"class_labels": 3}, "class_labels=3: must be from 0 to 2"),
        ({"class_labels": -1}, "class_labels=-1: must be from 0 to 2"),
        ({"class_labels": [0, 1, 2]}, "one for each of the 2 images"),
        ({"class_labels": 0.5}, "must be one integer"),
        ({"class_labels": [[0], [1]]}, "must be one integer"),
    ],
)
def test_bad_labels_are_refused_in_one_line(options, said):
    pipeline = quiet(VAEPipeline(mlp_vae(num_class_embeds=3)))
    with pytest.raises(ValueError, match=said) as caught:
        pipeline(batch_size=2, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        ("encode", (torch.zeros(1, 1, 9, 9),), r"shape \[1, 1, 9, 9\]: must be \[B, 1, 8, 8\]"),
        ("encode", (torch.full((1, 1, 8, 8), -1.0),), r"are in \[-1, -1\]: must be in \[0, 1\]"),
        ("encode", (np.full((1, 8, 8, 1), 255.0),), r"are in \[255, 255\]: must be in \[0, 1\]"),
        ("encode", (torch.full((1, 1, 8, 8), torch.nan),), "must be in"),
        ("encode", (Image.new("L", (9, 9)),), r"must be \[B, 1, 8, 8\]"),
        ("encode", ([],), "at least one"),
        ("encode", (["cat.png"],), "must hold PIL images"),
        ("encode", (np.zeros((8, 8)),), r"shape \[8, 8\]: must be \[B, 1, 8, 8\]"),
        ("encode", ("cat.png",), "images of type str"),
        ("interpolate", (torch.zeros(1, 4), torch.zeros(2, 4)), "are not comparable"),
        ("move", (torch.zeros(1, 4), torch.zeros(3)), r"direction of shape \[3\]: must be \[4\]"),
        ("interpolate", (torch.zeros(1, 3), torch.zeros(1, 3)), r"must be \[B, 4\]"),
        ("interpolate", (torch.zeros(1, 4), torch.zeros(1, 4), 1), "steps=1: must be at least 2"),
        ("interpolate", (torch.zeros(1, 4), torch.zeros(1, 4), 2, "cubic"), "'cubic' is unknown"),
        ("traverse", (torch.zeros(2, 4),), r"shape \[2, 4\]: must be \[1, 4\]"),
        ("traverse", (torch.zeros(1, 4), [4]), r"dimensions=\[4\]: must be from 0 to 3"),
        ("traverse", (torch.zeros(1, 4), []), r"dimensions=\[\]: must be from 0 to 3"),
    ],
)
def test_bad_input_of_the_other_methods(vae_pipeline, method, arguments, said):
    with pytest.raises(ValueError, match=said) as caught:
        getattr(vae_pipeline, method)(*arguments)
    assert "\n" not in str(caught.value)
