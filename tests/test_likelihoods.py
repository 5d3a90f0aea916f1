"""Likelihoods: they sum or integrate to one, agree with ``torch.distributions``, and sample what
they say.
"""

import itertools
import math

import pytest
import torch
from torch import distributions as td

from hfgen.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gaussian,
    Laplace,
    likelihood_from_config,
    likelihood_to_config,
)

DISCRETE = [
    Categorical(levels=5),
    DiscretizedLogistic(levels=5),
    DiscretizedLogistic(),
    DiscretizedLogisticMixture(components=3, levels=5),
    DiscretizedLogisticMixture(components=2),
]
CONTINUOUS = [
    ContinuousBernoulli(),
    Gaussian(std=0.1),
    Gaussian(std=None),
    Laplace(scale=0.05),
    Laplace(scale=None),
]
EVERY = [Bernoulli(), Bernoulli(logits=False), *CONTINUOUS, *DISCRETE]


def names(likelihood) -> str:
    return repr(likelihood)


def params_for(likelihood, channels=1, batch=3, size=2, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, likelihood.channels(channels), size, size)
    params = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    return params.sigmoid() if likelihood == Bernoulli(logits=False) else params


SUMMED = [(d, 1) for d in DISCRETE] + [(d, 3) for d in DISCRETE if d.levels == 5]  # not 256^3


@pytest.mark.parametrize("likelihood,channels", SUMMED, ids=repr)
def test_discrete_masses_sum_to_one(likelihood, channels):
    params = params_for(likelihood, channels, batch=1, size=1)
    grid = torch.linspace(-1, 1, likelihood.levels, dtype=torch.float64)
    values = torch.tensor(
        list(itertools.product(grid.tolist(), repeat=channels)), dtype=torch.float64
    )
    x = values.view(-1, channels, 1, 1)
    total = likelihood.log_prob(x, params.expand(len(x), -1, 1, 1)).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("likelihood", CONTINUOUS, ids=names)
def test_densities_integrate_to_one(likelihood):
    params = params_for(likelihood, batch=1, size=1, scale=0.3)
    wide = 1 if isinstance(likelihood, ContinuousBernoulli) else 12
    x = torch.linspace(-wide, wide, 400_001, dtype=torch.float64).view(-1, 1, 1, 1)
    density = likelihood.log_prob(x, params.expand(len(x), -1, 1, 1)).exp()
    total = torch.trapezoid(density, x.flatten())
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)


@pytest.mark.parametrize("likelihood", EVERY, ids=names)
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_images_with_the_stated_mean(likelihood, channels):
    params = params_for(likelihood, channels, batch=1, scale=0.3)
    generator = torch.Generator().manual_seed(0)
    many = params.expand(4000, -1, -1, -1)
    samples = likelihood.sample(many, generator)
    assert samples.shape == (4000, channels, 2, 2)
    assert samples.min() >= -1 and samples.max() <= 1
    again = likelihood.sample(many, torch.Generator().manual_seed(0))
    assert torch.equal(samples, again)
    mean = likelihood.mean(params)
    assert mean.shape == (1, channels, 2, 2) and mean.abs().max() <= 1
    if type(likelihood) in (Bernoulli, ContinuousBernoulli, Categorical):
        assert (samples.mean(0) - mean[0]).abs().max() < 0.06


@pytest.mark.parametrize("likelihood", DISCRETE, ids=names)
def test_samples_have_the_stated_frequencies(likelihood):
    params = params_for(likelihood, batch=1, size=1)
    samples = likelihood.sample(params.expand(20_000, -1, 1, 1), torch.Generator().manual_seed(1))
    grid = torch.linspace(-1, 1, likelihood.levels, dtype=torch.float64)
    mass = likelihood.log_prob(grid.view(-1, 1, 1, 1), params.expand(len(grid), -1, 1, 1)).exp()
    index = ((samples.flatten() + 1) / 2 * (likelihood.levels - 1)).round().long()
    counts = torch.bincount(index, minlength=likelihood.levels) / 20_000
    assert (counts - mass).abs().sum() < 0.1  # total variation, twice


def test_continuous_samples_have_the_stated_spread():
    params = torch.zeros(50_000, 2, 1, 1)
    params[:, 1] = math.log(0.1)
    for likelihood, std in ((Gaussian(std=None), 0.1), (Laplace(scale=None), 0.1 * math.sqrt(2))):
        samples = likelihood.sample(params, torch.Generator().manual_seed(0))
        softly = 1.05  # softplus lifts ln 0.1 by ln(1 + 0.005 / 0.1)
        assert abs(float(samples.std()) / (std * softly) - 1) < 0.02


def test_against_torch_distributions():
    x = torch.rand(3, 1, 2, 2, dtype=torch.float64) * 2 - 1
    params = torch.randn(3, 1, 2, 2, dtype=torch.float64)

    def total(density):
        return density.flatten(1).sum(1)

    cases = [
        (Gaussian(std=0.3), td.Normal(params, 0.3)),
        (Laplace(scale=0.3), td.Laplace(params, 0.3)),
    ]
    for likelihood, reference in cases:
        torch.testing.assert_close(likelihood.log_prob(x, params), total(reference.log_prob(x)))
    binary = (x > 0).double() * 2 - 1
    reference = td.Bernoulli(logits=params).log_prob((binary + 1) / 2)
    torch.testing.assert_close(Bernoulli().log_prob(binary, params), total(reference))


def test_predicted_scale_is_the_fixed_one():
    x, mean = torch.rand(2, 3, 4, 4) * 2 - 1, torch.randn(2, 3, 4, 4)
    for predicted, fixed in (
        (Gaussian(std=None, min_std=1e-9), Gaussian(std=0.2)),
        (Laplace(scale=None, min_scale=1e-9), Laplace(scale=0.2)),
    ):
        both = torch.cat([mean, torch.full_like(mean, math.log(0.2))], dim=1)
        torch.testing.assert_close(predicted.log_prob(x, both), fixed.log_prob(x, mean))


def test_one_component_is_the_discretized_logistic():
    x, params = torch.rand(2, 1, 3, 3) * 2 - 1, torch.randn(2, 2, 3, 3)
    with_weight = torch.cat([torch.randn(2, 1, 3, 3), params], dim=1)
    torch.testing.assert_close(
        DiscretizedLogisticMixture(components=1).log_prob(x, with_weight),
        DiscretizedLogistic().log_prob(x, params),
    )


def test_narrow_logistic_has_finite_gradients():
    params = torch.tensor([0.3, -12.0]).view(1, 2, 1, 1).requires_grad_()
    for value in (-1.0, 0.3, 1.0):
        log_prob = DiscretizedLogistic().log_prob(torch.full((1, 1, 1, 1), value), params)
        (gradient,) = torch.autograd.grad(log_prob.sum(), params)
        assert log_prob.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("likelihood", EVERY, ids=names)
def test_config_round_trip_and_gradients(likelihood):
    assert likelihood_from_config(likelihood_to_config(likelihood)) == likelihood
    params = params_for(likelihood, channels=3).requires_grad_()
    x = torch.rand(3, 3, 2, 2, dtype=torch.float64) * 2 - 1
    log_prob = likelihood.log_prob(x, params)
    assert log_prob.shape == (3,)
    log_prob.sum().backward()
    assert params.grad is not None and params.grad.isfinite().all()
    assert params.grad.flatten(1).abs().sum(1).min() > 0


def test_every_likelihood_is_covered():
    assert {type(likelihood) for likelihood in EVERY} == set(LIKELIHOODS.values())


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: Gaussian(std=0.0), "std must be positive, or null"),
        (lambda: Laplace(scale=-1.0), "scale must be positive, or null .* got -1.0"),
        (lambda: Categorical(levels=1), "levels must be at least 2, got 1"),
        (lambda: DiscretizedLogisticMixture(components=0), "components must be at least 1"),
        (lambda: likelihood_from_config({"type": "poisson"}), "unknown likelihood 'poisson'"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
