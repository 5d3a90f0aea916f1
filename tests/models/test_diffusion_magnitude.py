"""Magnitude-preserving layers: mean squares of 1 stay 1, and weights have a direction only."""

import pytest
import torch

from hfgen.models.layers.magnitude import MPLinear, mp_silu, mp_sum, unit
from hfgen.models.transformer_magnitude import MagnitudePreservingTransformer


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def power(x: torch.Tensor) -> float:
    return float(x.detach().square().mean())


def build(**options) -> MagnitudePreservingTransformer:
    torch.manual_seed(0)
    sizes = {"sample_size": 16, "in_channels": 1, "out_channels": 1, "hidden_dim": 64}
    return MagnitudePreservingTransformer(**{**sizes, "num_layers": 2, **options})


def test_each_layer_keeps_the_mean_square():
    a, b = normal(2000, 64), normal(2000, 64, seed=1)
    assert power(mp_silu(a)) == pytest.approx(1, abs=0.02)
    for share in (0.1, 0.3, 0.5):
        assert power(mp_sum(a, b, share)) == pytest.approx(1, abs=0.02)
    torch.manual_seed(0)
    assert power(MPLinear(64, 512)(a)) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(unit(7 * a).square().mean(-1), torch.ones(2000), rtol=1e-3, atol=0)


def test_a_weight_has_a_direction_only():
    layer, x = MPLinear(8, 4), normal(3, 8)
    before = layer.eval()(x)
    layer.weight.data *= 100
    torch.testing.assert_close(layer(x), before, rtol=1e-3, atol=1e-4)
    assert layer.weight.norm() > 50, "not touched outside training"
    layer.train()(x)
    torch.testing.assert_close(layer.weight.square().mean(1), torch.ones(4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("depth", [2, 24])
def test_magnitudes_hold_through_depth_and_after_wild_steps(depth):
    """Each block's tokens, at the start and after weights took steps of random noise."""
    model, found = build(num_layers=depth).train(), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: found.append(power(output)))
    for _ in range(3):
        found.clear()
        with torch.no_grad():
            model(normal(8, 1, 16, 16), torch.linspace(0, 999, 8))
            for i, parameter in enumerate(model.parameters()):
                parameter += 5 * normal(*parameter.shape, seed=i) if parameter.ndim else 0
        assert len(found) == depth and 0.7 < min(found) and max(found) < 1.25


def test_it_starts_at_zero_and_learns_from_there():
    model, x = build(num_class_embeds=3).train(), normal(4, 1, 16, 16)
    call = {"timestep": torch.tensor([1.0, 10, 100, 900]), "class_labels": torch.arange(4) % 3}
    assert model(x, **call).sample.abs().max() == 0
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = (model(x, **call).sample - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    other = model(x, call["timestep"], class_labels=(torch.arange(4) + 1) % 3).sample
    assert not torch.allclose(other, model(x, **call).sample)


def test_twice_before_a_backward_pass():
    """As self-conditioning and flow maps call a network; forced normalisation is past autograd."""
    model, x = build().train(), normal(2, 1, 16, 16)
    (model(x, 5.0).sample + model(2 * x, 9.0).sample).sum().backward()
    assert model.gain_out.grad is not None


def test_patches_come_back_where_they_were():
    model, x = build(patch_size=4), normal(2, 1, 16, 16)
    torch.testing.assert_close(model._unpatch(model._patches(x)), x)


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"patch_size": 3}, {}, "sample_size 16 is not a multiple of patch_size=3"),
        ({"hidden_dim": 30}, {}, "hidden_dim 30 is not a multiple"),
        ({"num_class_embeds": 3}, {}, "class_labels=None"),
        ({}, {"class_labels": torch.tensor([0])}, "num_class_embeds=None"),
    ],
)
def test_what_does_not_fit_is_refused(options, call, message):
    with pytest.raises(ValueError, match=message):
        build(**options)(normal(1, 1, 16, 16), 1.0, **call)
