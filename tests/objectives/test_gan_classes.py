"""What ties a discriminator to labels, against its formulas written out row by row in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hfgen.errors import HfgenError
from hfgen.models.gan_dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.objectives import gan_regularizers as reg
from hfgen.objectives.base import Clock
from hfgen.objectives.gan import GAN
from hfgen.objectives.gan_class_losses import conditional_contrastive, data_to_data
from hfgen.objectives.gan_game import Game
from hfgen.rng import Rng

LABELS = torch.tensor([0, 1, 2, 0, 1, 1])
CLOCK = Clock(step=0, images_seen=0, total_images=80, total_batch_size=6)


def unit(*shape):
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=1)


def two_c(f, w, y, t):
    rows = []
    for i in range(len(y)):
        proxy = ((f[i] @ w[i]) / t).exp()
        others = [((f[i] @ f[k]) / t).exp() for k in range(len(y)) if k != i]
        friends = [((f[i] @ f[k]) / t).exp() for k in range(len(y)) if k != i and y[k] == y[i]]
        rows.append(-((proxy + sum(friends)) / (proxy + sum(others))).log())
    return torch.stack(rows)


def d2d(f, w, y, t, m_p, m_n):
    rows = []
    for i in range(len(y)):
        p = (min(f[i] @ w[i] - m_p, torch.tensor(0.0)) / t).exp()
        strangers = [
            (max(f[i] @ f[k] - m_n, torch.tensor(0.0)) / t).exp()
            for k in range(len(y))
            if y[k] != y[i]
        ]
        rows.append(-(p / (p + sum(strangers))).log())
    return torch.stack(rows)


CASES = [
    (conditional_contrastive, two_c, (0.7,)),
    (data_to_data, d2d, (0.4, 0.9, 0.1)),
]


@pytest.mark.parametrize(("ours", "written_out", "settings"), CASES)
def test_formula_and_gradient(ours, written_out, settings):
    embeddings, proxies = unit(12, 4).chunk(2)
    expected = written_out(embeddings, proxies, LABELS, *settings)
    torch.testing.assert_close(ours(embeddings, proxies, LABELS, *settings), expected)
    inputs = (embeddings.requires_grad_(), proxies.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda f, w: ours(f, w, LABELS, *settings), inputs)


def test_what_is_near_enough_no_longer_counts():
    """At its own proxy, and at right angles to the other class, a row has no gradient in D2D-CE;
    in 2C it has.
    """
    f = torch.eye(2, dtype=torch.float64).repeat(2, 1).requires_grad_()
    w, y = torch.eye(2, dtype=torch.float64).repeat(2, 1), torch.tensor([0, 1, 0, 1])
    (gradient,) = torch.autograd.grad(data_to_data(f, w, y).sum(), f)
    assert gradient.abs().max() == 0
    (gradient,) = torch.autograd.grad(conditional_contrastive(f, w, y).sum(), f)
    assert gradient.abs().max() > 0.1


def roles(conditioning, classes=3):
    torch.manual_seed(0)
    common = {"sample_size": 8, "norm": "group", "channels": 8, "num_class_embeds": classes}
    discriminator = DCGANDiscriminator(in_channels=1, conditioning=conditioning, **common)
    generator = DCGANGenerator(out_channels=1, latent_dim=4, **common)
    return {"generator": generator.double(), "discriminator": discriminator.double()}


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    return {"images": images, "labels": LABELS}


def outputs(models, play):
    """The discriminator's output for real and for generated images, each judged alone."""
    fake = models["generator"](play.z, LABELS).sample
    return tuple(models["discriminator"](x, LABELS) for x in (play.batch["images"], fake))


@pytest.mark.parametrize("side", ["discriminator", "generator"])
def test_twin_auxiliary_classifier(side):
    models = roles("twin_auxiliary")
    play = Game(side, models, batch(), Rng(0, 0), CLOCK)
    real, fake = outputs(models, play)

    def entropy(logits):
        return -logits.log_softmax(1)[range(6), LABELS]

    expected = {
        "discriminator": entropy(real.class_logits) + entropy(fake.twin_logits),
        "generator": entropy(fake.class_logits) - entropy(fake.twin_logits),
    }
    torch.testing.assert_close(reg.TwinAuxiliaryClassifier()(play), expected[side])


@pytest.mark.parametrize("side", ["discriminator", "generator"])
def test_contrastive_regularisers(side):
    models = roles("contrastive")
    play = Game(side, models, batch(), Rng(0, 0), CLOCK)
    verdict = outputs(models, play)[side == "generator"]
    head = models["discriminator"].classes
    f = F.normalize(head.embed(verdict.features), dim=1)
    w = F.normalize(head.proxies.weight, dim=1)[LABELS]
    expected = two_c(f, w, LABELS, 0.3)
    torch.testing.assert_close(reg.ConditionalContrastive(temperature=0.3)(play), expected)
    torch.testing.assert_close(reg.DataToData()(play), d2d(f, w, LABELS, 0.5, 0.98, 0.02))


def test_multi_hinge_in_the_objective():
    models = roles("multi_hinge")
    objective = GAN(adversarial_loss="multi_hinge", r1_gamma=0)
    scores, losses = [], {}
    for phase in ("discriminator", "generator"):
        rng = Rng(0, 0, phase)
        losses[phase], terms = objective.loss(phase, models, batch(), rng, CLOCK)
        scores.append(outputs(models, Game(phase, models, batch(), rng, CLOCK)))
        if phase == "discriminator":
            right = (scores[0][0].class_logits.argmax(1) == LABELS).double()
            torch.testing.assert_close(terms["overfitting"].double(), 2 * right.mean() - 1)

    def hinge(logits, y):  # torch's averages over the classes
        whole = [
            (1 - logits[i, y[i]] + torch.cat([logits[i, : y[i]], logits[i, y[i] + 1 :]]).max())
            for i in range(6)
        ]
        return torch.stack(whole).clamp_min(0)

    real, fake = scores[0]
    expected = hinge(real.class_logits, LABELS) + hinge(fake.class_logits, torch.full((6,), 3))
    torch.testing.assert_close(losses["discriminator"], expected.mean())
    fake = scores[1][1]
    torch.testing.assert_close(losses["generator"], hinge(fake.class_logits, LABELS).mean())


@pytest.mark.parametrize("name", ["twin_auxiliary_classifier", "conditional_contrastive", "d2d_ce"])
def test_every_parameter_learns_in_some_phase(name):
    conditioning = "twin_auxiliary" if name.startswith("twin") else "contrastive"
    models = roles(conditioning)
    objective = GAN(r1_gamma=0, regularizers=(reg.REGULARIZERS[name](),))
    for phase in objective.phases:
        objective.loss(phase.name, models, batch(), Rng(0, 0, phase.name), CLOCK)[0].backward()
    for model in models.values():
        assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_the_wrong_discriminator_is_named():
    arguments = (roles("projection"), batch(), Rng(0, 0), CLOCK)
    with pytest.raises(HfgenError, match="conditioning: multi_hinge"):
        GAN(adversarial_loss="multi_hinge").loss("generator", *arguments)
    for name, wanted in (
        ("twin_auxiliary_classifier", "twin_auxiliary"),
        ("conditional_contrastive", "contrastive"),
        ("d2d_ce", "contrastive"),
    ):
        objective = GAN(regularizers=(reg.REGULARIZERS[name](),))
        with pytest.raises(HfgenError, match=f"{name} needs .* conditioning: {wanted}"):
            objective.loss("generator", *arguments)
