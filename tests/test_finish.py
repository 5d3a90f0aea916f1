"""A trained autoencoder is exported with the scale of its latents and something to draw from."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import hfgen
from hfgen.data import TensorSource
from hfgen.finish import finish, latent_moments
from hfgen.models.prior_mixture import GaussianMixturePrior
from hfgen.models.vae_mlp import MLPVAE
from hfgen.models.vae_vq import VQVAE
from hfgen.objectives.vae import ELBO, Autoencoder
from hfgen.objectives.vae_penalties import MMD
from hfgen.pipelines import vae_pipeline
from hfgen.pipelines.vae_pipeline import VAEPipeline


def source(side: int = 8, channels: int = 1):
    torch.manual_seed(0)
    return TensorSource(torch.rand(48, channels, side, side) * 2 - 1)


def small_kl() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=2,
        sample_size=8,
    )


def test_the_scale_makes_latents_unit(tmp_path):
    pipeline = VAEPipeline(small_kl())
    images = source(channels=3)
    finish(pipeline, ELBO(), images)
    pipeline.save_pretrained(tmp_path)
    vae = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
    mean, std, overall = latent_moments(vae, images)
    assert vae.config.scaling_factor == pytest.approx(1 / overall, rel=1e-4)
    loaded = VAEPipeline.from_pretrained(tmp_path)
    assert loaded.config["latents_mean"] == pytest.approx(mean.tolist(), abs=1e-4)
    assert loaded.config["latents_std"] == pytest.approx(std.tolist(), abs=1e-4)


def test_a_trained_autoencoder_is_the_vae_of_a_stock_pipeline(tmp_path):
    hfgen.train(
        "emoji-kl-vae",
        **{
            "data.path": "emoji",
            "data.max_images": 64,
            "data.resolution": 32,
            "training.max_steps": 1,
            "training.total_batch_size": 8,
            "training.sample_every": 0,
            "output_dir": str(tmp_path / "run"),
        },
    )
    vae = AutoencoderKL.from_pretrained(tmp_path / "run" / "pipeline", subfolder="vae")
    assert vae.config.scaling_factor != AutoencoderKL().config.scaling_factor
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    pipeline = DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline([0, 1], num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 32, 32, 3)


def test_an_autoencoder_without_a_prior_gets_one_and_says_so(caplog):
    pipeline = VAEPipeline(MLPVAE(sample_size=8, hidden_size=8, latent_dim=3))
    with caplog.at_level(logging.WARNING):
        finish(pipeline, Autoencoder(), source())
    assert isinstance(pipeline.prior, GaussianMixturePrior)
    assert "mixture of 10 Gaussians was fitted" in caplog.text


@pytest.mark.parametrize("objective", [ELBO(), Autoencoder(penalty=MMD())])
def test_objectives_with_a_normal_prior_keep_it(objective):
    pipeline = VAEPipeline(MLPVAE(sample_size=8, hidden_size=8, latent_dim=3))
    finish(pipeline, objective, source())
    assert pipeline.prior is None and pipeline.config["latents_mean"] is None


def test_codes_without_a_prior_are_not_drawn_silently(caplog, monkeypatch):
    monkeypatch.setattr(vae_pipeline.logger, "propagate", True)
    vae_pipeline._warn.cache_clear()
    quantizer = {"type": "fsq", "levels": [3, 3]}
    pipeline = VAEPipeline(VQVAE(sample_size=8, block_out_channels=(8,), quantizer=quantizer))
    pipeline.set_progress_bar_config(disable=True)
    with caplog.at_level(logging.WARNING):
        pipeline(batch_size=2)
        pipeline(batch_size=2)
    assert caplog.text.count("no prior over its codes: what follows is decoded noise") == 1
