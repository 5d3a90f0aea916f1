"""Alignment of a denoiser's features: the loss by its formula, what it trains, what it refuses."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from hfgen.errors import HfgenError
from hfgen.models.feature_aligner import FeatureAligner
from hfgen.models.transformer_pixel import PixelTransformer
from hfgen.objectives.base import Clock
from hfgen.objectives.diffusion import Diffusion
from hfgen.objectives.diffusion_alignment import AlignedDiffusion
from hfgen.rng import Rng
from tests.tiny_unet import tiny_unet

CLOCK = Clock(step=0, images_seen=0, total_images=100)
BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 12],
    "depths": [1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2"],
}


def aligner(**options) -> FeatureAligner:
    torch.manual_seed(1)
    given = {"hidden_dim": 16, "backbone": BACKBONE, "input_size": 32, "level": 1}
    return FeatureAligner(**{**given, "projector_dim": 8, **options}).train()


def models(**options) -> dict:
    torch.manual_seed(0)
    network = PixelTransformer(
        sample_size=8, in_channels=1, out_channels=1, hidden_dim=16, num_layers=3
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    scheduler = DDPMScheduler(prediction_type="sample")
    return {"unet": network, "aligner": aligner(**options), "scheduler": scheduler}


def batch(rows: int = 32) -> dict:
    images = torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"images": images}


def loss_of(objective, parts, data=None, start=0):
    return objective.loss("denoise", parts, data or batch(), Rng(0, 0, start=start), CLOCK)


def test_the_loss_is_the_denoising_loss_and_the_weighed_distance():
    parts = models()
    plain, _ = loss_of(Diffusion(), parts)
    total, terms = loss_of(AlignedDiffusion(alignment_weight=0.3), parts)
    torch.testing.assert_close(total, plain + 0.3 * (1 - terms["similarity"]))
    assert -1 < terms["similarity"] < 1
    alone, _ = loss_of(AlignedDiffusion(alignment_weight=0.0), parts)
    torch.testing.assert_close(alone, plain)


def test_similarity_is_one_where_the_features_are_those_of_the_backbone():
    model, images = aligner(), batch(3)["images"]
    model.projector = nn.Identity()
    goal = model.goal(images, 2)
    assert goal.shape == (3, 12, 2, 2)
    for hidden in (goal, goal.flatten(2).transpose(1, 2), 5 * goal):  # a map, tokens, any length
        torch.testing.assert_close(model(images, hidden), torch.ones(3))
    torch.testing.assert_close(model(images, -goal), -torch.ones(3))
    assert model(images, goal.flip(3)).max() < 0.999, "positions count"


def test_gradients_reach_the_named_block_and_no_further():
    parts = models()
    objective = AlignedDiffusion(layer="blocks.1")
    (loss_of(objective, parts)[0] - loss_of(Diffusion(), parts)[0]).backward()
    moved = {
        name: p.grad is not None and p.grad.abs().max() > 1e-9
        for name, p in parts["unet"].named_parameters()
    }
    assert moved["blocks.0.mlp.out.weight"] and moved["blocks.1.mlp.out.weight"]
    assert not moved["blocks.2.mlp.out.weight"] and not moved["patches_out.weight"]
    model = parts["aligner"]
    assert all(p.grad is None for p in model.features.parameters())
    assert all(p.grad is not None for p in model.projector.parameters())
    (phase,) = objective.phases
    assert phase.trains == ("unet", "aligner")


def test_training_aligns_and_leaves_the_backbone_alone():
    parts, objective = models(), AlignedDiffusion(alignment_weight=1.0)
    before = {k: v.clone() for k, v in parts["aligner"].features.state_dict().items()}
    learned = [*parts["unet"].parameters(), *parts["aligner"].projector.parameters()]
    optimizer = torch.optim.Adam(learned, 1e-2)
    found = []
    for _ in range(30):
        loss, terms = loss_of(objective, parts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(terms["similarity"]))
    assert found[-1] > 0.8 > found[0] + 0.1
    for name, value in parts["aligner"].features.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_micro_batches_sum_to_the_whole():
    parts, objective = models(), AlignedDiffusion()
    whole, _ = loss_of(objective, parts)
    images = batch()["images"]
    halves = [loss_of(objective, parts, {"images": images[i : i + 16]}, i)[0] for i in (0, 16)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_a_unets_bottom_can_be_aligned_too():
    _, terms = loss_of(AlignedDiffusion(layer="mid_block"), {**models(), "unet": tiny_unet()})
    assert terms["similarity"].isfinite()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: AlignedDiffusion(alignment_weight=-1.0), "alignment_weight must be at least 0"),
        (lambda: loss_of(AlignedDiffusion(layer="blocks.9"), models()), "blocks.2"),
        (
            lambda: loss_of(AlignedDiffusion(), models(), {"images": torch.zeros(2, 4, 8, 8)}),
            "not latents of 4",
        ),
    ],
    ids=["weight", "layer", "latents"],
)
def test_what_cannot_be_aligned_is_one_line(act, message):
    with pytest.raises(HfgenError, match=message) as error:
        act()
    assert "\n" not in str(error.value)


def test_a_map_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="level 2: the backbone has maps 0 to 1"):
        aligner(level=2)
