"""Posteriors against ``torch.distributions`` and Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import vonmises_fisher
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from hfgen.models.layers.posterior import DiagonalGaussian
from hfgen.models.layers.posterior_families import FlowHead
from hfgen.models.layers.sphere import VonMisesFisher, log_sphere_area
from hfgen.models.vae_conv import ConvVAE
from hfgen.models.vae_mlp import MLPVAE


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


HEADS = [
    None,
    {"type": "planar", "steps": 3},
    {"type": "radial", "steps": 3},
    {"type": "iaf", "steps": 2, "hidden_size": 16},
    {"type": "maf", "steps": 2, "hidden_size": 16},
    {"type": "poincare"},
    {"type": "poincare", "normal": "riemannian"},
    {"type": "vmf"},
]


@pytest.mark.parametrize("config", HEADS, ids=str)
@pytest.mark.parametrize("kind", [MLPVAE, ConvVAE])
def test_every_posterior_in_every_network(config, kind, tmp_path):
    torch.manual_seed(0)
    vae = kind(sample_size=16, latent_dim=3, posterior=config).eval()
    x = torch.rand(4, 1, 16, 16) * 2 - 1
    posterior = vae.encode(x).latent_dist
    z, log_q = posterior.rsample(torch.randn(5, *posterior.noise_shape))
    assert z.shape == (5, 4, 3) and log_q.shape == (5, 4)
    assert posterior.sample(torch.manual_seed(0)).shape == posterior.mode().shape == (4, 3)
    assert vae.decode(posterior.mode()).sample.shape == x.shape
    vae.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path).eval()
    assert torch.equal(again(x).sample, vae(x).sample)


@pytest.mark.parametrize("kind", ["planar", "radial", "iaf", "maf"])
@torch.no_grad()
def test_flow_posterior_integrates_to_one(kind):
    torch.manual_seed(0)
    head = FlowHead(2, 3, kind, steps=2, hidden_size=8)
    for parameter in head.parameters():
        parameter.normal_(std=0.5)
    features = torch.randn(1, 3)
    posterior = head(torch.tensor([[0.2, -0.1]]), torch.tensor([[0.1, -0.4]]), features)
    z, log_q = posterior.rsample(torch.randn(100_000, 1, 2))
    z, log_q = z[:, 0], log_q[:, 0]
    inside = MultivariateNormal(z.mean(0), 0.2 * torch.cov(z.T))
    ratio = (inside.log_prob(z) - log_q).exp()
    assert abs(ratio.mean() - 1) < 0.03


def vmf(dim: int, kappa: float, rows: int = 1) -> VonMisesFisher:
    mean = torch.nn.functional.normalize(torch.ones(rows, dim, dtype=torch.float64), dim=1)
    return VonMisesFisher(mean, torch.full((rows,), kappa, dtype=torch.float64))


@pytest.mark.parametrize("dim", [2, 3, 10])
@pytest.mark.parametrize("kappa", [0.1, 5.0, 200.0])
def test_vmf_density_against_scipy(dim, kappa):
    reference = vonmises_fisher(np.ones(dim) / np.sqrt(dim), kappa)
    points = reference.rvs(5, random_state=np.random.default_rng(0))
    ours = vmf(dim, kappa).log_prob(torch.from_numpy(points)[:, None])[:, 0]
    np.testing.assert_allclose(ours.numpy(), reference.logpdf(points), atol=1e-4)
    uniform = torch.log(torch.tensor(2 * math.pi ** (dim / 2) / math.gamma(dim / 2)))
    np.testing.assert_allclose(vmf(dim, kappa).kl(), uniform - reference.entropy(), atol=1e-4)


@pytest.mark.parametrize("dim,kappa", [(3, 2.0), (10, 30.0)])
def test_vmf_draws_have_the_density_and_its_gradient(dim, kappa):
    posterior = vmf(dim, kappa)
    noise = torch.randn(200_000, 1, dim, generator=torch.manual_seed(0), dtype=torch.float64)
    posterior.kappa.requires_grad_()
    posterior = VonMisesFisher(posterior.mean, posterior.kappa)
    z, log_q = posterior.rsample(noise)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones_like(log_q))
    assert abs(float((log_q.mean() + log_sphere_area(dim) - posterior.kl()).detach())) < 0.01
    along = (z * posterior.mean).sum(-1).mean()
    (gradient,) = torch.autograd.grad(along, posterior.kappa, retain_graph=True)
    (exact,) = torch.autograd.grad(posterior._mean_cosine.sum(), posterior.kappa)
    torch.testing.assert_close(gradient, exact, rtol=0.03, atol=0)


def test_bad_posteriors_are_named():
    with pytest.raises(ValueError, match="unknown type 'cauchy'; valid: gaussian, planar"):
        MLPVAE(posterior={"type": "cauchy"})
    with pytest.raises(ValueError, match="iaf does not take these options"):
        MLPVAE(posterior={"type": "iaf", "depth": 3})
    with pytest.raises(ValueError, match="at least 2 dimensions, got 1"):
        ConvVAE(latent_dim=1, posterior={"type": "vmf"})
    with pytest.raises(ValueError, match="FlowPosterior has no closed KL"):
        vae = MLPVAE(posterior={"type": "planar"})
        vae.encode(torch.zeros(1, 1, 28, 28)).latent_dist.kl()
