"""A conditional GAN draws what its labels say, in the eyes of a judge trained on real digits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hfgen.data import BatchStream, load_source
from hfgen.data.config import DataConfig
from hfgen.models.gan_dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.objectives.base import Clock
from hfgen.objectives.gan import GAN
from hfgen.rng import Rng

CLASSES, STEPS, BATCH = 10, 400, 64


def digits(rows: int) -> BatchStream:
    config = DataConfig(path="mnist", resolution=8, class_conditional=True)
    return BatchStream(load_source(config, split="train"), rows, seed=0)


def judge(stream: BatchStream) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(300):
        rows = stream.rows(0, 200)
        stream.advance()
        optimizer.zero_grad()
        F.cross_entropy(model(rows["images"]), rows["labels"]).backward()
        optimizer.step()
    return model


def test_samples_are_of_their_class():
    stream = digits(200)
    digit = judge(stream)
    rows = stream.rows(0, 200)
    assert (digit(rows["images"]).argmax(1) == rows["labels"]).float().mean() > 0.8
    torch.manual_seed(0)
    common = {"sample_size": 8, "num_class_embeds": CLASSES, "channels": 32}
    models = {
        "generator": DCGANGenerator(out_channels=1, latent_dim=8, **common),
        "discriminator": DCGANDiscriminator(in_channels=1, norm="none", **common),
    }
    rates = {"generator": 2e-3, "discriminator": 2e-3}
    optimizers = {
        role: torch.optim.Adam(model.parameters(), rates[role], betas=(0.0, 0.99))
        for role, model in models.items()
    }
    objective, data = GAN(r1_gamma=0.05, r1_every=4), digits(BATCH)
    for step in range(STEPS):
        for phase in objective.phases:
            if step % phase.every:
                continue
            (role,) = phase.trains
            for name, model in models.items():
                model.requires_grad_(name == role)
            clock = Clock(step, step * BATCH, STEPS * BATCH, BATCH)
            optimizers[role].zero_grad()
            batch = data.rows(0, BATCH)
            objective.loss(phase.name, models, batch, Rng(0, step, phase.name), clock)[0].backward()
            optimizers[role].step()
            data.advance()
    labels = torch.arange(500) % CLASSES
    with torch.no_grad():
        samples = models["generator"].eval()(torch.randn(500, 8), labels).sample
        right = (digit(samples).argmax(1) == labels).float().mean()
    assert right > 0.5, float(right)  # by chance: 0.1
