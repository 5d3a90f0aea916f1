"""Tiny pipelines of the shipped classes, and a process where hfgen cannot be imported."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "hub"))

from hub_client import Client  # noqa: E402

from hfgen.models.gan_dcgan import DCGANDiscriminator, DCGANGenerator  # noqa: E402
from hfgen.models.vae_conv import ConvVAE  # noqa: E402
from hfgen.models.vae_mlp import MLPVAE  # noqa: E402
from hfgen.pipelines.gan_pipeline import GANPipeline  # noqa: E402
from hfgen.pipelines.vae_pipeline import VAEPipeline  # noqa: E402

NOWHERE = "http://127.0.0.1:9"
"""No Hub answers here."""


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """A process outside the repository where hfgen cannot be imported."""
    process = Client(NOWHERE, tmp_path_factory.mktemp("stranger"), "--without-hfgen")
    yield process
    process.close()


@pytest.fixture
def vae_pipeline():
    return quiet(VAEPipeline(mlp_vae(), likelihood={"type": "bernoulli"}))


@pytest.fixture
def gan_pipeline():
    return quiet(GANPipeline(*gan()))


def mlp_vae(**options) -> MLPVAE:
    torch.manual_seed(0)
    return MLPVAE(sample_size=8, hidden_size=16, latent_dim=4, **options).eval()


def conv_vae(**options) -> ConvVAE:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 3, "block_out_channels": (8,), "latent_dim": 4}
    return ConvVAE(**{**sizes, **options}).eval()


def gan(channels: int = 1, **options) -> tuple[DCGANGenerator, DCGANDiscriminator]:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "channels": 4, **options}
    generator = DCGANGenerator(out_channels=channels, latent_dim=4, **sizes)
    return generator.eval(), DCGANDiscriminator(in_channels=channels, **sizes).eval()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipeline, **options) -> np.ndarray:
    """Four images of seed 0."""
    return pipeline(batch_size=4, generator=seeded(), output_type="np", **options).images
