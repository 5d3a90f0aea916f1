"""Spectral normalisation against the SVD and torch's own, and its independence of how often it is
called.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hfgen.models.layers.spectral_norm import SNConv2d, SNEmbedding, SNLinear

LAYERS = {
    "conv": (lambda: SNConv2d(3, 8, 3, padding=1), lambda: torch.randn(2, 3, 5, 5)),
    "linear": (lambda: SNLinear(6, 4), lambda: torch.randn(2, 6)),
    "embedding": (lambda: SNEmbedding(5, 7), lambda: torch.tensor([0, 4])),
}


@pytest.mark.parametrize("name", LAYERS)
def test_sigma_is_the_largest_singular_value(name):
    torch.manual_seed(0)
    layer, x = (make() for make in LAYERS[name])
    for _ in range(300):
        layer.spectral.stamp.fill_(torch.nan)  # as if the weight had changed: iterate once more
        layer(x)
    normalised = layer.spectral(layer.weight).flatten(1)
    sigma = torch.linalg.svdvals(layer.weight.flatten(1))[0]
    torch.testing.assert_close(normalised * sigma, layer.weight.flatten(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.linalg.matrix_norm(normalised, 2), torch.tensor(1.0))


def test_gradient_is_that_of_torch():
    torch.manual_seed(0)
    ours, plain = SNLinear(6, 4), nn.Linear(6, 4)
    plain.load_state_dict({"weight": ours.weight.detach(), "bias": ours.bias.detach()})
    theirs = nn.utils.parametrizations.spectral_norm(plain, n_power_iterations=1).eval()
    ours.eval()
    with torch.no_grad():
        ours.spectral.u.copy_(theirs.parametrizations.weight[0]._u)
        v = nn.functional.normalize(ours.weight.T @ ours.spectral.u, dim=0)
        theirs.parametrizations.weight[0]._v.copy_(v)
    x = torch.randn(3, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original.grad)


def test_one_iteration_for_each_weight_however_often_it_is_called():
    layer, x = SNLinear(6, 4), torch.randn(2, 6)
    layer(x)
    once = layer.spectral.u.clone()
    resumed = copy.deepcopy(layer)
    layer(x), layer(x)
    assert torch.equal(layer.spectral.u, once)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(4, 6))
        resumed.weight.copy_(layer.weight)
    layer(x), resumed(x)
    assert not torch.equal(layer.spectral.u, once)
    assert torch.equal(layer.spectral.u, resumed.spectral.u)
    layer.eval()
    evaluated = layer.spectral.u.clone()
    with torch.no_grad():
        layer.weight.mul_(torch.rand(4, 6))
    layer(x)
    assert torch.equal(layer.spectral.u, evaluated)


def test_two_calls_before_one_backward():
    layer = SNLinear(6, 4)
    loss = layer(torch.randn(2, 6)).sum() + layer(torch.randn(2, 6)).sum()
    loss.backward()
    assert torch.isfinite(layer.weight.grad).all()
