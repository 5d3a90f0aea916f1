"""Regularisers against Jacobians and written-out formulas in float64, and their state over
steps.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hfgen.errors import HfgenError
from hfgen.models.gan_dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.models.gan_lightweight import LightweightDiscriminator
from hfgen.objectives import gan_regularizers as reg
from hfgen.objectives.base import Clock
from hfgen.objectives.gan import GAN
from hfgen.objectives.gan_class_losses import invariant_information
from hfgen.objectives.gan_game import Game
from hfgen.objectives.gan_state import StepAverage
from hfgen.objectives.gan_transforms import slight
from hfgen.rng import Rng

jacobian = torch.autograd.functional.jacobian


def models(**options):
    torch.manual_seed(0)
    common = {"sample_size": 8, "norm": "group", "channels": 8}
    return {
        "generator": DCGANGenerator(out_channels=1, latent_dim=4, **common).double(),
        "discriminator": DCGANDiscriminator(in_channels=1, **common, **options).double(),
    }


def game(side, leaves=(), rows=4, roles=None, step=0, start=0):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    return Game(
        side,
        roles or models(),
        {"images": images[start : start + rows]},
        Rng(0, step, start=start),
        Clock(step=step, images_seen=step * 8, total_images=80, total_batch_size=8),
        frozenset(leaves),
    )


def row_gradients(discriminator, images):
    full = jacobian(lambda x: discriminator(x).logits, images)
    return torch.stack([full[i, i] for i in range(len(images))])


@pytest.mark.parametrize(("cls", "leaf"), [(reg.R1, "real"), (reg.R2, "fake")])
def test_zero_centred(cls, leaf):
    play = game("discriminator", cls.leaves)
    x = getattr(play, leaf)
    expected = row_gradients(play.discriminator, x.detach()).square().flatten(1).sum(1)
    torch.testing.assert_close(cls()(play), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [reg.R1, reg.R2, reg.GradientPenalty])
def test_second_derivatives_in_mixed_precision(cls, dtype):
    """Penalty and its gradient under autocast against float64, within the rounding of the type."""
    found = []
    for precise in (True, False):
        roles = models() if precise else {k: m.float() for k, m in models().items()}
        play = game("discriminator", cls.leaves, rows=8, roles=roles)
        play.batch = {k: v if precise else v.float() for k, v in play.batch.items()}
        with torch.autocast("cpu", dtype, enabled=not precise):
            penalty = cls()(play).mean()
        penalty.backward()
        gradients = [p.grad for p in roles["discriminator"].parameters() if p.grad is not None]
        found.append((penalty.double(), torch.cat([g.double().flatten() for g in gradients])))
    (penalty, gradient), (rough, rough_gradient) = found
    assert abs(rough - penalty) < 0.05 * penalty
    assert (rough_gradient - gradient).norm() < 0.1 * gradient.norm()


@pytest.mark.parametrize("cls", [reg.R1, reg.R2])
def test_zero_centred_weight(cls):
    clock = Clock(step=5, images_seen=40, total_images=80, total_batch_size=16)
    assert cls(gamma=3.0).scale(clock, 64) == 1.5
    assert math.isclose(cls().scale(clock, 64 * 64), 0.5 * 0.0002 * 64 * 64 / 16)
    half_way = 0.5 * (2 + 0.2) / 2  # the middle of half a cosine is the mean of its ends
    assert math.isclose(cls(gamma=2.0, decay=0.1).scale(clock, 64), half_way)
    assert math.isclose(cls(gamma=2.0, decay=0.1, decay_images=40).scale(clock, 64), 0.1)


@pytest.mark.parametrize("at", ["between", "around"])
@pytest.mark.parametrize("one_sided", [False, True])
def test_gradient_penalty(at, one_sided):
    play = game("discriminator")
    penalty = reg.GradientPenalty(at=at, one_sided=one_sided)
    points = penalty._points(play).detach()
    norm = row_gradients(play.discriminator, points).flatten(1).norm(dim=1)
    expected = (norm - 1).square() * ((norm > 1) if one_sided else 1)
    torch.testing.assert_close(penalty(play), expected, rtol=1e-6, atol=1e-9)
    if at == "between":  # each point lies on the line between its two images
        direction = play.fake - play.real
        share = ((points - play.real) / direction).flatten(1)
        torch.testing.assert_close(share, share[:, :1].expand_as(share), rtol=0, atol=1e-6)
        assert ((share >= 0) & (share < 1)).all()
    else:
        assert (
            (points - play.real).abs().flatten(1).amax(1) <= 0.5 * play.real.flatten(1).std(1)
        ).all()


def test_orthogonal():
    play = game("generator")
    total = 0.0
    for layer in play.generator.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            w = layer.weight.flatten(1)
            total = total + ((w @ w.T) * (1 - torch.eye(len(w)))).square().sum()
    torch.testing.assert_close(reg.Orthogonal()(play), total)
    assert reg.off_diagonal(torch.linalg.qr(torch.randn(5, 5)).Q) < 1e-9


def test_consistency():
    play = game("discriminator")
    moved = reg.flip_and_shift(play.real, 4, play.rng.fork("real"))
    expected = 10 * (play.judge(play.real).logits - play.judge(moved).logits).square()
    torch.testing.assert_close(reg.Consistency()(play), expected)
    assert (reg.Consistency(fake=10.0)(play) > expected).any()


def test_flip_and_shift():
    images = torch.arange(8 * 8.0).view(1, 1, 8, 8).expand(64, 1, 8, 8)
    still = reg.flip_and_shift(images, 0, Rng(0))
    flipped = torch.isclose(still, images.flip(3)).flatten(1).all(1)
    kept = torch.isclose(still, images).flatten(1).all(1)
    assert (flipped ^ kept).all() and 16 < int(flipped.sum()) < 48
    moved = reg.flip_and_shift(images[:, :, :, :1].expand(64, 1, 8, 8), 4, Rng(1))
    offsets = {int(image[0, 4, 0] - images[0, 0, 4, 0]) // 8 for image in moved}
    assert offsets == set(range(-4, 4))  # 8 rows below 4, of which the last is repeated beyond 7


def test_latent_consistency():
    regularizer = reg.LatentConsistency(discriminator=3.0, generator=0.7, std=0.1)
    play = game("discriminator")
    near = play.z + 0.1 * play.rng.randn("dz", play.z.shape).double()
    images, moved = play.generate(play.z), play.generate(near)
    expected = 3 * (play.judge(images).logits - play.judge(moved).logits).square()
    torch.testing.assert_close(regularizer(play), expected)
    expected = -0.7 * (images - moved).square().mean((1, 2, 3))
    torch.testing.assert_close(regularizer(game("generator")), expected)


def test_feature_matching_and_mode_seeking():
    play = game("generator")
    real, fake = play.real_verdict.features, play.fake_verdict.features
    expected = (real.mean(0) - fake.mean(0)).square().sum()
    torch.testing.assert_close(reg.FeatureMatching()(play), expected)
    assert not real.requires_grad and fake.requires_grad
    other = play.rng.randn("z2", play.z.shape).double()
    distance = (play.generate(other) - play.fake).abs().mean((1, 2, 3))
    ratio = distance / (other - play.z).abs().mean(1)
    torch.testing.assert_close(reg.ModeSeeking()(play), 1 / (ratio + 1e-5))


def test_lecam_anchors_are_running_means_of_earlier_steps():
    roles = {**models(), **reg.LeCam(decay=0.9).modules()}
    regularizer = reg.LeCam(decay=0.9)
    anchors = None
    for step in range(4):
        play = game("discriminator", roles=roles, step=step)
        penalty = regularizer(play)
        real, fake = play.real_verdict.logits, play.fake_verdict.logits
        if anchors is None:
            assert (penalty == 0).all()
        else:
            expected = (real - anchors[1]).square() + (fake - anchors[0]).square()
            torch.testing.assert_close(penalty, expected, rtol=1e-5, atol=1e-9)
        mean = torch.stack([real.mean(), fake.mean()]).detach()
        anchors = mean if anchors is None else 0.9 * anchors + 0.1 * mean


def test_state_does_not_see_how_a_batch_is_split():
    rows = torch.randn(3, 8, 2)
    whole, split = StepAverage(2, 0.9), StepAverage(2, 0.9)
    for step in range(3):
        before, _ = whole(rows[step], step)
        for part in rows[step].split(2):
            during, _ = split(part, step)
            torch.testing.assert_close(before, during)
    resumed = StepAverage(2, 0.9)
    resumed.load_state_dict(split.state_dict())
    torch.testing.assert_close(resumed(rows[0], 3)[0], split(rows[0], 3)[0], rtol=0, atol=0)


class Bilinear(nn.Module):
    """A generator whose Jacobian by w is known: images = w . basis."""

    def __init__(self):
        super().__init__()
        self.register_buffer("basis", torch.randn(5, 64, dtype=torch.float64))
        self.config = {"num_class_embeds": None}

    def map(self, z, labels):
        return z[:, None].requires_grad_()

    def synthesize(self, w):
        from hfgen.models.layers.gan import GeneratorOutput

        return GeneratorOutput(sample=(w.sum(1) @ self.basis).view(-1, 1, 8, 8))


def test_path_length():
    roles = {**models(), "generator": Bilinear(), **reg.PathLength().modules()}
    play = game("generator", roles=roles)
    play.__dict__["z"] = torch.randn(4, 5, dtype=torch.float64)
    noise = play.rng.randn("path", (4, 1, 8, 8)).double() / 8
    length = (noise.flatten(1) @ roles["generator"].basis.T).norm(dim=1)
    torch.testing.assert_close(reg.PathLength()(play), length.square())
    play = game("generator", roles=roles, step=1)
    play.__dict__["z"] = torch.randn(4, 5, dtype=torch.float64)
    noise = play.rng.randn("path", (4, 1, 8, 8)).double() / 8
    now = (noise.flatten(1) @ roles["generator"].basis.T).norm(dim=1)
    expected = (now - length.mean()).square()
    torch.testing.assert_close(reg.PathLength()(play), expected, rtol=1e-5, atol=1e-9)


COUPLING = ("feature_matching",)
NEEDY = (
    "path_length",
    "auxiliary_classifier",
    "twin_auxiliary_classifier",
    "conditional_contrastive",
    "d2d_ce",
    "mutual_information",
    "invariant_information",
    "reconstruction",
)
MODEL_FREE = [name for name in reg.REGULARIZERS if name not in NEEDY]


@pytest.mark.parametrize("name", MODEL_FREE)
@pytest.mark.parametrize("lazy", [False, True])
def test_in_the_objective_and_over_micro_batches(name, lazy):
    """Every regulariser joins the loss, alone in a phase when lazy; splitting the batch changes
    nothing.
    """
    regularizer = reg.REGULARIZERS[name](every=3 if lazy else 1)
    objective = GAN(r1_gamma=0, regularizers=(regularizer,))
    assert len(objective.phases) == (2 + len(regularizer.sides) if lazy else 2)
    for phase in objective.phases:
        results = []
        for splits in (1, 4):
            roles = {**models(), **objective.extra_models()}
            for role, model in roles.items():
                model.requires_grad_(role in phase.trains)
            for step in (0, 1):  # the second step sees the state that the first left
                roles[phase.trains[0]].zero_grad()
                for i in range(splits):
                    size = 8 // splits
                    play = game(phase.trains[0], rows=size, roles=roles, step=step, start=i * size)
                    arguments = (roles, play.batch, play.rng, play.clock)
                    loss, _ = objective.loss(phase.name, *arguments)
                    (loss / splits).backward()
            gradients = [p.grad.clone() for p in roles[phase.trains[0]].parameters()]
            results.append(gradients)
        close = all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(*results, strict=True))
        affected = phase.trains[0] in regularizer.sides and phase.name not in ("discriminator",)
        assert close or (regularizer.couples_rows and affected)
    assert regularizer.couples_rows == (name in COUPLING)


def test_weight_clip_and_top_k():
    roles = models()
    play = game("discriminator", roles=roles, rows=8, step=10)
    arguments = (roles, play.batch, play.rng, play.clock)
    GAN(r1_gamma=0, weight_clip=0.01).loss("discriminator", *arguments)
    assert all(p.abs().max() <= 0.01 for p in roles["discriminator"].parameters())
    loss, _ = GAN(r1_gamma=0, top_k=0.5, adversarial_loss="hinge").loss("generator", *arguments)
    play = game("generator", roles=roles, rows=8, step=10)
    best = play.fake_verdict.logits.sort(descending=True).values[:4]
    torch.testing.assert_close(loss, -best.mean())  # at the end of the run half of the images count


@pytest.mark.parametrize("options", [{"top_k": 0.0}, {"top_k": 1.5}, {"weight_clip": -1.0}])
def test_bad_settings(options):
    with pytest.raises(HfgenError, match=f"objective.{next(iter(options))}: must"):
        GAN(**options)


def conditional(**options):
    torch.manual_seed(0)
    common = {"sample_size": 8, "norm": "group", "channels": 8}
    generator = {key: options.pop(key) for key in ("categorical_codes",) if key in options}
    classes = {"num_class_embeds": options.pop("classes", None)}
    return {
        "generator": DCGANGenerator(
            out_channels=1, latent_dim=6, **common, **generator, **classes
        ).double(),
        "discriminator": DCGANDiscriminator(in_channels=1, **common, **options, **classes).double(),
    }


def test_auxiliary_classifier():
    roles = conditional(classes=3, conditioning="auxiliary")
    labels = torch.tensor([0, 1, 2, 0])
    for side in ("discriminator", "generator"):
        play = game(side, roles=roles)
        play.batch = {**play.batch, "labels": labels}
        images = play.real if side == "discriminator" else roles["generator"](play.z, labels).sample
        logits = roles["discriminator"](images, labels).class_logits
        expected = -logits.log_softmax(1)[range(4), labels]
        torch.testing.assert_close(reg.AuxiliaryClassifier()(play), expected)
    with pytest.raises(HfgenError, match="conditioning: auxiliary"):
        reg.AuxiliaryClassifier()(game("discriminator"))


def test_mutual_information():
    roles = conditional(categorical_codes=3, num_codes=4)
    regularizer = reg.MutualInformation(continuous=1, continuous_weight=0.2)
    for side in ("discriminator", "generator"):
        play = game(side, roles=roles)
        codes = roles["discriminator"](roles["generator"](play.z).sample).codes
        target = play.z[:, :3].argmax(1)
        expected = -codes[:, :3].log_softmax(1)[range(4), target]
        expected = expected + 0.2 * 0.5 * (codes[:, 3] - play.z[:, 3]).square()
        torch.testing.assert_close(regularizer(play), expected)
    with pytest.raises(HfgenError, match="num_codes: 3"):
        reg.MutualInformation()(game("discriminator", roles=roles))


def test_invariant_information():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3, dtype=torch.float64)
    p = torch.stack([torch.outer(x, y) for x, y in zip(a.softmax(1), b.softmax(1), strict=True)])
    p = (p.mean(0) + p.mean(0).T) / 2
    expected = -sum(
        p[c, d] * math.log(p[c, d] / (p[c].sum() * p[:, d].sum()))
        for c in range(3)
        for d in range(3)
    )
    torch.testing.assert_close(invariant_information(a, b), expected)
    sure = 1e3 * torch.eye(3)
    assert float(invariant_information(sure, sure)) == pytest.approx(-math.log(3))
    assert float(invariant_information(sure[:1], sure[:1])) == pytest.approx(0, abs=1e-6)

    roles = conditional(categorical_codes=3, num_codes=4)
    play = game("discriminator", roles=roles)
    still = reg.InvariantInformation(rotation=0, zoom=0, shear=0, shift=0)
    codes = roles["discriminator"](play.real).codes[:, :3].float()
    torch.testing.assert_close(still(play), invariant_information(codes, codes))
    assert reg.InvariantInformation()(play) != still(play)
    losses = []
    for weight in (0.0, 2.0):
        objective = GAN(r1_gamma=0, regularizers=(reg.InvariantInformation(weight=weight),))
        losses.append(objective.loss("discriminator", roles, play.batch, play.rng, play.clock)[0])
    torch.testing.assert_close(losses[1] - losses[0], 2 * reg.InvariantInformation()(play).double())
    for options in ({"categorical_codes": 3}, {"num_codes": 4}):
        with pytest.raises(HfgenError, match="categorical_codes: K"):
            reg.InvariantInformation()(game("discriminator", roles=conditional(**options)))


def test_slight_maps_stay_within_their_ranges():
    nothing = slight(4, 0, 0, 0, 0, Rng(0))
    torch.testing.assert_close(nothing, torch.eye(3).expand(4, 3, 3))
    turned = slight(1000, 90, 0, 0, 0, Rng(0))[:, :2, :2]
    torch.testing.assert_close(turned.det(), torch.ones(1000))
    angle = torch.atan2(turned[:, 1, 0], turned[:, 0, 0])
    assert angle.abs().max() <= math.pi / 2
    assert angle.std() == pytest.approx(math.pi / 12**0.5, rel=0.05)
    moved = slight(1000, 0, 0.2, 0, 0.1, Rng(0))
    axes, shift = moved[:, (0, 1), (0, 1)], (moved[:, :2, 2] / moved[:, (0, 1), (0, 1)])
    assert axes.min() >= 0.8 and axes.max() <= 1.2 and axes.std() > 0.1
    assert shift.abs().max() <= 0.2001 and shift.std() > 0.1  # of a side of 2


def test_reconstruction_is_the_error_of_the_decoder_at_half_the_side():
    torch.manual_seed(0)
    roles = models()
    with pytest.raises(HfgenError, match="needs a discriminator with a decoder"):
        reg.Reconstruction()(game("discriminator", roles=roles))
    roles["discriminator"] = LightweightDiscriminator(8, 1, 8, norm="group").double()
    play = game("discriminator", roles=roles)
    decoded = play.discriminator.reconstruct(play.discriminator(play.real).maps)
    small = play.real.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    expected = (decoded - small).square().mean((1, 2, 3))
    torch.testing.assert_close(reg.Reconstruction()(play), expected)
