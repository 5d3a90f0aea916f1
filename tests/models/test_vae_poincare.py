"""The Poincare ball and its wrapped normal: geometry, densities, a prior."""

import math

import pytest
import torch

from hfgen.models.layers.poincare import WrappedNormal, mobius_add, travel, way
from hfgen.models.prior_poincare import PoincarePrior


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


@pytest.mark.parametrize("mean", [(0.0, 0.0), (0.4, -0.3)])
def test_the_wrapped_normal_integrates_to_one_over_the_ball(mean):
    mean = torch.tensor([mean], dtype=torch.float64)
    posterior = WrappedNormal(mean, torch.tensor([[-1.0, -0.2]], dtype=torch.float64))
    side = torch.linspace(-1, 1, 801, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).view(-1, 2)
    inside = grid[grid.norm(dim=1) < 0.999]
    volume = (2 / (1 - inside.square().sum(1))) ** 2 * (2 / 800) ** 2
    total = (posterior.log_prob(inside[:, None])[:, 0].exp() * volume).sum()
    assert total == pytest.approx(1, abs=2e-3)


def test_draws_have_the_density_they_say():
    posterior = WrappedNormal(points(3, 4), points(3, 4) - 1)
    noise = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z, log_q = posterior.rsample(noise)
    assert (z.norm(dim=-1) < 1).all()
    torch.testing.assert_close(posterior.log_prob(z), log_q)


def test_near_the_centre_it_is_a_normal_distribution():
    """With a small variance the ball is flat; lambda is 2, so that z is v / 2."""
    posterior = WrappedNormal(torch.zeros(1, 3), torch.full((1, 3), 2 * math.log(1e-3)))
    z, _ = posterior.rsample(torch.randn(20_000, 1, 3, generator=torch.Generator().manual_seed(0)))
    assert z.std() == pytest.approx(0.5e-3, rel=0.02)


def test_the_prior_is_the_wrapped_normal_at_the_centre():
    prior = PoincarePrior(latent_dim=3, std=0.8)
    z = prior.sample(4, torch.Generator().manual_seed(0))
    reference = WrappedNormal(torch.zeros(4, 3), torch.full((4, 3), 2 * math.log(0.8)))
    torch.testing.assert_close(prior.log_prob(z), reference.log_prob(z))
    assert prior.sample(4, torch.Generator().manual_seed(0), temperature=0.0).abs().max() < 1e-6
    with pytest.raises(ValueError, match="latent_dim >= 2 and std > 0, got 1 and 1.0"):
        PoincarePrior(latent_dim=1)
