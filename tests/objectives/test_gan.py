"""The GAN objective against its formulas, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hfgen.errors import HfgenError
from hfgen.models.gan_dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.objectives.base import Clock
from hfgen.objectives.gan import GAN
from hfgen.rng import Rng

CLOCK = Clock(step=3, images_seen=24, total_images=100)


def models(classes=None, norm="group"):
    torch.manual_seed(0)
    common = {"sample_size": 8, "num_class_embeds": classes, "norm": norm, "channels": 8}
    return {
        "generator": DCGANGenerator(out_channels=1, latent_dim=4, **common).double(),
        "discriminator": DCGANDiscriminator(in_channels=1, **common).double(),
    }


def batch(rows=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(rows, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    return {"images": images, "labels": torch.arange(rows) % 3}


def rng(start=0):
    return Rng(0, 3, "phase", start=start)


def gradients(objective, phase, roles, rows, splits=1):
    """Gradients of the phase's models, accumulated over ``splits`` micro-batches."""
    trained = next(p for p in objective.phases if p.name == phase).trains
    for role, model in roles.items():
        model.zero_grad()
        model.requires_grad_(role in trained)
    size = len(rows["images"]) // splits
    for i in range(splits):
        part = {key: value[i * size : (i + 1) * size] for key, value in rows.items()}
        loss, _ = objective.loss(phase, roles, part, rng(i * size), CLOCK)
        (loss / splits).backward()
    return [p.grad.clone() for role in trained for p in roles[role].parameters()]


def test_discriminator_loss_is_the_logistic_one():
    roles, rows = models(), batch()
    z = rng().randn("z", (8, 4)).double()
    real = roles["discriminator"](rows["images"]).logits
    fake = roles["discriminator"](roles["generator"](z).sample).logits
    bce = F.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
    loss, terms = GAN().loss("discriminator", roles, rows, rng(), CLOCK)
    torch.testing.assert_close(loss, expected)
    assert set(terms) == {"loss_d", "logit_real", "logit_fake", "overfitting"}
    torch.testing.assert_close(terms["overfitting"].double(), real.sign().mean())
    loss, terms = GAN().loss("generator", roles, rows, rng(), CLOCK)
    torch.testing.assert_close(loss, bce(fake, torch.ones_like(fake)))
    assert not terms["loss_g"].requires_grad


def test_r1_is_the_squared_norm_of_the_jacobian():
    roles, rows = models(), batch(4)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: roles["discriminator"](x).logits, rows["images"]
    )
    per_row = torch.stack([jacobian[i, i].square().sum() for i in range(4)])
    loss, terms = GAN(r1_gamma=0.3, r1_every=16).loss("r1", roles, rows, rng(), CLOCK)
    torch.testing.assert_close(loss, 16 * 0.3 / 2 * per_row.mean())
    torch.testing.assert_close(terms["r1"].double(), per_row.mean(), rtol=1e-6, atol=0)
    plain = GAN(r1_gamma=0).loss("discriminator", roles, rows, rng(), CLOCK)[0]
    every = GAN(r1_gamma=0.3, r1_every=1).loss("discriminator", roles, rows, rng(), CLOCK)[0]
    torch.testing.assert_close(every, plain + 0.3 / 2 * per_row.mean())


def test_r1_trains_through_the_gradient():
    """Double backward: the derivative of the penalty by a weight, against a finite difference."""
    roles, rows = models(norm="none"), batch(4)
    objective = GAN(r1_gamma=1.0, r1_every=16)
    gradients(objective, "r1", roles, rows)
    weight = roles["discriminator"].head.weight
    ours, eps = weight.grad[0, 0].item(), 1e-5
    values = []
    for step in (eps, -eps):
        with torch.no_grad():
            weight[0, 0] += step
        values.append(objective.loss("r1", roles, rows, rng(), CLOCK)[0].item())
        with torch.no_grad():
            weight[0, 0] -= step
    assert math.isclose(ours, (values[0] - values[1]) / (2 * eps), rel_tol=1e-6)


def test_default_gamma_is_the_heuristic():
    roles, rows = models(), batch(4)
    explicit = GAN(r1_gamma=0.0002 * 8**2 / 32).loss("r1", roles, rows, rng(), CLOCK)[0]
    clock = Clock(step=0, images_seen=0, total_images=100, total_batch_size=32)
    default = GAN().loss("r1", roles, rows, rng(), clock)[0]
    torch.testing.assert_close(default, explicit)
    with pytest.raises(ValueError, match="total_batch_size"):
        GAN().loss("r1", roles, rows, rng(), CLOCK)


def test_phases():
    names = [(p.name, p.trains, p.every) for p in GAN(r1_every=4, n_critic=5).phases]
    assert names == [
        ("discriminator", ("discriminator",), 1),
        ("r1", ("discriminator",), 4),
        ("generator", ("generator",), 5),
    ]
    for objective in (GAN(r1_every=1), GAN(r1_gamma=0)):
        assert [p.name for p in objective.phases] == ["discriminator", "generator"]


@pytest.mark.parametrize("phase", ["discriminator", "r1", "generator"])
@pytest.mark.parametrize("splits", [2, 4])
def test_micro_batches_change_nothing(phase, splits):
    objective, roles, rows = GAN(r1_gamma=0.5), models(classes=3), batch()
    whole = gradients(objective, phase, roles, rows)
    parts = gradients(objective, phase, roles, rows, splits)
    for ours, theirs in zip(whole, parts, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_batch_norm_does_not_mix_real_and_fake():
    roles, rows = models(norm="batch"), batch()
    z = rng().randn("z", (8, 4)).double()
    fake = roles["generator"](z).sample
    expected = (
        F.softplus(-roles["discriminator"](rows["images"]).logits)
        + F.softplus(roles["discriminator"](fake).logits)
    ).mean()
    loss, _ = GAN(r1_gamma=0).loss("discriminator", roles, rows, rng(), CLOCK)
    torch.testing.assert_close(loss, expected)


def test_fakes_take_the_labels_of_the_batch():
    roles, rows = models(classes=3), batch()
    z = rng().randn("z", (8, 4)).double()
    fake = roles["generator"](z, rows["labels"]).sample
    expected = F.softplus(-roles["discriminator"](fake, rows["labels"]).logits).mean()
    loss, _ = GAN().loss("generator", roles, rows, rng(), CLOCK)
    torch.testing.assert_close(loss, expected)
    with pytest.raises(HfgenError, match="num_class_embeds: is 3, but the data has no labels"):
        GAN().loss("generator", roles, {"images": rows["images"]}, rng(), CLOCK)


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_networks_for_other_channels_are_one_line(phase):
    roles, rows = models(), batch()
    wanted = rows["images"].shape[1]
    rows["images"] = rows["images"][:, :1].repeat(1, wanted + 1, 1, 1)
    message = rf"model.generator.out_channels: is {wanted}, but the data has {wanted + 1} channel"
    with pytest.raises(HfgenError, match=message):
        GAN().loss(phase, roles, rows, rng(), CLOCK)


def test_generator_gets_no_gradient_in_the_discriminators_phase():
    roles, rows = models(), batch()
    GAN(r1_gamma=0).loss("discriminator", roles, rows, rng(), CLOCK)[0].backward()
    assert all(p.grad is None for p in roles["generator"].parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial_loss": "hinged"}, "objective.adversarial_loss: unknown value 'hinged'"),
        ({"r1_gamma": -1.0}, "objective.r1_gamma: must be >= 0, got -1.0"),
        ({"r1_every": 0}, "objective.r1_every: must be >= 1, got 0"),
        ({"n_critic": 0}, "objective.n_critic: must be >= 1, got 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(HfgenError, match=message):
        GAN(**options)
