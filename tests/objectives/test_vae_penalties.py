"""Penalties against closed forms and, for MMD, a direct double sum."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from hfgen.errors import HfgenError
from hfgen.likelihoods import Gaussian
from hfgen.models.layers.posterior import DiagonalGaussian
from hfgen.models.prior_flow import FlowPrior
from hfgen.models.vae_mlp import MLPVAE
from hfgen.objectives.base import Clock
from hfgen.objectives.vae import ELBO, Autoencoder
from hfgen.objectives.vae_penalties import (
    DIP,
    MMD,
    PENALTIES,
    RAE,
    SCALES,
    Code,
    TotalCorrelation,
    mmd,
    total_correlation,
)
from hfgen.rng import Rng

START = Clock(step=0, images_seen=0, total_images=1000)


def gaussian_code(rows: int, correlation: float, std: float = 0.4):
    """Posteriors whose mixture is N(0, [[1, rho], [rho, 1]])."""
    torch.manual_seed(0)
    target = torch.tensor([[1.0, correlation], [correlation, 1.0]])
    means = MultivariateNormal(torch.zeros(2), target - std**2 * torch.eye(2)).sample((rows,))
    posterior = DiagonalGaussian(means, torch.full_like(means, 2 * math.log(std)))
    return posterior, posterior.sample()


def test_total_correlation_of_a_gaussian():
    posterior, z = gaussian_code(3000, 0.7)
    estimate = total_correlation(z, posterior.mean, posterior.logvar)
    assert abs(estimate - -0.5 * math.log(1 - 0.7**2)) < 0.04
    posterior, z = gaussian_code(3000, 0.0)
    assert abs(total_correlation(z, posterior.mean, posterior.logvar)) < 0.02


def code_of(posterior, z) -> Code:
    return Code(torch.zeros(len(z), 1, 2, 2), posterior, z, z, lambda z: z, lambda z: z)


@pytest.mark.parametrize("version,diagonal", [(1, 0.16), (2, 0.0)])
def test_dip_of_a_gaussian(version, diagonal):
    posterior, z = gaussian_code(50_000, 0.5)
    value = DIP(version=version, off_diagonal=3.0, diagonal=1.0)(code_of(posterior, z), Rng(0))
    expected = 3.0 * 2 * 0.5**2 + 2 * diagonal**2  # version 1 lacks the posterior variance 0.16
    assert abs(value - expected) < 0.05


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_is_the_double_sum(kernel):
    torch.manual_seed(0)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64) + 1

    def k(a, b):
        d = float(((a - b) ** 2).sum())
        scales = [6 * s for s in SCALES]
        return sum(s / (s + d) if kernel == "imq" else math.exp(-d / s) for s in scales)

    within_x = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 20
    within_y = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 12
    across = sum(k(a, b) for a in x for b in y) / 20
    expected = torch.tensor(within_x + within_y - 2 * across, dtype=torch.float64)
    torch.testing.assert_close(mmd(x, y, kernel), expected)


def test_mmd_is_unbiased_and_grows_with_distance():
    torch.manual_seed(0)
    same = torch.stack([mmd(torch.randn(30, 2), torch.randn(30, 2)) for _ in range(300)])
    assert abs(same.mean()) < 3 * same.std() / math.sqrt(300)
    assert mmd(torch.randn(300, 2) + 1, torch.randn(300, 2)) > 0.3


def test_rae_gradient_penalty_is_the_jacobian_norm():
    torch.manual_seed(0)
    matrix = torch.randn(6, 3)
    z = torch.randn(20_000, 3, requires_grad=True)
    posterior = DiagonalGaussian(z, torch.zeros_like(z))
    code = Code(z, posterior, z, z @ matrix.T, lambda z: z @ matrix.T, lambda z: z)
    value = RAE(latent=0.0, gradient=1.0)(code, Rng(0))
    torch.testing.assert_close(value, matrix.square().sum(), atol=0, rtol=0.03)
    torch.testing.assert_close(RAE(latent=2.0)(code, Rng(0)), z.square().sum(1).mean())


@pytest.mark.parametrize("kind", sorted(PENALTIES))
@pytest.mark.parametrize("objective", [ELBO, Autoencoder])
def test_every_penalty_adds_its_gradient(kind, objective):
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=12, hidden_size=8, latent_dim=3)
    data = {"images": torch.rand(8, 1, 12, 12) * 2 - 1}
    plain = objective(likelihood=Gaussian(std=0.5))
    penalised = objective(likelihood=Gaussian(std=0.5), penalty=PENALTIES[kind]())
    results = [o.loss("vae", {"vae": vae}, data, Rng(0), START) for o in (plain, penalised)]
    expected = results[0][0].detach() + results[1][1]["penalty"]
    torch.testing.assert_close(results[1][0].detach(), expected)
    gradients = [torch.autograd.grad(loss, vae.fc21.weight)[0] for loss, _ in results]
    assert not torch.allclose(*gradients)


def test_autoencoder_has_no_noise_and_reaches_every_parameter():
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=12, hidden_size=8, latent_dim=3)
    data = {"images": torch.rand(8, 1, 12, 12) * 2 - 1}
    losses = [Autoencoder().loss("vae", {"vae": vae}, data, Rng(s), START)[0] for s in (0, 1)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert all(p.grad is not None for p in vae.parameters())


def test_an_autoencoders_prior_learns_in_its_own_phase():
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=12, hidden_size=8, latent_dim=3)
    prior, data = FlowPrior((3,), hidden_size=8), {"images": torch.rand(8, 1, 12, 12) * 2 - 1}
    objective = Autoencoder(learn_prior=True)
    assert [p.trains for p in objective.phases] == [("vae",), ("prior",)]
    loss, _ = objective.loss("prior", {"vae": vae, "prior": prior}, data, Rng(0), START)
    loss.backward()
    assert all(p.grad is not None for p in prior.parameters())
    assert all(p.grad is None for p in vae.parameters())
    latents = vae.encode(data["images"]).latent_dist.mode()
    torch.testing.assert_close(loss, -prior.log_prob(latents).mean())


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: TotalCorrelation(weight=-1), "penalty.weight: must be at least 0, got -1"),
        (lambda: DIP(version=3), "penalty.version: must be 1 or 2, got 3"),
        (lambda: MMD(kernel="img"), "did you mean 'imq'"),
        (lambda: RAE(gradient=-2.0), "penalty.gradient: must be at least 0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(HfgenError, match=message):
        make()
