"""Alarms of adversarial training: what they read, and that they keep quiet otherwise."""

from __future__ import annotations

import pytest
import torch

from hfgen.models.gan_dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.objectives.base import Clock
from hfgen.objectives.gan import GAN
from hfgen.objectives.gan_symptoms import diversity
from hfgen.rng import Rng

LATER = Clock(step=500, images_seen=20_000, total_images=100_000)
HEALTHY = {"diversity": 0.95, "overfitting": 0.4, "logit_real": 1.0, "logit_fake": -1.0}


@pytest.mark.parametrize(
    ("terms", "name"),
    [
        ({"diversity": 0.1}, "collapse"),
        ({"overfitting": 0.97}, "discriminator overfitting"),
        ({"logit_real": 30.0}, "discriminator too strong"),
    ],
)
def test_each_alarm(terms, name):
    assert GAN().symptoms(HEALTHY, LATER) == {}
    assert set(GAN().symptoms({**HEALTHY, **terms}, LATER)) == {name}
    start = Clock(step=1, images_seen=10, total_images=1000)
    assert GAN().symptoms({**HEALTHY, **terms}, start) == {}


def test_what_a_loss_does_not_mean_is_not_read():
    far = {**HEALTHY, "overfitting": 1.0, "logit_real": 100.0}
    assert GAN(adversarial_loss="wasserstein").symptoms(far, LATER) == {}
    pairing = GAN(adversarial_loss="relativistic_pairing").symptoms(far, LATER)
    assert set(pairing) == {"discriminator too strong"}


def test_diversity_of_independent_images_is_one():
    images = torch.randn(2, 4096, 1, 2, 2)
    assert diversity(*images, None) == pytest.approx(1.0, abs=0.05)
    assert diversity(0.3 * images[0], images[1], None) == pytest.approx(0.3, abs=0.02)


def test_one_image_of_each_class_is_no_diversity():
    labels = torch.arange(64) % 4
    real = torch.randn(64, 1, 2, 2)
    fake = torch.randn(4, 1, 2, 2)[labels]
    assert diversity(fake, real, labels) == 0
    assert diversity(fake, real, None) > 0.5  # which classes alone hide
    far_apart = real + 100 * labels[:, None, None, None]
    assert diversity(real, far_apart, labels) == pytest.approx(1.0, abs=1e-3)
    assert diversity(fake, real, None, labels) == 0  # labels as codes
    whole = diversity(real, 2 * real, None, labels)
    assert whole == pytest.approx(0.5, abs=0.1)  # within codes by any two of the real ones
    alone = torch.arange(64)  # no class twice
    assert diversity(fake, real, alone) == diversity(fake, real, None)


def test_a_collapsed_generator_is_seen_in_the_objectives_terms():
    torch.manual_seed(0)
    common = {"sample_size": 8, "channels": 8, "num_class_embeds": 2, "norm": "none"}
    models = {
        "generator": DCGANGenerator(out_channels=1, latent_dim=4, **common),
        "discriminator": DCGANDiscriminator(in_channels=1, **common),
    }
    rows = {"images": torch.rand(16, 1, 8, 8) * 2 - 1, "labels": torch.arange(16) % 2}
    objective, found = GAN(), []
    for scale in (1.0, 0.0):
        with torch.no_grad():
            models["generator"].project[0].weight[:, :4] *= scale
            models["generator"].project[0].weight[:, 4:] *= 1 if scale else 3
        terms = objective.loss("generator", models, rows, Rng(0, 0), LATER)[1]
        found.append(objective.symptoms({k: float(v) for k, v in terms.items()}, LATER))
    assert set(found[1]) == {"collapse"}


def test_a_batch_of_one_image_has_no_diversity_to_log():
    models = {
        "generator": DCGANGenerator(8, out_channels=1, latent_dim=4, channels=8, norm="none"),
        "discriminator": DCGANDiscriminator(8, in_channels=1, channels=8, norm="none"),
    }
    terms = GAN().loss("generator", models, {"images": torch.zeros(1, 1, 8, 8)}, Rng(0, 0), LATER)[
        1
    ]
    assert set(terms) == {"loss_g"}
