"""Annealed importance sampling against normalisers that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from hfgen.data import TensorSource
from hfgen.errors import HfgenError
from hfgen.evaluation import evaluate
from hfgen.evaluation.annealing import Path, sigmoid_schedule
from hfgen.evaluation.likelihood import BOUNDS, Annealed, log_likelihood
from hfgen.evaluation.model_metrics import MODEL_METRICS
from hfgen.models.prior_mixture import GaussianMixturePrior
from hfgen.models.prior_sphere import SphereUniformPrior
from hfgen.models.vae_mlp import MLPVAE
from hfgen.pipelines.vae_pipeline import VAEPipeline
from hfgen.rng import Rng
from tests.evaluation.test_likelihood import LATENT, STD, images, pipeline


class Short(Annealed):
    num_temperatures = 40
    num_leapfrog = 4


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setitem(BOUNDS, "ais", Short())


def nats(pipe, x, k, bound=None):
    with torch.inference_mode():
        return (bound or Short()).log_prob(pipe, x, k, Rng(0))


def test_schedule_rises_from_prior_to_posterior():
    betas = sigmoid_schedule(10)
    assert betas[0] == 0 and betas[-1] == 1 and bool((betas.diff() > 0).all())
    torch.testing.assert_close(betas + betas.flip(0), torch.ones(11, dtype=torch.float64))


def test_linear_vae_whatever_its_encoder():
    pipe, x = pipeline(3.0), images(24)  # the encoder is far off
    exact = pipe.vae.exact(x)
    found = nats(pipe, x, 24)
    assert float(found.mean()) == pytest.approx(float(exact.mean()), abs=0.05)
    assert (found - exact).abs().max() < 0.5
    with torch.inference_mode():
        elbo = float(BOUNDS["elbo"].log_prob(pipe, x, 64, Rng(0)).mean())
    assert elbo < float(exact.mean()) - 1


def test_weights_are_unbiased_even_with_few_temperatures():
    class Rough(Annealed):
        num_temperatures = 3
        num_leapfrog = 2

    pipe, x = pipeline(1.0), images(4)
    exact = pipe.vae.exact(x)
    one, many = nats(pipe, x, 1, Rough()), nats(pipe, x, 4000, Rough())
    torch.testing.assert_close(many.float(), exact, atol=0.08, rtol=0)
    assert one.mean() < exact.mean()


def test_mixture_prior_in_closed_form():
    pipe, x = pipeline(1.0), images(16)
    prior = GaussianMixturePrior((LATENT,), 2)
    with torch.no_grad():
        prior.mean.copy_(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
        prior.logvar.fill_(math.log(0.5))
    pipe.register_modules(prior=prior)
    vae = pipe.vae
    spread = 0.5 * vae.W @ vae.W.T + STD**2 * torch.eye(16)
    parts = [MultivariateNormal(vae.b + vae.W @ mean, spread) for mean in prior.mean.detach()]
    exact = torch.stack([p.log_prob(x.flatten(1)) for p in parts]).logsumexp(0) - math.log(2)
    assert float(nats(pipe, x, 24).mean()) == pytest.approx(float(exact.mean()), abs=0.06)


def test_transitions_leave_a_normal_as_it_is_and_step_sizes_are_tuned():
    scale = torch.tensor([0.1, 1.0])  # of the posterior: tuned to its narrow side
    path = Path(
        log_prior=lambda z: -0.5 * z.square().sum(1),
        log_likelihood=lambda z: -0.5 * (z.square() * (scale**-2 - 1)).sum(1),
        num_temperatures=60,
        num_leapfrog=5,
    )
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    steps = path.tune(z, Rng(1))
    assert 0.03 < float(steps[-1].median()) < 0.3
    z, accepts = z * scale, []
    for i in range(5):
        z, likelihood, accepted = path.move(z, 1.0, torch.full((2000,), 0.12), Rng(2, i))
        accepts.append(float(accepted.mean()))
        torch.testing.assert_close(likelihood, path.log_likelihood(z))
    assert 0.4 < sum(accepts) / 5 < 0.98
    torch.testing.assert_close(z.std(0), scale, rtol=0.08, atol=0)
    assert (z.mean(0) / scale).abs().max() < 0.08


def test_one_interface(short):
    pipe, x = pipeline(1.0), images(20)
    result = log_likelihood(pipe, x, bound="ais", k=2)
    assert (result.bound, result.k, result.nfe) == ("ais", 2, 3 * 40 * 5)
    parts = log_likelihood(pipe, x, bound="ais", k=2, batch_size=16)
    assert parts.nats == pytest.approx(result.nats, abs=1e-3)
    assert not BOUNDS["ais"].by_default


def test_what_the_encoder_misses_is_measured_on_the_same_images(short):
    x, found = images(16), {}
    for spread in (1.0, 3.0):
        results = evaluate(pipeline(spread), data=TensorSource(x), metrics=("ais",), progress=False)
        found[spread] = {score.name: score for score in results.scores}
    for scores in found.values():
        exact = float(pipeline(1.0).vae.exact(x).mean())
        assert scores["ais_nats"].value == pytest.approx(exact, abs=0.3)
        assert "ais, K=4, NFE=1000" in scores["ais_nats"].settings
        assert "ais_bits_per_dim" in scores
    gaps = [scores["ais_over_iw_nats"].value for scores in found.values()]
    assert abs(gaps[0]) < 0.3  # this encoder misses nothing
    assert gaps[1] > gaps[0] + 0.01
    assert MODEL_METRICS["ais"].on_request and "ais" not in MODEL_METRICS["likelihood"].functions


def test_a_conditional_model_is_told_the_class(short):
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=4, hidden_size=8, latent_dim=2, num_class_embeds=3)
    with torch.no_grad():
        vae.fc3.weight.mul_(5)
    pipe = VAEPipeline(vae, likelihood={"type": "bernoulli"})
    x = images(16).sign()
    found = {
        label: [
            log_likelihood(pipe, x, labels=torch.full((16,), label), bound=bound, k=k).nats
            for bound, k in (("ais", 2), ("iw", 500))
        ]
        for label in (0, 2)
    }
    for ais, importance in found.values():
        assert ais == pytest.approx(importance, abs=0.1)
    assert abs(found[0][1] - found[2][1]) > 0.05


def test_a_prior_that_is_no_density_of_all_space():
    vae = MLPVAE(sample_size=4, hidden_size=8, latent_dim=3, posterior={"type": "vmf"})
    pipe = VAEPipeline(vae, SphereUniformPrior(3), likelihood={"type": "bernoulli"})
    with pytest.raises(HfgenError, match="no Hamiltonian steps under SphereUniformPrior; valid: "):
        log_likelihood(pipe, images(4).sign(), bound="ais")
