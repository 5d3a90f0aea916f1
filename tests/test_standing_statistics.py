"""Standing statistics against the moments of what the generator's batch norms see."""

from __future__ import annotations

import pytest
import torch

from hfgen.export import assemble
from hfgen.models.gan_dcgan import DCGANGenerator
from hfgen.models.gan_r3gan import R3GANGenerator
from hfgen.models.gan_resnet import ResNetGenerator
from hfgen.objectives.gan import GAN
from hfgen.recipe import load
from hfgen.standing_statistics import BATCH, set_standing_statistics


def generator(cls=DCGANGenerator, **options):
    torch.manual_seed(0)
    return cls(8, 1, latent_dim=4, channels=8, **options).double()


def draws(batches, classes=None):
    fixed = torch.Generator().manual_seed(0)
    for _ in range(batches):
        z = torch.randn(BATCH, 4, generator=fixed).double()
        yield z, torch.randint(classes, (BATCH,), generator=fixed) if classes else None


def test_moments_are_means_over_batches():
    model = generator()
    set_standing_statistics(model, 3 * BATCH)
    seen = [model.project(z) for z, _ in draws(3)]
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    norm = model.blocks[0]
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == 0.1 and norm.training and model.training


@pytest.mark.parametrize("cls", [DCGANGenerator, ResNetGenerator])
def test_evaluation_then_draws_what_training_mode_drew(cls):
    model = generator(cls, num_class_embeds=3)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean += 5  # of weights that are no more
    (z, labels), *_ = draws(1, classes=3)
    wanted = model(z, labels).sample
    stale = model.eval()(z, labels).sample
    set_standing_statistics(model, BATCH)
    assert not model.training
    fresh = model(z, labels).sample
    # the biased and the unbiased variance of 64 rows differ
    assert (fresh - wanted).abs().mean() < 0.02 * (stale - wanted).abs().mean()
    again = [b.clone() for b in model.buffers()]
    set_standing_statistics(model, BATCH)
    assert all(torch.equal(a, b) for a, b in zip(again, model.buffers(), strict=True))


def test_without_batch_norm_nothing_happens():
    model = generator(R3GANGenerator, group_width=8)
    before = torch.random.get_rng_state()
    set_standing_statistics(model, BATCH)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_recipe_asks_for_them():
    model = generator().float()
    parts = {"generator": model, "discriminator": None}
    untouched = model.blocks[0].running_mean.clone()
    for wanted, images in ((False, 0), (True, 100)):
        recipe = load("mnist-dcgan", {"objective": {"standing_statistics": images}})
        assert isinstance(recipe.objective, GAN)
        pipeline = assemble(recipe, parts)
        moved = not torch.equal(pipeline.generator.blocks[0].running_mean, untouched)
        assert moved == wanted
