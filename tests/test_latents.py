"""Latent diffusion: latents cached once, scaled by their autoencoder, sampled by stock code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    LDMPipeline,
    UNet2DModel,
)

import hfgen
from hfgen import recipe as recipes
from hfgen.data import BatchStream, TensorSource
from hfgen.data.latents import encode_source
from hfgen.errors import HfgenError
from hfgen.evaluation.likelihood import log_likelihood
from hfgen.latents import training_source, weights_hash
from hfgen.pipelines._autoencoder import (
    decode_latents,
    encode_images,
    latent_moments,
    latent_scale,
)
from hfgen.pipelines.diffusion_pipeline import DenoisingPipeline
from hfgen.run import train_recipe


def autoencoder(**options) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        **{
            "in_channels": 1,
            "out_channels": 1,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "block_out_channels": (8, 8),
            "latent_channels": 2,
            "norm_num_groups": 4,
            "scaling_factor": 1.0,
            **options,
        }
    ).eval()


def digits(count: int = 12) -> TensorSource:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)
    return TensorSource(images, torch.arange(count) % 3)


def encoded(source, vae, cache, *, flip=True, calls=None):
    @torch.no_grad()
    def encoder(images):
        if calls is not None:
            calls.append(len(images))
        return latent_moments(vae, images)

    shift, scale = latent_scale(vae)
    name = weights_hash(vae)
    return encode_source(
        source, encoder, name=name, flip=flip, shift=shift, scale=scale, cache_dir=str(cache)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """An autoencoder whose latents of MNIST have standard deviation 1, as a folder."""
    folder = tmp_path_factory.mktemp("autoencoder") / "vae"
    vae = autoencoder(sample_size=28)
    source = hfgen.data.load_source(recipes.load("mnist-ddpm").data)
    cache = tmp_path_factory.mktemp("cache")
    some = TensorSource(source.pixels(range(64)))
    _, std = encoded(some, vae, cache, flip=False).moments
    vae.register_to_config(scaling_factor=1 / std)
    vae.save_pretrained(folder)
    return folder


def overrides(saved: Path, tmp_path: Path, **more) -> dict:
    """A latent flow on 32 digits, two steps."""
    unet = {
        "type": "UNet2DModel",
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return {
        "model": {"vae": str(saved), "unet": unet, "scheduler": {"type": "DDIMScheduler"}},
        "data": {"max_images": 32, "cache_dir": str(tmp_path / "cache"), "random_flip": True},
        "pipeline": "DenoisingPipeline",
        "training": {"max_steps": 2, "total_batch_size": 8, "sample_every": 0},
        "output_dir": str(tmp_path / "run"),
        **more,
    }


def test_scaling_is_that_of_diffusers_latent_models():
    plain = autoencoder(scaling_factor=0.5)
    assert [part.tolist() for part in latent_scale(plain)] == [[0.0], [0.5]]
    shifted = autoencoder(scaling_factor=0.5, shift_factor=0.1)  # Flux: (z - shift) * scaling
    assert latent_scale(shifted)[0].tolist() == pytest.approx([0.1])
    each = autoencoder(scaling_factor=0.5, latents_mean=(1.0, 2.0), latents_std=(4.0, 5.0))
    shift, scale = latent_scale(each)  # SDXL: z * std / scaling + mean on the way back
    assert shift.tolist() == [1.0, 2.0] and scale.tolist() == pytest.approx([0.125, 0.1])
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        z = encode_images(each, images)
        expected = each.decode(each.encode(images).latent_dist.mode()).sample
        torch.testing.assert_close(decode_latents(each, z), expected)


def test_a_flip_is_the_latent_of_the_mirrored_image(tmp_path):
    vae, source = autoencoder(), digits()
    latents = encoded(source, vae, tmp_path)
    moments = latents.pixels(range(4))
    with torch.no_grad():
        images = source.batch(range(4))["images"]
        for view, shown in enumerate((images, images.flip(-1))):
            q = vae.encode(shown).latent_dist
            torch.testing.assert_close(moments[:, view, 0], q.mean, atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(moments[:, view, 1], q.std, atol=2e-3, rtol=2e-3)
    assert latents.spec.channels == 2 and latents.spec.height == latents.spec.width == 4
    assert latents.labels([0, 1, 2]).tolist() == [0, 1, 2]
    torch.testing.assert_close(latents.uint8([3]), source.uint8([3]))


def test_draws_have_the_posteriors_moments_and_do_not_depend_on_the_split(tmp_path):
    vae, source = autoencoder(scaling_factor=0.5, shift_factor=0.25), digits()
    latents = encoded(source, vae, tmp_path, flip=False)
    stream = BatchStream(latents, 12, seed=0)
    whole = stream.rows(0, 12)
    parts = [stream.rows(start, start + 4)["images"] for start in (0, 4, 8)]
    torch.testing.assert_close(torch.cat(parts), whole["images"], rtol=0, atol=0)
    order = latents.labels(range(12))
    draws = []
    for _ in range(400):
        draws.append(stream.rows(0, 12)["images"].mean())
        stream.advance()
    stored = latents.pixels(range(12))[:, 0]
    expected = ((stored[:, 0] - 0.25) * 0.5).mean()
    error = 0.5 * stored[:, 1].square().mean().sqrt() / (12 * 2 * 16 * 400) ** 0.5
    assert abs(float(torch.stack(draws).mean() - expected)) < 5 * float(error)
    assert sorted(whole["labels"].tolist()) == sorted(order.tolist())


def test_an_image_is_encoded_once(tmp_path):
    calls: list[int] = []
    vae, source = autoencoder(), digits()
    first = encoded(source, vae, tmp_path, calls=calls)
    assert sum(calls) == 2 * len(source)  # with the mirrored ones
    again = encoded(source, vae, tmp_path, calls=calls)
    assert sum(calls) == 2 * len(source)
    torch.testing.assert_close(again.pixels([5]), first.pixels([5]), rtol=0, atol=0)
    encoded(source, autoencoder(scaling_factor=0.3), tmp_path, calls=calls)  # scaled afterwards
    assert sum(calls) == 2 * len(source)
    with torch.no_grad():
        next(vae.parameters()).add_(1e-3)
    encoded(source, vae, tmp_path, calls=calls)  # other weights are another autoencoder
    assert sum(calls) == 4 * len(source)


def test_training_exports_a_pipeline_that_decodes(saved, tmp_path):
    run = hfgen.train("mnist-ddpm", **overrides(saved, tmp_path))
    pipeline = run.pipeline
    assert pipeline.unet.config.in_channels == 2 and pipeline.unet.config.sample_size == 14
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0)}
    z = pipeline(batch_size=2, output_type="latent", **call).images
    images = pipeline(
        batch_size=2, output_type="np", **{**call, "generator": call["generator"].manual_seed(0)}
    )
    with torch.no_grad():
        decoded = pipeline.vae.decode(z / pipeline.vae.config.scaling_factor).sample
    expected = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(images.images, expected, atol=1e-6)
    kept = AutoencoderKL.from_pretrained(saved).state_dict()
    for name, value in pipeline.vae.state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=0)  # frozen
    with pytest.raises(HfgenError, match="density of latents, not of images"):
        log_likelihood(pipeline, torch.zeros(2, 1, 28, 28), bound="pf_ode")
    edited = pipeline.edit(images.images[:1], mask=torch.ones(1, 1, 28, 28), **call).images
    assert edited[0].size == (28, 28)


def test_the_stock_latent_pipeline_makes_the_same_images(saved, tmp_path):
    model = {**overrides(saved, tmp_path)["model"]}
    model["vqvae"] = model.pop("vae")
    more = {"model": model, "pipeline": "LDMPipeline", "data.channels": None}
    over = overrides(saved, tmp_path, **more)
    del over["data.channels"]
    run = hfgen.train("mnist-ddpm", **over)
    stock = DiffusionPipeline.from_pretrained(run.output_dir / "pipeline")
    assert type(stock) is LDMPipeline
    ours = DenoisingPipeline(unet=stock.unet, scheduler=stock.scheduler, vae=stock.vqvae)
    images = []
    for pipeline in (stock, ours):
        pipeline.set_progress_bar_config(disable=True)
        call = {"generator": torch.Generator().manual_seed(1), "num_inference_steps": 4}
        images.append(pipeline(batch_size=2, output_type="np", **call).images)
    np.testing.assert_array_equal(*images)


def test_a_dit_trains_on_latents_and_exports_its_stock_pipeline(saved, tmp_path):
    """Classes, and the variance in the second half of its output, as DiT has it."""
    over = overrides(saved, tmp_path, pipeline="DiTPipeline")
    over["data"]["class_conditional"] = True
    over["objective"] = {"type": "diffusion", "network": "transformer", "label_dropout": 0.1}
    over["model"] = {
        "vae": str(saved),
        "transformer": {
            "type": "DiTTransformer2DModel",
            "out_channels": 4,
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            "num_embeds_ada_norm": 10,
        },
        "scheduler": {"type": "DDPMScheduler", "variance_type": "learned_range"},
    }
    recipe = recipes.load("mnist-ddpm").to_dict()
    values = {**recipe, **over, "data": {**recipe["data"], **over["data"]}}
    values["training"] = {**recipe["training"], **over["training"]}
    run = train_recipe(recipes.decode({k: v for k, v in values.items() if v is not None}))
    stock = DiffusionPipeline.from_pretrained(run.output_dir / "pipeline")
    assert type(stock) is DiTPipeline and stock.transformer.config.in_channels == 2
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    images = stock([3, 5], guidance_scale=1.0, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 28, 28, 1) and np.isfinite(images).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"channels": 3}}, "takes 1 channel.s., the data has 3; set data.channels to 1"),
        ({"data": {"binarize": "dynamic"}}, "latents are encoded once; valid: none, static"),
        ({"model": {"vae": {"pretrained": "SAVED", "scaling_factor": 0.01}}}, "not about 1; set"),
        ({"pipeline": "LDMPipeline", "model": {"vae": "nowhere/at/all"}}, "nowhere"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_one_line(saved, tmp_path, change, message):
    over = overrides(saved, tmp_path)
    for section, values in change.items():
        if isinstance(values, dict):
            over[section] = {**over[section], **values}
        else:
            over[section] = values
    vae = over["model"]["vae"]
    if isinstance(vae, dict):
        over["model"]["vae"] = {**vae, "pretrained": str(saved)}
    with pytest.raises(HfgenError, match=message) as caught:
        training_source(recipes.load("mnist-ddpm", over))
    assert "\n" not in str(caught.value)


def test_stock_pipelines_are_refused_where_they_would_decode_wrongly(saved, tmp_path):
    over = overrides(saved, tmp_path, pipeline="LDMPipeline")
    vae = {"pretrained": str(saved), "shift_factor": 0.1}
    over["model"] = {**over["model"], "vqvae": vae}
    del over["model"]["vae"]
    with pytest.raises(HfgenError, match="LDMPipeline knows only the autoencoder's scaling_factor"):
        training_source(recipes.load("mnist-ddpm", over))


def test_another_autoencoder_is_refused_by_the_pipeline():
    unet = UNet2DModel(
        sample_size=4,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
    )
    with pytest.raises(ValueError, match="latents of 2 channels, the unet takes 3"):
        DenoisingPipeline(unet=unet, scheduler=DDIMScheduler(), vae=autoencoder())
