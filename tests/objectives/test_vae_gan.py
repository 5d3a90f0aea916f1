"""VAE-GAN: phases, the delayed start, and the adaptive weight by hand."""

import pytest
import torch

from hfgen.errors import HfgenError
from hfgen.likelihoods import Gaussian
from hfgen.models.gan_dcgan import DCGANDiscriminator
from hfgen.models.vae_conv import ConvVAE
from hfgen.objectives.base import Clock
from hfgen.objectives.vae import ELBO
from hfgen.objectives.vae_gan import VAEGAN, adaptive_weight
from hfgen.rng import Rng

LIKELIHOOD = Gaussian(std=0.3)


def setup():
    torch.manual_seed(0)
    vae = ConvVAE(sample_size=16, block_out_channels=(4, 8), latent_dim=3)
    critic = DCGANDiscriminator(sample_size=16, in_channels=1, channels=8, norm="none")
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 1, 16, 16, generator=generator) * 1.6 - 0.8
    return {"vae": vae, "discriminator": critic}, {"images": images}


def test_each_phase_reaches_its_own_model():
    models, batch = setup()
    objective = VAEGAN(likelihood=LIKELIHOOD)
    for phase in objective.phases:
        for role, model in models.items():
            model.requires_grad_(role in phase.trains)
        loss, _ = objective.loss(phase.name, models, batch, Rng(0), Clock(0, 0, 1))
        loss.backward()
        for role, model in models.items():
            reached = [p.grad is not None for p in model.parameters()]
            assert all(reached) if role in phase.trains else not any(reached)
            model.zero_grad()


def test_before_the_start_it_is_the_elbo():
    models, batch = setup()
    late = VAEGAN(likelihood=LIKELIHOOD, start_images=100)
    clocks = [Clock(0, 0, 1000), Clock(1, 100, 1000)]
    before, after = (late.loss("vae", models, batch, Rng(0), c) for c in clocks)
    elbo, _ = ELBO(likelihood=LIKELIHOOD).loss("vae", models, batch, Rng(0), clocks[0])
    torch.testing.assert_close(before[0], elbo)
    assert "adversarial" not in before[1] and "adversarial" in after[1]
    added = 0.5 * after[1]["adaptive_weight"] * after[1]["adversarial"]
    torch.testing.assert_close(after[0].detach(), elbo.detach() + added)


def test_adaptive_weight_by_hand():
    image = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = adaptive_weight((3 * image).sum(), image.square().sum() / 2, image)
    expected = (9 + 9) ** 0.5 / ((1 + 4) ** 0.5 + 1e-4)
    torch.testing.assert_close(weight, torch.tensor(expected))


def test_negative_weight_is_named():
    with pytest.raises(HfgenError, match="objective.weight must be at least 0, got -1"):
        VAEGAN(weight=-1)
