"""However a batch is split, over processes or micro-batches, the gradients are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfgen.models.gan_dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.models.gan_lightweight import LightweightDiscriminator, LightweightGenerator
from hfgen.models.gan_r3gan import R3GANDiscriminator, R3GANGenerator
from hfgen.models.gan_resnet import ResNetDiscriminator, ResNetGenerator
from hfgen.models.gan_stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from hfgen.objectives.base import Clock
from hfgen.objectives.gan import GAN
from hfgen.rng import Rng
from tests.objectives import gan_two_processes

NORM = {"norm": "group"}
BLOCKS = {"num_layers": 1, "channels": 16}
PAIRS = {
    "dcgan": (DCGANGenerator, DCGANDiscriminator, NORM, NORM),
    "lightweight": (LightweightGenerator, LightweightDiscriminator, NORM, NORM),
    "r3gan": (R3GANGenerator, R3GANDiscriminator, BLOCKS, BLOCKS),
    "stylegan2": (StyleGAN2Generator, StyleGAN2Discriminator, {"style_dim": 4}, {}),
}
BATCH_NORM = {
    "dcgan": (DCGANGenerator, DCGANDiscriminator, {}, {}),
    "resnet": (ResNetGenerator, ResNetDiscriminator, {}, {}),
}


def test_r1_and_r2_through_two_processes(tmp_path):
    file = tmp_path / "gradients.pt"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    script = str(Path(gan_two_processes.__file__))
    result = subprocess.run(
        [sys.executable, *command, script, str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    alone, together = gan_two_processes.gradients(), torch.load(file)
    assert alone.keys() == together.keys() and "lazy-r2" in alone
    for key, whole in alone.items():
        assert any(gradient.abs().max() > 1e-3 for gradient in whole), key
        torch.testing.assert_close(together[key], whole, rtol=0, atol=1e-6, msg=key)


def whole_and_split(pair, objective):
    """Gradients of every phase from 1 x 64 rows and from 4 x 16."""
    generator, discriminator, g_options, d_options = pair
    torch.manual_seed(0)
    small = {"sample_size": 8, "channels": 8}
    models = {
        "generator": generator(**{**small, "out_channels": 1, "latent_dim": 4, **g_options}),
        "discriminator": discriminator(**{**small, "in_channels": 1, **d_options}),
    }
    models = {role: model.double() for role, model in models.items()}
    images = torch.rand(64, 1, 8, 8, dtype=torch.float64) * 2 - 1
    clock = Clock(step=3, images_seen=24, total_images=100, total_batch_size=64)
    for phase in objective.phases:
        (role,) = phase.trains
        for name, model in models.items():
            model.requires_grad_(name == role)
        both = []
        for splits in (1, 4):
            models[role].zero_grad()
            for rows in torch.arange(64).chunk(splits):
                rng = Rng(0, 3, phase.name, start=int(rows[0]))
                part = {"images": images[rows]}
                (objective.loss(phase.name, models, part, rng, clock)[0] / splits).backward()
            both.append(torch.cat([p.grad.flatten() for p in models[role].parameters()]))
        yield both


@pytest.mark.parametrize("name", PAIRS)
def test_one_batch_is_four_micro_batches(name):
    objective = GAN(adversarial_loss="relativistic_pairing", r1_gamma=0.5, r2_gamma=0.5, r1_every=1)
    for whole, split in whole_and_split(PAIRS[name], objective):
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "tolerance"), [("dcgan", 0.1), ("resnet", 0.3)])
def test_batch_norm_sees_the_split_within_a_tolerance(name, tolerance):
    """Listed in docs/gan.md: with batch norm, micro-batches of 16 have statistics of their own."""
    for whole, split in whole_and_split(BATCH_NORM[name], GAN(r1_gamma=0)):
        change = float((split - whole).norm() / whole.norm())
        assert 1e-6 < change < tolerance
