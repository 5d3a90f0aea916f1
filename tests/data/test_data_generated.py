"""Sets made in code have the modes and factors that they say."""

from __future__ import annotations

import math

import pytest
import torch

from hfgen.data import BatchStream, load_source
from hfgen.data.generated import GRID_MODES, GRID_STD
from hfgen.data.locate import GENERATED
from hfgen.data.sprites import FACTOR_SIZES, RADIUS, draw
from hfgen.errors import HfgenError


@pytest.mark.parametrize("name", GENERATED)
def test_every_generated_set_is_a_source(name, config):
    for role in ("train", "validation"):
        source = load_source(config(name, max_images=64), role)
        spec = source.spec
        assert (spec.name, spec.split, len(source)) == (name, role, 64)
        rows = BatchStream(source, 64, seed=0).rows(0, 64)
        assert rows["images"].shape == (64, spec.channels, spec.height, spec.width)
        assert rows["images"].dtype == torch.float32 and rows["images"].abs().max() < 1.1
        assert 0 <= rows["labels"].min() and rows["labels"].max() < spec.num_classes
        again = load_source(config(name, max_images=64), role)
        assert again.spec.fingerprint == spec.fingerprint
        assert torch.equal(again.batch(range(64))["images"], source.batch(range(64))["images"])
    roles = ("train", "validation")
    first, second = (load_source(config(name, max_images=64), role) for role in roles)
    assert first.spec.fingerprint != second.spec.fingerprint


def test_the_grid_is_the_mixture_that_it_says(config):
    """Modes equally likely (chi-squared, 24 degrees of freedom, 99.9 %: 51.2), then normal."""
    source = load_source(config("gaussian-grid"))
    batch = source.batch(range(len(source)))
    points, labels = batch["images"].flatten(1), batch["labels"]
    assert GRID_MODES.unique(dim=0).shape == (25, 2) and GRID_MODES.abs().max() == 1
    counts = torch.bincount(labels, minlength=25)
    expected = len(source) / 25
    assert float(((counts - expected) ** 2 / expected).sum()) < 51.2
    z = (points - GRID_MODES[labels]) / GRID_STD
    assert z.mean().abs() < 4.5 / math.sqrt(z.numel())
    assert abs(z.var().item() - 1) < 4.5 * math.sqrt(2 / z.numel())
    nearest = torch.cdist(points, GRID_MODES).argmin(1)
    assert torch.equal(nearest, labels)


def test_sprites_hold_each_combination_once(config):
    train, validation = (load_source(config("sprites"), role) for role in ("train", "validation"))
    assert len(train) + len(validation) == math.prod(FACTOR_SIZES) == 737_280
    both = torch.cat([train.factors, validation.factors])
    sizes = torch.tensor(FACTOR_SIZES)
    assert both.min() == 0 and torch.equal(both.amax(0) + 1, sizes)
    strides = torch.tensor([math.prod(FACTOR_SIZES[i + 1 :]) for i in range(5)])
    assert torch.equal((both @ strides).sort().values, torch.arange(737_280))


def centroid(inside: torch.Tensor) -> tuple[float, float]:
    """x and y of the middle of the pixels inside, in units of half the image."""
    side = inside.shape[-1]
    at = (torch.arange(side) + 0.5) * 2 / side - 1
    mass = inside.float()
    return (mass.sum(0) @ at / mass.sum()).item(), (mass.sum(1) @ at / mass.sum()).item()


@pytest.mark.parametrize(("shape", "area"), [(0, (2 * 0.9) ** 2), (1, math.pi / 2)])
def test_sprites_have_their_area_place_and_scale(shape, area):
    """Squares and ellipses against closed forms, at a high resolution."""
    for scale, x, y in ((0, 0, 31), (5, 20, 4), (3, 31, 16)):
        levels = torch.tensor([[shape, scale, 7, x, y]])
        inside = draw(levels, 512)[0]
        radius = RADIUS * (0.5 + 0.5 * scale / 5)
        assert math.isclose(inside.sum() * (2 / 512) ** 2, area * radius**2, rel_tol=0.02)
        assert centroid(inside) == pytest.approx((x / 31 - 0.5, y / 31 - 0.5), abs=0.01)


def test_sprites_turn_with_their_orientation():
    """A quarter turn (10 of 40 levels) is `torch.rot90`; the ellipse is long along its angle."""
    levels = torch.tensor([[2, 5, 0, 0, 0], [2, 5, 10, 0, 0]])
    centred = torch.stack([draw(levels[i : i + 1], 512)[0] for i in range(2)])
    x, y = (round((c + 1) * 256) for c in (-0.5, -0.5))
    window = centred[:, y - 100 : y + 100, x - 100 : x + 100]
    turned = torch.rot90(window[0], -1)
    assert (turned != window[1]).float().mean() < 0.005
    ellipse = draw(torch.tensor([[1, 5, 0, 16, 16]]), 256)[0]
    assert ellipse.any(0).sum() > 1.8 * ellipse.any(1).sum()


def test_no_sprite_leaves_the_image():
    corners = torch.cartesian_prod(
        *(torch.arange(size) for size in (3, 1, 40)), *(torch.tensor([0, 31]) for _ in range(2))
    )
    corners[:, 1] = 5
    inside = draw(corners, 64)
    edge = torch.cat([inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]], dim=1)
    assert not edge.any() and inside.flatten(1).any(1).all()


def test_stacked_digits_are_their_channels(config, shared_cache):
    digits = load_source(config("mnist"))
    stacked = load_source(config("stacked-mnist"))
    images, labels = stacked.uint8(range(200)), stacked.labels(range(200))
    names = torch.tensor([[int(digit) for digit in stacked.spec.class_names[i]] for i in labels])
    known = {image.numpy().tobytes(): i for i, image in enumerate(digits.uint8(range(len(digits))))}
    for channel in range(3):
        grey = images[:, channel : channel + 1].contiguous()
        rows = [known[image.numpy().tobytes()] for image in grey]
        assert torch.equal(digits.labels(rows), names[:, channel])
    assert len(set(stacked.labels(range(20_000)).tolist())) == 1000


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("gaussian-grid", {"resolution": 8}),
        ("gaussian-grid", {"channels": 1}),
        ("stacked-mnist", {"channels": 1}),
    ],
)
def test_settings_that_do_not_apply(name, setting, config):
    with pytest.raises(HfgenError, match="does not apply to"):
        load_source(config(name, **setting))
