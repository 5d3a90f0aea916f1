"""Posteriors against ``torch.distributions`` and Monte Carlo."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from hfgen.models.layers.posterior import DiagonalGaussian


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_gaussian_against_torch_distributions(shape):
    torch.manual_seed(0)
    mean, logvar, z = torch.randn(3, 4, *shape, dtype=torch.float64)
    posterior = DiagonalGaussian(mean, logvar)
    reference = Independent(Normal(mean, (0.5 * logvar).exp()), len(shape))
    standard = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), len(shape))
    torch.testing.assert_close(posterior.log_prob(z), reference.log_prob(z))
    torch.testing.assert_close(posterior.kl(), kl_divergence(reference, standard))
    drawn, log_density = posterior.rsample(z)
    torch.testing.assert_close(log_density, reference.log_prob(drawn))
    assert torch.equal(posterior.mode(), mean)


def test_gaussian_kl_against_monte_carlo():
    torch.manual_seed(0)
    posterior = DiagonalGaussian(torch.tensor([[0.5, -1.0]]), torch.tensor([[0.3, -1.0]]))
    z, log_q = DiagonalGaussian(
        posterior.mean.expand(200_000, 2), posterior.logvar.expand(200_000, 2)
    ).rsample(torch.randn(200_000, 2))
    log_p = Independent(Normal(torch.zeros(2), torch.ones(2)), 1).log_prob(z)
    assert abs((log_q - log_p).mean() - posterior.kl()[0]) < 0.01


def test_sample_takes_a_list_of_generators():
    posterior = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
    both = posterior.sample([torch.Generator().manual_seed(s) for s in (0, 1)])
    alone = DiagonalGaussian(torch.zeros(1, 3), torch.zeros(1, 3))
    assert torch.equal(both[1:], alone.sample(torch.Generator().manual_seed(1)))
