"""Augmentations: identity at p = 0, invertible maps, unbiased draws, double backward, adaptive
p.
"""

from __future__ import annotations

import math

import pytest
import torch

from hfgen.errors import HfgenError
from hfgen.models.gan_dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.objectives import gan_transforms as transforms
from hfgen.objectives.base import Clock
from hfgen.objectives.gan import GAN
from hfgen.objectives.gan_augment import ADA, APA, AUGMENTATIONS, PIPES, DiffAugment, augment, ramp
from hfgen.objectives.gan_game import Game
from hfgen.rng import Rng

torch.manual_seed(0)
IMAGES = torch.rand(64, 3, 8, 8, dtype=torch.float64) * 2 - 1


def models():
    torch.manual_seed(0)
    common = {"sample_size": 8, "norm": "group", "channels": 8}
    return {
        "generator": DCGANGenerator(out_channels=3, latent_dim=4, **common).double(),
        "discriminator": DCGANDiscriminator(in_channels=3, **common).double(),
    }


def clock(step=0):
    return Clock(step=step, images_seen=8 * step, total_images=80, total_batch_size=8)


@pytest.mark.parametrize("pipe", PIPES)
def test_nothing_happens_at_zero(pipe):
    assert augment(IMAGES, 0.0, Rng(0), (pipe,)) is IMAGES
    barely = augment(IMAGES, 1e-12, Rng(0), (pipe,))
    torch.testing.assert_close(barely, IMAGES, rtol=0, atol=1e-5)
    assert not torch.allclose(augment(IMAGES, 1.0, Rng(0), (pipe,)), IMAGES)


def test_flips_and_turns_move_pixels_without_mixing_them():
    matrices = transforms.blit(IMAGES, 1.0, Rng(0))
    moved = transforms.warp(IMAGES, matrices)
    untranslated = (matrices[:, :2, 2] == 0).all(1)
    assert untranslated.any()
    kept, image = moved[untranslated].flatten(2).sort().values, IMAGES[untranslated]
    torch.testing.assert_close(kept, image.flatten(2).sort().values, rtol=0, atol=1e-5)
    values = IMAGES.flatten(1).unsqueeze(1) - moved.flatten(1).unsqueeze(2)
    assert values.abs().amin(2).max() < 1e-5  # every output pixel is some input pixel


def test_maps_can_be_undone():
    """A warp and the warp by the inverse matrix are the identity, away from the borders."""
    smooth = torch.nn.functional.interpolate(IMAGES[:, :, :2, :2], size=(64, 64), mode="bicubic")
    matrices = transforms.geometry(smooth, 1.0, Rng(1)).double()
    small = matrices @ torch.diag(torch.tensor([0.3, 0.3, 1.0])).double()
    back = transforms.warp(transforms.warp(smooth, small), torch.linalg.inv(small))
    inner = slice(30, 34)  # the warp shows a third of the image, and its inverse puts that back
    error = (back - smooth)[:, :, inner, inner].abs().flatten(1).amax(1)
    assert error.median() < 0.02


def test_draws_are_unbiased():
    rows = torch.empty(20_000, 1, 64, 64)
    blit = transforms.blit(rows, 1.0, Rng(2))
    rotation = blit[:, :2, :2]
    flipped = torch.linalg.det(rotation) < 0
    assert abs(flipped.double().mean() - 0.5) < 0.02
    assert rotation.mean(0).abs().max() < 0.02  # quarter turns average to nothing
    assert blit[:, :2, 2].mean(0).abs().max() < 0.02
    geometry = transforms.geometry(rows, 1.0, Rng(3))
    area = torch.linalg.det(geometry).log2()
    assert abs(area.mean()) < 0.01 and abs(area.std() - 0.4) < 0.01  # scale^2, log2-std 0.2
    half = transforms.geometry(rows, 0.5, Rng(4))
    untouched = ((torch.linalg.det(half) - 1).abs() < 1e-5).double().mean()
    assert abs(untouched - 0.5) < 0.02


def test_color_keeps_what_it_should():
    grey = torch.rand(256, 1, 2, 2).expand(256, 3, 2, 2) * 2 - 1
    moved = transforms.color(grey, 1.0, Rng(5))
    torch.testing.assert_close(
        moved, moved[:, :1].expand_as(moved), rtol=0, atol=1e-5
    )  # still grey
    single = transforms.color(grey[:, :1], 1.0, Rng(5))
    torch.testing.assert_close(single, moved[:, :1], rtol=1e-4, atol=1e-4)
    turn = transforms._hue_rotation(torch.tensor([0.7, -1.9]))[:, :3, :3]
    torch.testing.assert_close(turn @ turn.mT, torch.eye(3).expand(2, 3, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(turn.sum(2), torch.ones(2, 3))
    trace = turn.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(trace, 1 + 2 * torch.tensor([0.7, -1.9]).cos())


@pytest.mark.parametrize("padding", [0.5, 1.5])
def test_warp_twice_differentiable(padding):
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    matrices = transforms.geometry(images, 1.0, Rng(6)).double() * padding

    def energy(x):
        return transforms.warp(x, matrices).square()

    assert torch.autograd.gradcheck(energy, images)
    assert torch.autograd.gradgradcheck(energy, images)


def test_warp_is_grid_sample():
    matrices = transforms.geometry(IMAGES, 1.0, Rng(7)).double()
    grid = torch.nn.functional.affine_grid(matrices[:, :2], [64, 3, 8, 8], align_corners=False)
    sample = torch.nn.functional.grid_sample
    expected = sample(IMAGES, grid, padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(transforms.warp(IMAGES, matrices), expected)


def test_cutout_removes_a_quarter_and_translate_shifts():
    ones = torch.ones(512, 1, 32, 32)
    holes = 1 - transforms.cutout(ones, 1.0, Rng(8)).mean((1, 2, 3))
    assert holes.max() <= 0.25 + 1e-6 and abs(holes.mean() - 0.4375**2) < 0.01
    moved = transforms.translate(ones, Rng(9))
    lost = 1 - moved.mean((1, 2, 3))
    assert lost.max() <= 1 - (28 / 32) ** 2 + 1e-6 and lost.min() == 0


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_rows_are_drawn_alike_however_the_batch_is_split(name):
    options = {} if name == "diffaugment" else {"start": 0.7, "limit": 1.0}
    augmentation = AUGMENTATIONS[name](**options)
    roles = {**models(), **augmentation.modules()}

    def view(start, stop):
        rows = {"images": IMAGES[start:stop]}
        rng = Rng(0, start=start)
        game = Game("discriminator", roles, rows, rng, clock())
        return augmentation(game, "real", rows["images"], rng)

    torch.testing.assert_close(view(0, 64)[20:30], view(20, 30), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_r1_is_by_the_image_before_augmentation(name):
    options = {} if name == "diffaugment" else {"start": 0.7, "limit": 1.0}
    objective = GAN(augmentation=AUGMENTATIONS[name](**options), r1_gamma=2.0, r1_every=4)
    roles, rows = {**models(), **objective.extra_models()}, {"images": IMAGES[:4]}

    def logits(images):
        rng = Rng(0)
        game = Game("discriminator", roles, {"images": images}, rng, clock())
        view = objective.augmentation(game, "real", images, rng.fork("augment", "real"))
        return roles["discriminator"](view).logits

    full = torch.autograd.functional.jacobian(logits, IMAGES[:4])
    expected = torch.stack([full[i, i].square().sum() for i in range(4)]).mean()
    _, terms = objective.loss("r1", roles, rows, Rng(0), clock())
    torch.testing.assert_close(terms["r1"].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("oversample", [False, True])
def test_the_whole_pipe_under_autocast(oversample):
    """Images in half precision give what they give in float32; R1 and its gradient exist."""
    half = IMAGES[:4].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        view = augment(half, 0.7, Rng(0), PIPES, oversample=oversample)
    precise = augment(half.float(), 0.7, Rng(0), PIPES, oversample=oversample)
    torch.testing.assert_close(view, precise, rtol=0, atol=0)
    augmentation = ADA(start=0.7, pipe=PIPES, oversample=oversample)
    objective = GAN(augmentation=augmentation, r1_gamma=2.0, r1_every=4)
    roles = {name: model.float() for name, model in models().items()}
    roles |= objective.extra_models()
    r1 = {}
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            rows = {"images": IMAGES[:4].float()}
            loss, terms = objective.loss("r1", roles, rows, Rng(0), clock())
        loss.backward()
        r1[enabled] = terms["r1"].item()
    assert math.isclose(r1[True], r1[False], rel_tol=0.05)
    assert all(p.grad.isfinite().all() for p in roles["discriminator"].parameters())


def test_p_follows_the_overfitting():
    augmentation = ADA(target=0.6, speed=800, interval=16, limit=0.5)
    module = augmentation.modules()["augment"]
    roles = {**models(), "augment": module}

    def run(logits, steps, splits=1):
        for step in steps:
            for part in logits.split(len(logits) // splits):
                game = Game("discriminator", roles, {"images": IMAGES[:4]}, Rng(0), clock(step))
                augmentation.observe(part, game)
        return augmentation.probability(game)

    sure = torch.ones(8)
    assert run(sure, range(2)) == 0  # 16 images seen, to be used from the next step on
    assert math.isclose(run(sure, range(2, 3)), 16 / 800)
    assert math.isclose(run(sure, range(3, 11)), 5 * 16 / 800)
    saved = {key: value.clone() for key, value in module.state_dict().items()}
    whole = run(sure, range(11, 20))
    module.load_state_dict(saved)
    assert run(sure, range(11, 20), splits=4) == whole  # resumed, and split
    assert run(sure, range(20, 80)) == 0.5  # the limit
    assert run(-sure, range(80, 200)) == 0.0


def test_ramp_and_fixed_p():
    assert ramp(clock(0), 0.3, 40) == 0
    assert math.isclose(ramp(Clock(0, 20, 80), 0.3, 40), 0.15)
    assert math.isclose(ramp(clock(10), 0.3, 40), 0.3)
    game = Game("discriminator", models(), {"images": IMAGES}, Rng(0), clock(5))
    assert math.isclose(ADA(target=None, limit=0.3, ramp_images=80).probability(game), 0.15)


def test_apa_shows_generated_images_as_real():
    augmentation = APA(start=0.5)
    roles = {**models(), **augmentation.modules()}
    game = Game("discriminator", roles, {"images": IMAGES}, Rng(0), clock())
    seen = augmentation(game, "real", IMAGES, Rng(1))
    kept = (seen == IMAGES).flatten(1).all(1)
    assert 16 < int(kept.sum()) < 48
    fakes = roles["generator"](Rng(1).randn("pseudo", (64, 4)).double()).sample
    torch.testing.assert_close(seen[~kept], fakes[~kept])
    assert augmentation(game, "fake", IMAGES, Rng(1)) is IMAGES


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffAugment(policy=("colour",)), "unknown value 'colour'"),
        (lambda: ADA(pipe=("blur",)), "unknown value 'blur'"),
        (lambda: ADA(start=0.9), "0 <= start <= limit <= 1"),
        (lambda: ADA(speed=0), "must be positive"),
        (lambda: ADA(ramp_images=5), "ramp_images wants target: null"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(HfgenError, match=message):
        make()


def test_color_wants_grey_or_rgb():
    with pytest.raises(ValueError, match="for 1 or 3 channels, not 2"):
        transforms.color(torch.zeros(1, 2, 4, 4), 0.5, Rng(0))
