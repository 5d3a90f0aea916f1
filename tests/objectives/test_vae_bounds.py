"""Multi-sample bounds: exact on a linear Gaussian model, with the gradients of the papers."""

import math

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from torch import nn
from torch.distributions import MultivariateNormal

from hfgen.errors import HfgenError
from hfgen.likelihoods import Gaussian
from hfgen.models.layers.posterior import DiagonalGaussian
from hfgen.objectives.base import Clock
from hfgen.objectives.vae import ELBO
from hfgen.objectives.vae_bounds import (
    CIWAE,
    IWAE,
    MIWAE,
    PIWAE,
    DReG,
    StickingTheLanding,
    importance_bound,
)
from hfgen.rng import Rng

START = Clock(step=0, images_seen=0, total_images=1000)
STD = 0.3


class Linear(nn.Module):
    """x = W z + b + std eps (probabilistic PCA, Tipping & Bishop 1999), with a linear encoder."""

    config = FrozenDict({})

    def __init__(self, pixels=4, latent=2):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W = nn.Parameter(0.2 * torch.randn(pixels, latent, generator=generator))
        self.b = nn.Parameter(0.1 * torch.randn(pixels, generator=generator))
        self.E = nn.Parameter(0.5 * torch.randn(latent, pixels, generator=generator))
        self.logvar = nn.Parameter(torch.full((latent,), -0.5))
        self.double()

    def encode(self, x):
        mean = x.flatten(1) @ self.E.T
        posterior = DiagonalGaussian(mean, self.logvar.expand_as(mean))
        return type("Output", (), {"latent_dist": posterior})

    def decode(self, z):
        return type("Output", (), {"sample": (z @ self.W.T + self.b)[:, None, None]})

    def log_marginal(self, x):
        """ln N(x; b, W W^T + std^2 I)."""
        covariance = self.W @ self.W.T + STD**2 * torch.eye(len(self.b), dtype=self.b.dtype)
        return MultivariateNormal(self.b, covariance).log_prob(x.flatten(1))

    def set_true_posterior(self):
        """N(M^-1 W^T (x - b), std^2 M^-1), M = W^T W + std^2 I, for W with orthogonal columns."""
        with torch.no_grad():
            q, _ = torch.linalg.qr(self.W)
            self.W.copy_(q * torch.tensor([0.4, 0.2], dtype=torch.float64))
            self.b.zero_()
            m = self.W.T @ self.W + STD**2 * torch.eye(2, dtype=torch.float64)
            self.E.copy_(torch.linalg.solve(m, self.W.T))
            self.logvar.copy_((STD**2 / m.diagonal()).log())


def images(rows=8):
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(rows, 1, 1, 4, generator=generator, dtype=torch.float64)
    return values * 1.6 - 0.8


def run(objective, vae, x, step=0):
    return objective.loss("vae", {"vae": vae}, {"images": x}, Rng(step), START)


LIKELIHOOD = Gaussian(std=STD)
EVERY = [
    IWAE(likelihood=LIKELIHOOD, num_samples=6),
    MIWAE(likelihood=LIKELIHOOD, num_samples=3, num_groups=2),
    PIWAE(likelihood=LIKELIHOOD, num_samples=3, num_groups=2),
    CIWAE(likelihood=LIKELIHOOD, num_samples=6, beta=0.3),
    DReG(likelihood=LIKELIHOOD, num_samples=6),
    StickingTheLanding(likelihood=LIKELIHOOD, num_samples=6),
]


@pytest.mark.parametrize("objective", EVERY, ids=lambda o: type(o).__name__)
def test_exact_at_the_true_posterior(objective):
    vae, x = Linear(), images()
    vae.set_true_posterior()
    loss, terms = run(objective, vae, x)
    torch.testing.assert_close(loss, -vae.log_marginal(x).mean())
    loss.backward()
    for parameter in vae.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_more_samples_tighten_the_bound_to_the_exact_value():
    vae, x = Linear(), images(64)
    exact = float(vae.log_marginal(x).mean().detach())
    bounds = []
    with torch.no_grad():
        for k in (1, 5, 50, 5000):
            objective = IWAE(likelihood=LIKELIHOOD, num_samples=k)
            repeats = max(1, 500 // k)
            bounds.append(
                -sum(float(run(objective, vae, x, s)[0]) for s in range(repeats)) / repeats
            )
    assert bounds == sorted(bounds)
    assert bounds[0] < exact - 0.3 and abs(bounds[-1] - exact) < 0.02


def test_one_sample_is_the_elbo():
    vae, x = Linear(), images(2000)
    _, elbo = run(ELBO(likelihood=LIKELIHOOD), vae, x)
    _, bound = run(IWAE(likelihood=LIKELIHOOD, num_samples=1), vae, x)
    assert abs(elbo["elbo"] - bound["elbo"]) < 0.05  # closed KL against one sample of it
    torch.testing.assert_close(bound["elbo"], bound["bound"])


def gradients(objective, vae, x, step=0):
    parameters = [vae.W, vae.b, vae.E, vae.logvar]
    return torch.autograd.grad(run(objective, vae, x, step)[0], parameters)


def test_piwae_mixes_the_gradients_of_its_parts():
    vae, x = Linear(), images()
    w, b, e, logvar = gradients(PIWAE(likelihood=LIKELIHOOD, num_samples=3, num_groups=2), vae, x)
    iwae = gradients(IWAE(likelihood=LIKELIHOOD, num_samples=6), vae, x)
    miwae = gradients(MIWAE(likelihood=LIKELIHOOD, num_samples=3, num_groups=2), vae, x)
    torch.testing.assert_close((w, b), iwae[:2])
    torch.testing.assert_close((e, logvar), miwae[2:])


def test_ciwae_interpolates():
    vae, x = Linear(), images()
    mixed = gradients(CIWAE(likelihood=LIKELIHOOD, num_samples=6, beta=0.3), vae, x)
    iwae = gradients(CIWAE(likelihood=LIKELIHOOD, num_samples=6, beta=0.0), vae, x)
    elbo = gradients(CIWAE(likelihood=LIKELIHOOD, num_samples=6, beta=1.0), vae, x)
    for m, i, e in zip(mixed, iwae, elbo, strict=True):
        torch.testing.assert_close(m, 0.3 * e + 0.7 * i)
    torch.testing.assert_close(iwae, gradients(IWAE(likelihood=LIKELIHOOD, num_samples=6), vae, x))


def test_dreg_is_unbiased_with_less_variance():
    vae, x = Linear(), images(2)
    vae.set_true_posterior()
    with torch.no_grad():
        vae.logvar += 0.3  # near the optimum, where the plain encoder gradient drowns in noise
    # many copies of the images in one batch: the same expectation, 4000 independent draws
    many = x.repeat(4000, 1, 1, 1)
    plain = gradients(IWAE(likelihood=LIKELIHOOD, num_samples=8), vae, many, 1)
    double = gradients(DReG(likelihood=LIKELIHOOD, num_samples=8), vae, many, 2)
    torch.testing.assert_close(plain[2:], double[2:], atol=0.02, rtol=0.05)
    spread = {}
    for kind in (IWAE, DReG):
        objective = kind(likelihood=LIKELIHOOD, num_samples=8)
        draws = torch.stack([gradients(objective, vae, x, s)[2].flatten() for s in range(200)])
        spread[kind] = draws.var(0).sum()
    assert spread[DReG] < 0.5 * spread[IWAE]


def test_sticking_the_landing_has_no_noise_at_the_true_posterior():
    vae, x = Linear(), images()
    vae.set_true_posterior()
    _, _, encoder, logvar = gradients(StickingTheLanding(likelihood=LIKELIHOOD), vae, x)
    assert encoder.abs().max() < 1e-10 and logvar.abs().max() < 1e-10
    _, _, noisy, _ = gradients(IWAE(likelihood=LIKELIHOOD, num_samples=1), vae, x)
    assert noisy.abs().max() > 1e-3


def test_importance_bound_by_hand():
    log_w = torch.tensor([[0.0], [math.log(3.0)]])
    torch.testing.assert_close(importance_bound(log_w), torch.tensor([math.log(2.0)]))


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: IWAE(num_samples=0), "objective.num_samples must be at least 1, got 0"),
        (lambda: MIWAE(num_groups=0), "objective.num_groups must be at least 1, got 0"),
        (lambda: CIWAE(beta=1.5), r"in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(HfgenError, match=message):
        make()
