"""The denoising pipeline: equal to stock diffusers where that exists, to closed forms elsewhere."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UNet2DModel,
)

from hfgen.models.transformer_pixel import PixelTransformer
from hfgen.pipelines.diffusion_pipeline import DenoisingPipeline
from tests.tiny_unet import tiny_unet as unet

SIZE = 8


def gaussian() -> PixelTransformer:
    """Its output starts at 0: under EDM the best denoiser of N(0, 0.5^2)."""
    return PixelTransformer(
        sample_size=SIZE, in_channels=1, out_channels=1, hidden_dim=16, num_layers=1
    ).eval()


def build(network, scheduler=None, **options) -> DenoisingPipeline:
    pipeline = DenoisingPipeline(network, scheduler or DDPMScheduler(), **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def conditional(**options) -> DenoisingPipeline:
    return build(unet(num_class_embeds=4), DDIMScheduler(), label_dropout=0.1, **options)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipeline, **options) -> torch.Tensor:
    defaults = {"batch_size": 2, "num_inference_steps": 4, "generator": seeded()}
    return pipeline(**{**defaults, "output_type": "pt", **options}).images


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), FlowMatchEulerDiscreteScheduler()])
def test_equals_the_stock_pipeline_bit_for_bit(scheduler):
    network = unet()
    stock = DDPMPipeline(network, scheduler)
    stock.set_progress_bar_config(disable=True)
    ours = build(network, scheduler)
    options = {"batch_size": 2, "num_inference_steps": 5, "output_type": "pt"}
    expected = stock(generator=seeded(), **options).images
    assert torch.equal(ours(generator=seeded(), **options).images, expected)


def test_predictor_and_corrector_are_the_stock_ones_bit_for_bit():
    """ScoreSdeVePipeline draws colour only and takes its images to be in [0, 1], so it is no
    export for ours; what it denoises is the same.
    """
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        time_embedding_type="fourier",
    ).eval()
    scheduler = ScoreSdeVeScheduler(sigma_max=5.0, correct_steps=2)
    stock = ScoreSdeVePipeline(network, scheduler)
    stock.set_progress_bar_config(disable=True)
    call = {"batch_size": 2, "num_inference_steps": 5}
    expected = stock(generator=seeded(), output_type="np", **call).images
    ours = build(network, scheduler)(generator=seeded(), output_type="latent", **call).images
    assert (ours.clamp(0, 1).permute(0, 2, 3, 1).numpy() == expected).all()
    assert expected.std() > 0.1


# DPMSolverSDEScheduler needs torchsde, and compatibles lists a placeholder for it.
SCHEDULERS = sorted(
    (cls for cls in DDPMScheduler().compatibles if cls.__name__ != "DPMSolverSDEScheduler"),
    key=lambda cls: cls.__name__,  # compatibles come from a set
)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # NumPy 2 in diffusers
@pytest.mark.parametrize("cls", SCHEDULERS)
def test_any_compatible_scheduler_samples(cls):
    scheduler = cls.from_config(DDPMScheduler(clip_sample=False).config)
    images = draw(build(unet(), scheduler), num_inference_steps=6)
    assert images.isfinite().all() and images.std() > 0


def test_edm_euler_samples_its_gaussian():
    """Euler on the linear ODE of N(0, 0.5^2): each step multiplies by 1 + step (1 - c_skip) / s."""
    scheduler = EDMEulerScheduler()
    pipeline = build(gaussian(), scheduler)
    latents = torch.randn(1, 1, SIZE, SIZE, generator=seeded())
    result = pipeline(latents=latents, num_inference_steps=12, output_type="latent").images
    gain = scheduler.init_noise_sigma
    for sigma, after in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        skip = 0.25 / (sigma**2 + 0.25)
        gain = gain * (1 + (after - sigma) * (1 - skip) / sigma)
    torch.testing.assert_close(result, latents * gain, rtol=1e-4, atol=1e-5)


def gaussian_gain() -> float:
    """z at 80 to z at 0.002 along the exact flow of N(0, 0.5^2)."""
    ends = [math.hypot(0.5, sigma) / math.hypot(1, sigma) for sigma in (0.002, 80.0)]
    return ends[0] / ends[1]


def test_rk45_and_inversion_are_exact_on_a_gaussian():
    pipeline = build(gaussian(), EDMEulerScheduler())
    latents = torch.randn(2, 1, SIZE, SIZE, generator=seeded()).clamp(-1.9, 1.9)
    images = pipeline(latents=latents, solver="rk45", tolerance=1e-6, output_type="latent").images
    torch.testing.assert_close(images, latents * gaussian_gain(), rtol=1e-4, atol=1e-4)
    noise = pipeline.invert(images / 2 + 0.5, tolerance=1e-6)
    torch.testing.assert_close(noise, latents, rtol=1e-3, atol=1e-3)


def test_guidance_is_linear_between_the_null_label_and_the_class():
    pipeline, sample, time = conditional(), torch.randn(2, 1, SIZE, SIZE), torch.tensor([500, 500])

    def output(scale, interval=(0.0, math.inf), **options):
        network = pipeline._guided(2, [1, 2], options.get("negative"), scale, interval)
        with torch.no_grad():
            return network(sample, time)

    with torch.no_grad():
        given = pipeline.unet(sample, time, class_labels=torch.tensor([1, 2])).sample
        null = pipeline.unet(sample, time, class_labels=torch.tensor([3, 3])).sample
        other = pipeline.unet(sample, time, class_labels=torch.tensor([0, 0])).sample
    assert not torch.allclose(given, null)
    torch.testing.assert_close(output(1.0), given)
    torch.testing.assert_close(output(0.0), null)
    torch.testing.assert_close(output(3.0), null + 3 * (given - null))
    torch.testing.assert_close(output(3.0, negative=0), other + 3 * (given - other))
    alpha_bar = float(pipeline.scheduler.alphas_cumprod[500])
    ratio = math.sqrt(1 / alpha_bar - 1)
    torch.testing.assert_close(output(3.0, (0.0, 0.99 * ratio)), given)
    torch.testing.assert_close(output(3.0, (0.0, 1.01 * ratio)), output(3.0))


def test_autoguidance_leads_away_from_the_guide():
    weaker = unet(seed=1, num_class_embeds=4)
    pipeline, sample, time = conditional(guide=weaker), torch.randn(1, 1, 8, 8), torch.tensor([9])
    labels = torch.tensor([2])
    with torch.no_grad():
        given = pipeline.unet(sample, time, class_labels=labels).sample
        weak = weaker(sample, time, class_labels=labels).sample
        output = pipeline._guided(1, 2, None, 2.0, (0.0, math.inf))(sample, time)
    torch.testing.assert_close(output, 2 * given - weak)


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), EDMEulerScheduler()])
def test_an_image_depends_on_its_own_generator_alone(scheduler):
    pipeline = build(unet(), scheduler)
    together = draw(pipeline, batch_size=3, generator=[seeded(i) for i in range(3)])
    alone = draw(pipeline, batch_size=1, generator=[seeded(2)])
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-5)


def test_a_mask_keeps_the_rest_of_the_image():
    image = torch.rand(2, 1, SIZE, SIZE, generator=seeded(3))
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1
    edited = build(unet()).edit(
        image, mask, strength=1.0, resample=2, generator=seeded(), num_inference_steps=5,
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(edited[..., SIZE // 2 :], image[..., SIZE // 2 :])
    assert (edited[..., : SIZE // 2] - image[..., : SIZE // 2]).abs().mean() > 0.05


def test_little_strength_changes_little():
    """SDEdit on a Gaussian's own denoiser: the change grows with the noise that is added."""
    pipeline = build(gaussian(), EDMEulerScheduler())
    image = torch.rand(4, 1, SIZE, SIZE, generator=seeded(3))
    changes = []
    for strength in (0.05, 0.4, 1.0):
        edited = pipeline.edit(image, strength=strength, generator=seeded(), output_type="pt")
        changes.append((edited.images - image).abs().mean().item())
    assert changes[0] < 0.02 < changes[1] < changes[2]


def test_inpainting_a_gaussian_draws_the_prior():
    """Its pixels are independent, so a masked pixel is N(0, 0.3^2) whatever stands beside it."""
    pipeline = build(gaussian(), EDMEulerScheduler(sigma_data=0.3))
    image = torch.ones(64, 1, SIZE, SIZE)
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., ::2] = 1
    edited = pipeline.edit(
        image, mask, strength=1.0, generator=seeded(), num_inference_steps=400, output_type="latent"
    ).images
    new = edited[..., ::2]
    assert new.mean().item() == pytest.approx(0, abs=0.03)
    assert new.std().item() == pytest.approx(0.3, abs=0.015)


def test_interpolation_starts_and_ends_at_its_ends():
    pipeline = build(unet(), DDIMScheduler())
    a, b = torch.randn(2, 1, 1, SIZE, SIZE, generator=seeded()).unbind()
    options = {"num_inference_steps": 3, "output_type": "pt"}
    path = pipeline.interpolate(a, b, steps=3, **options).images
    ends = torch.cat([pipeline(latents=z, **options).images for z in (a, b)])
    torch.testing.assert_close(path[[0, 2]], ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_saved_and_loaded_it_draws_the_same(kind, tmp_path):
    pipeline = conditional() if kind == "unet" else build(gaussian(), EDMEulerScheduler())
    options = {"class_labels": [0, 2], "guidance_scale": 2.0} if kind == "unet" else {}
    pipeline.save_pretrained(tmp_path)
    for again in (
        DenoisingPipeline.from_pretrained(tmp_path),
        DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        again.set_progress_bar_config(disable=True)
        assert torch.equal(draw(again, **options), draw(pipeline, **options))
        assert again.num_classes == pipeline.num_classes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"class_labels": None}, "class_labels are missing"),
        ({"class_labels": 3}, "must be from 0 to 2"),
        ({"solver": "euler"}, "solver='euler' is unknown"),
        ({"output_type": "jpg"}, "output_type='jpg'"),
        ({"latents": torch.zeros(1, 3, SIZE, SIZE)}, r"must be \[B, 1, 8, 8\]"),
    ],
)
def test_bad_arguments_are_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        draw(conditional(), **{"class_labels": 1, **call})
    assert "\n" not in str(error.value)


def test_one_step_of_predictor_and_corrector_is_refused():
    with pytest.raises(ValueError, match="takes at least 2"):
        draw(build(unet(), ScoreSdeVeScheduler()), num_inference_steps=1)


@pytest.mark.parametrize(
    ("pipeline", "labels"),
    [(build(unet()), None), (build(unet(num_class_embeds=4)), 1)],
    ids=["unconditional", "no null label"],
)
def test_guidance_without_a_null_label_is_refused(pipeline, labels):
    with pytest.raises(ValueError, match="no null label"):
        draw(pipeline, class_labels=labels, guidance_scale=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "strength=0.0"),
        ({"strength": 1.5}, "strength=1.5"),
        ({"resample": 0}, "resample=0"),
        ({"mask": torch.ones(1, SIZE, SIZE)}, "mask of shape"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
    ],
)
def test_bad_edits_are_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        build(unet()).edit(torch.rand(1, 1, SIZE, SIZE), **options)


class Recorder(UNet2DModel):
    """A network that keeps what it was told about its own earlier image."""

    def forward(self, sample, timestep, class_labels=None):
        half = sample.shape[1] // 2
        self.told = [*getattr(self, "told", []), sample[:, half:].clone()]
        return super().forward(sample, timestep)


def test_a_self_conditioned_network_is_told_the_image_of_the_step_before():
    torch.manual_seed(0)
    network = Recorder(**{**unet().config, "in_channels": 2, "out_channels": 1}).eval()
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = DenoisingPipeline(network, scheduler, self_conditioning=0.5)
    assert pipeline.latent_shape[0] == 1
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 1, SIZE, SIZE, generator=seeded())
    pipeline(latents=latents, num_inference_steps=3, output_type="latent")
    assert len(network.told) == 3 and float(network.told[0].abs().max()) == 0
    time = scheduler.timesteps[:1]
    with torch.no_grad():
        sample = torch.cat([latents, torch.zeros_like(latents)], 1)
        output = UNet2DModel.forward(network, sample, time).sample
    image = latents - time / 1000 * output  # of the linear path: x = x_t - t v
    torch.testing.assert_close(network.told[1], image, rtol=1e-4, atol=1e-5)
