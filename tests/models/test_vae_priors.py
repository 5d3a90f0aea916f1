"""Priors: densities that integrate to one and agree with their draws; the pipeline's interface."""

import math

import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import distributions as td

from hfgen.models.layers.prior import mixture_log_prob
from hfgen.models.prior_flow import FlowPrior
from hfgen.models.prior_mixture import GaussianMixturePrior
from hfgen.models.prior_vamp import VampPrior
from hfgen.models.vae_mlp import MLPVAE


def make(kind: str, dim: int = 2):
    torch.manual_seed(0)
    if kind == "mixture":
        prior = GaussianMixturePrior((dim,), 3)
    elif kind == "vamp":
        prior = VampPrior(dim, 3, sample_size=4)
        vae = MLPVAE(sample_size=4, hidden_size=8, latent_dim=dim)
        prior.tie(vae)
        prior.log_prob(torch.zeros(1, dim))  # a step's components serve one density
        with torch.no_grad():
            prior.mean.mul_(8)  # an untrained encoder puts all components on one point
            prior.logvar.sub_(1)
    else:
        prior = FlowPrior((dim,), kind, num_layers=3, hidden_size=16)
        prior.mean.copy_(torch.tensor([0.5] * dim))
        prior.std.copy_(torch.tensor([0.7] * dim))
        with torch.no_grad():
            for parameter in prior.flow.parameters():
                parameter.normal_(std=0.3)
    return prior.eval()


KINDS = ["mixture", "vamp", "maf", "iaf"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_density_integrates_to_one(kind):
    axis = torch.linspace(-14, 14, 561)
    grid = torch.cartesian_prod(axis, axis)
    total = make(kind).log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(total - 1) < 5e-3


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_draws_have_the_density(kind):
    prior = make(kind)
    z = prior.sample(20_000, torch.Generator().manual_seed(0))
    assert z.shape == (20_000, 2)
    # E_p[r(z) / p(z)] = 1 for any normalised r: here one narrower than p, so the variance is small
    mean, covariance = z.mean(0), torch.cov(z.T)
    inside = td.MultivariateNormal(mean, 0.3 * covariance)
    ratio = (inside.log_prob(z) - prior.log_prob(z)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(z)) + 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_generators_temperature_and_saving(kind, tmp_path):
    prior = make(kind)
    both = prior.sample(2, [torch.Generator().manual_seed(s) for s in (0, 1)])
    alone = prior.sample(1, [torch.Generator().manual_seed(1)])
    torch.testing.assert_close(both[1:], alone)
    cold = prior.sample(500, torch.Generator().manual_seed(0), temperature=0.01)
    warm = prior.sample(500, torch.Generator().manual_seed(0))
    assert cold.var(0).sum() < warm.var(0).sum()
    prior.save_pretrained(tmp_path)
    again = type(prior).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again.log_prob(both), prior.log_prob(both))


def test_mixture_against_torch_and_sklearn():
    torch.manual_seed(0)
    weights, mean, logvar = torch.randn(4), torch.randn(4, 3), torch.randn(4, 3)
    z = torch.randn(7, 3)
    parts = td.Independent(td.Normal(mean, (0.5 * logvar).exp()), 1)
    reference = td.MixtureSameFamily(td.Categorical(logits=weights), parts).log_prob(z)
    torch.testing.assert_close(mixture_log_prob(z, weights, mean, logvar), reference)
    fitted = GaussianMixture(2, covariance_type="diag", random_state=0).fit(torch.randn(200, 3))
    ours = mixture_log_prob(
        z.double(),
        torch.from_numpy(fitted.weights_).log(),
        torch.from_numpy(fitted.means_),
        torch.from_numpy(fitted.covariances_).log(),
    )
    torch.testing.assert_close(ours, torch.from_numpy(fitted.score_samples(z)))


def test_vamp_is_the_mixture_of_posteriors_and_teaches_the_encoder():
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=4, hidden_size=8, latent_dim=2)
    prior = VampPrior(2, 5, sample_size=4).train()
    prior.tie(vae)
    z = torch.randn(6, 2)
    posterior = vae.encode(torch.tanh(prior.pseudo_inputs)).latent_dist
    each = torch.stack([posterior.log_prob(one.expand(5, 2)) for one in z])
    log_prob = prior.log_prob(z)
    torch.testing.assert_close(log_prob, torch.logsumexp(each, 1) - math.log(5))
    log_prob.sum().backward()
    assert prior.pseudo_inputs.grad is not None and vae.fc1.weight.grad is not None
    torch.testing.assert_close(prior.eval().log_prob(z), log_prob.detach())


@pytest.mark.parametrize(
    "act,message",
    [
        (lambda: VampPrior(3, 5, sample_size=4).tie(MLPVAE(4, latent_dim=2)), "latent_dim is 3"),
        (lambda: VampPrior(2, 5).tie(MLPVAE(num_class_embeds=3)), "conditional VAE"),
        (lambda: FlowPrior(kind="nsf"), "kind must be 'maf' or 'iaf', got 'nsf'"),
        (lambda: GaussianMixturePrior(num_components=0), "num_components must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()
