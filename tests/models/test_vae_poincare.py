"""The Poincare ball and its two normals: geometry, densities, draws, gradients, a prior."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import kstest, norm
from torch.nn.functional import normalize

from hfgen.models.layers.poincare import (
    NORMALS,
    RiemannianNormal,
    mobius_add,
    travel,
    way,
)
from hfgen.models.prior_poincare import PoincarePrior
from hfgen.models.vae_mlp import MLPVAE


def points(rows: int, dim: int = 2):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(rows, dim, generator=generator, dtype=torch.float64) - 0.5
    return x * 1.2


def distance(x, y):
    """arcosh(1 + 2 |x - y|^2 / ((1 - |x|^2) (1 - |y|^2))), the textbook formula."""
    gap = 2 * (x - y).square().sum(-1)
    return torch.acosh(1 + gap / ((1 - x.square().sum(-1)) * (1 - y.square().sum(-1))))


def test_travel_and_way_are_inverse_and_measure_distance():
    x, y = points(20), points(20).flip(0)
    v = way(x, y)
    torch.testing.assert_close(travel(x, v), y)
    torch.testing.assert_close(v.norm(dim=-1), distance(x, y))
    torch.testing.assert_close(mobius_add(-x, x), torch.zeros_like(x))


def ball_normal(kind, mean, logvar=(-1.0, -0.2), dtype=torch.float64):
    """Of one row; an isotropic one takes the first of ``logvar``."""
    logvar = logvar[:1] if NORMALS[kind].isotropic else logvar
    return NORMALS[kind](torch.tensor([mean], dtype=dtype), torch.tensor([logvar], dtype=dtype))


@pytest.mark.parametrize("mean", [(0.0, 0.0), (0.4, -0.3)])
@pytest.mark.parametrize("kind", NORMALS)
def test_a_normal_integrates_to_one_over_the_ball(kind, mean):
    posterior = ball_normal(kind, mean)
    side = torch.linspace(-1, 1, 801, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).view(-1, 2)
    inside = grid[grid.norm(dim=1) < 0.999]
    volume = (2 / (1 - inside.square().sum(1))) ** 2 * (2 / 800) ** 2
    total = (posterior.log_prob(inside[:, None])[:, 0].exp() * volume).sum()
    assert total == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("kind", NORMALS)
def test_draws_have_the_density_they_say(kind):
    spread = slice(1) if NORMALS[kind].isotropic else slice(None)
    posterior = NORMALS[kind](points(3, 4), points(3, 4)[:, spread] - 1)
    noise = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z, log_q = posterior.rsample(noise)
    assert (z.norm(dim=-1) < 1).all()
    torch.testing.assert_close(posterior.log_prob(z), log_q)


@pytest.mark.parametrize("kind", NORMALS)
def test_near_the_centre_it_is_a_normal_distribution(kind):
    """With a small variance the ball is flat; lambda is 2, so that z is v / 2."""
    noise = torch.randn(20_000, 1, 3, generator=torch.Generator().manual_seed(0))
    posterior = ball_normal(kind, [0.0] * 3, [2 * math.log(1e-3)] * 3, torch.float32)
    z, _ = posterior.rsample(noise)
    assert z.std() == pytest.approx(0.5e-3, rel=0.02)
    ends = noise.norm(dim=-1, keepdim=True) < 3.5  # beyond, float32 tells shares apart no longer
    torch.testing.assert_close(z * ends, 0.5e-3 * noise * ends, rtol=0.01, atol=1e-6)


def riemannian(std: float, dim: int = 2) -> RiemannianNormal:
    return ball_normal("riemannian", [0.0] * dim, [2 * math.log(std)])


def share_below(r, std: float):
    """Of the mass of the length in two dimensions: sinh(r) exp(-r^2 / 2 std^2) is a difference of
    two normal densities, around std^2 and -std^2.
    """
    around = norm.cdf((r - std**2) / std) - norm.cdf((r + std**2) / std)
    return (around - norm.cdf(-std) + norm.cdf(std)) / (norm.cdf(std) - norm.cdf(-std))


def log_constant(std: float, dim: int) -> float:
    """ln Z of Mathieu et al. 2019, appendix B, by numerical integration."""
    top = (dim - 1) * std**2
    constant = -(top**2) / (2 * std**2) + (dim - 1) * top

    def density(r):
        return np.exp(-(r**2) / (2 * std**2) + (dim - 1) * np.log(np.sinh(r)) - constant)

    integral, _ = quad(density, 1e-12, top + (9 + math.sqrt(dim)) * std, points=[top])
    area = 2 * math.pi ** (dim / 2) / math.gamma(dim / 2)
    return math.log(area * integral) + constant


@pytest.mark.parametrize("std", [0.01, 0.7, 3.0])
def test_riemannian_normaliser_in_closed_form_and_by_quadrature(std):
    closed = 2 * math.pi * math.sqrt(math.pi / 2) * std * math.exp(std**2 / 2)
    closed *= math.erf(std / math.sqrt(2))
    at_mean = riemannian(std).log_prob(torch.zeros(1, 2, dtype=torch.float64))
    assert float(at_mean) == pytest.approx(-math.log(closed), abs=1e-5)
    for dim in (2, 3, 6):
        at_mean = riemannian(std, dim).log_prob(torch.zeros(1, dim, dtype=torch.float64))
        assert float(at_mean) == pytest.approx(-log_constant(std, dim), abs=1e-5)


def rayleigh(noise):
    """The share of all normal noise that is shorter, in two dimensions."""
    return 1 - torch.exp(-noise.square().sum(-1) / 2)


@pytest.mark.parametrize("std", [0.2, 1.0, 2.0])
def test_riemannian_draws_are_the_inverse_of_the_known_distribution(std):
    noise = torch.randn(4000, 1, 2, generator=torch.manual_seed(0), dtype=torch.float64)
    v = riemannian(std).step(noise)
    torch.testing.assert_close(normalize(v, dim=-1), normalize(noise, dim=-1))
    lengths, shares = v.norm(dim=-1).flatten().numpy(), rayleigh(noise).flatten().numpy()
    np.testing.assert_allclose(share_below(lengths, std), shares, atol=1e-4)
    assert kstest(lengths, lambda r: share_below(r, std)).pvalue > 0.01


@pytest.mark.parametrize("std", [0.3, 1.5])
def test_riemannian_gradient_against_finite_differences(std):
    """Of the draw: of the distribution function's inverse, which scipy finds by bisection."""
    noise = torch.randn(20, 1, 2, generator=torch.manual_seed(0), dtype=torch.float64)
    posterior = riemannian(std)
    logvar = posterior.logvar.requires_grad_()
    lengths = RiemannianNormal(posterior.mean, logvar).step(noise).norm(dim=-1)
    found = [torch.autograd.grad(r, logvar, retain_graph=True)[0].item() for r in lengths]

    def inverse(share, logvar):
        spread = math.exp(logvar / 2)
        return brentq(lambda r: share_below(r, spread) - share, 0, 40, xtol=1e-13)

    at, gap = 2 * math.log(std), 1e-4
    shares = rayleigh(noise).flatten().tolist()
    expected = [(inverse(u, at + gap) - inverse(u, at - gap)) / (2 * gap) for u in shares]
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=1e-3)


def test_riemannian_kl_by_draws_is_the_integral():
    """KL to the prior around the same centre: E[r^2] (1/2 s^2 - 1/2 t^2) + ln Z_s - ln Z_t."""
    narrow, wide = 0.6, 1.0
    noise = torch.randn(50_000, 1, 2, generator=torch.manual_seed(0), dtype=torch.float64)
    z, log_q = riemannian(narrow).rsample(noise)
    prior = PoincarePrior(2, std=wide, normal="riemannian").double()
    draws = log_q[:, 0] - prior.log_prob(z[:, 0])

    def weight(r):
        return math.sinh(r) * math.exp(-(r**2) / (2 * narrow**2))

    square = quad(lambda r: r**2 * weight(r), 0, 10)[0] / quad(weight, 0, 10)[0]
    exact = square * (0.5 / wide**2 - 0.5 / narrow**2)
    exact += log_constant(wide, 2) - log_constant(narrow, 2)
    assert abs(float(draws.mean()) - exact) < 4 * float(draws.std()) / math.sqrt(len(draws))


def test_riemannian_bound_on_a_gradient_step_is_finite_at_the_ends_of_its_range():
    for logvar in (-40.0, 5.0):
        mean = torch.tensor([[0.1, 0.2]], requires_grad=True)
        spread = torch.tensor([[logvar]], requires_grad=True)
        z, log_q = RiemannianNormal(mean, spread).rsample(torch.tensor([[[0.5, -1.0]]]))
        (z.sum() + log_q.sum()).backward()
        assert mean.grad.isfinite().all() and spread.grad.isfinite().all()


@pytest.mark.parametrize("kind", NORMALS)
def test_the_prior_is_the_normal_at_the_centre(kind):
    prior = PoincarePrior(latent_dim=3, std=0.8, normal=kind)
    z = prior.sample(4, torch.Generator().manual_seed(0))
    reference = ball_normal(kind, [0.0] * 3, [2 * math.log(0.8)] * 3, torch.float32)
    torch.testing.assert_close(prior.log_prob(z), reference.log_prob(z[:, None])[:, 0])
    assert prior.sample(4, torch.Generator().manual_seed(0), temperature=0.0).abs().max() < 1e-6
    rows = [torch.Generator().manual_seed(i) for i in range(3)]
    again = [torch.Generator().manual_seed(i) for i in range(3)]
    torch.testing.assert_close(prior.sample(3, rows)[1:], prior.sample(2, again[1:]))


def test_bad_input():
    with pytest.raises(ValueError, match="latent_dim >= 2 and std > 0, got 1 and 1.0"):
        PoincarePrior(latent_dim=1)
    with pytest.raises(ValueError, match="PoincarePrior: normal must be .*riemannian, got 'flat'"):
        PoincarePrior(normal="flat")
    with pytest.raises(ValueError, match="posterior: poincare: normal must be .* got 'flat'"):
        MLPVAE(latent_dim=2, posterior={"type": "poincare", "normal": "flat"})
