"""A conditional GAN draws what its labels say, in the eyes of a judge trained on real digits, and
not one image of each class.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hfgen.data import BatchStream, load_source
from hfgen.data.config import DataConfig
from hfgen.models.gan_resnet import ResNetDiscriminator, ResNetGenerator
from hfgen.objectives.base import Clock
from hfgen.objectives.gan import GAN
from hfgen.objectives.gan_symptoms import diversity
from hfgen.rng import Rng

CLASSES, STEPS, BATCH = 10, 250, 64
BAR = 0.75
"""Here 0.88 of the samples are of their class, 0.09 where the labels of training lie."""


def digits(rows: int) -> BatchStream:
    config = DataConfig(path="mnist", resolution=8, class_conditional=True)
    return BatchStream(load_source(config, split="train"), rows, seed=0)


@pytest.fixture(scope="module")
def judge() -> nn.Module:
    torch.manual_seed(0)
    stream = digits(200)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(600):
        rows = stream.rows(0, 200)
        stream.advance()
        optimizer.zero_grad()
        F.cross_entropy(model(rows["images"]), rows["labels"]).backward()
        optimizer.step()
    rows = stream.rows(0, 200)
    assert (model(rows["images"]).argmax(1) == rows["labels"]).float().mean() > 0.85
    return model


def train(shift: int) -> nn.Module:
    """A small conditional SNGAN; with a ``shift``, every row is told the label of another."""
    torch.manual_seed(0)
    common = {"sample_size": 8, "num_class_embeds": CLASSES, "channels": 24}
    models = {
        "generator": ResNetGenerator(out_channels=1, latent_dim=8, **common),
        "discriminator": ResNetDiscriminator(in_channels=1, **common),
    }
    optimizers = {
        role: torch.optim.Adam(model.parameters(), 2e-3, betas=(0.0, 0.9))
        for role, model in models.items()
    }
    objective, data = GAN(adversarial_loss="hinge", r1_gamma=0), digits(BATCH)
    for step in range(STEPS):
        for phase in objective.phases:
            (role,) = phase.trains
            for name, model in models.items():
                model.requires_grad_(name == role)
            clock = Clock(step, step * BATCH, STEPS * BATCH, BATCH)
            optimizers[role].zero_grad()
            rows = data.rows(0, BATCH)
            batch = {"images": rows["images"], "labels": rows["labels"].roll(shift)}
            objective.loss(phase.name, models, batch, Rng(0, step, phase.name), clock)[0].backward()
            optimizers[role].step()
            data.advance()
    return models["generator"].eval()


def judged(generator: nn.Module, judge: nn.Module) -> tuple[float, float]:
    """Share of samples of their class, and their diversity within classes."""
    rows = digits(500).rows(0, 500)
    labels, z = rows["labels"], torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        samples = generator(z, labels).sample
        right = (judge(samples).argmax(1) == labels).float().mean()
    return float(right), float(diversity(samples, rows["images"], labels))


def test_samples_are_of_their_class_and_differ(judge):
    right, spread = judged(train(shift=0), judge)
    assert right > BAR, right
    assert 0.6 < spread < 1.4, spread


def test_the_bar_is_above_a_generator_whose_labels_mean_nothing(judge):
    right, _ = judged(train(shift=1), judge)
    assert right < 0.25, right  # by chance: 0.1
