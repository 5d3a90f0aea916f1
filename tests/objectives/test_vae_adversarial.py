"""FactorVAE and AAE: the discriminator's ratio against the closed form; who gets which gradient."""

import math

import pytest
import torch

from hfgen.errors import HfgenError
from hfgen.models.vae_discriminator import LatentDiscriminator
from hfgen.models.vae_mlp import MLPVAE
from hfgen.objectives.base import Clock
from hfgen.objectives.vae import ELBO
from hfgen.objectives.vae_adversarial import (
    AdversarialAutoencoder,
    FactorVAE,
    permute_dims,
    tell_apart,
)
from hfgen.rng import Rng

START = Clock(step=0, images_seen=0, total_images=1000)
OBJECTIVES = [FactorVAE(), AdversarialAutoencoder(), AdversarialAutoencoder(deterministic=True)]


def setup():
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=4, hidden_size=8, latent_dim=3)
    models = {"vae": vae, "latent_discriminator": LatentDiscriminator((3,), hidden_size=8)}
    return models, {"images": torch.rand(8, 1, 4, 4) * 2 - 1}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_each_phase_reaches_its_own_models(objective):
    models, batch = setup()
    for phase in objective.phases:
        for role, model in models.items():
            model.requires_grad_(role in phase.trains)
        loss, _ = objective.loss(phase.name, models, batch, Rng(0), START)
        loss.backward()
        for role, model in models.items():
            reached = [p.grad is not None for p in model.parameters()]
            assert all(reached) if role in phase.trains else not any(reached)
            model.zero_grad()


def test_permuting_keeps_the_marginals_and_breaks_the_dependence():
    z = torch.randn(4000, 1) @ torch.tensor([[1.0, 2.0]])
    mixed = permute_dims(z, Rng(0))
    assert torch.equal(mixed.sort(0).values, z.sort(0).values)
    assert torch.corrcoef(mixed.T)[0, 1].abs() < 0.05


def test_the_trained_logit_is_the_log_ratio():
    torch.manual_seed(0)
    rho = 0.8
    factor = torch.linalg.cholesky(torch.tensor([[1.0, rho], [rho, 1.0]]))
    net = LatentDiscriminator((2,), hidden_size=64, num_layers=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(600):
        z = torch.randn(512, 2) @ factor.T
        loss = tell_apart(net, z, permute_dims(z, Rng(step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z = torch.randn(20_000, 2) @ factor.T
    estimate = float(net(z).logits.mean().detach())
    assert abs(estimate - -0.5 * math.log(1 - rho**2)) < 0.08


def test_factor_vae_is_the_elbo_plus_the_ratio():
    models, batch = setup()
    loss, terms = FactorVAE(gamma=7.0).loss("vae", models, batch, Rng(0), START)
    elbo, _ = ELBO().loss("vae", models, batch, Rng(0), START)
    torch.testing.assert_close(loss.detach(), elbo.detach() + 7.0 * terms["total_correlation"])


def test_negative_weights_are_named():
    with pytest.raises(HfgenError, match="objective.gamma must be at least 0, got -1"):
        FactorVAE(gamma=-1)
    with pytest.raises(HfgenError, match="objective.weight must be at least 0"):
        AdversarialAutoencoder(weight=-0.5)
