"""Adversarial losses against their formulas, written out, and against their optima."""

from __future__ import annotations

import pytest
import torch

from hfgen.objectives.gan_losses import LOSSES, multi_hinge

SCALAR = [name for name, loss in LOSSES.items() if not loss.of_classes]

torch.manual_seed(0)
REAL = torch.randn(7, dtype=torch.float64) * 2
FAKE = torch.randn(7, dtype=torch.float64) * 2
SIGMOID = torch.sigmoid


def contrast(positive, negatives):
    """-log of a softmax that picks ``positive`` out of itself and ``negatives``, term by term."""
    return torch.stack([-(p.exp() / (p.exp() + negatives.exp().sum())).log() for p in positive])


def ra(a, b):
    """Relativistic average loss of ``a`` as real against ``b`` as fake."""
    return -SIGMOID(a - b.mean()).log() - (1 - SIGMOID(b - a.mean())).log()


LOGISTIC = -SIGMOID(REAL).log() - (1 - SIGMOID(FAKE)).log()
DUAL = contrast(REAL, FAKE) + contrast(-FAKE, -REAL)
EXPECTED = {
    "minimax": (LOGISTIC, (1 - SIGMOID(FAKE)).log()),
    "nonsaturating": (LOGISTIC, -SIGMOID(FAKE).log()),
    "logistic": (LOGISTIC, -SIGMOID(FAKE).log()),
    "least_squares": ((REAL - 1) ** 2 / 2 + FAKE**2 / 2, (FAKE - 1) ** 2 / 2),
    "hinge": (
        torch.maximum(1 - REAL, 0 * REAL) + torch.maximum(1 + FAKE, 0 * FAKE),
        -FAKE,
    ),
    "wasserstein": (FAKE - REAL, -FAKE),
    "relativistic_pairing": (-SIGMOID(REAL - FAKE).log(), -SIGMOID(FAKE - REAL).log()),
    "relativistic_average": (ra(REAL, FAKE), ra(FAKE, REAL)),
    "dual_contrastive": (DUAL, -DUAL),
}


@pytest.mark.parametrize("name", SCALAR)
def test_formula(name):
    discriminator, generator = EXPECTED[name]
    torch.testing.assert_close(LOSSES[name].discriminator(REAL, FAKE), discriminator)
    torch.testing.assert_close(LOSSES[name].generator(REAL, FAKE), generator)


@pytest.mark.parametrize("name", SCALAR)
def test_gradient(name):
    loss = LOSSES[name]
    inputs = (REAL.clone().requires_grad_(), FAKE.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss.discriminator, inputs)
    used = inputs if loss.uses_real else inputs[1:]
    assert torch.autograd.gradcheck(
        lambda *logits: loss.generator(*(logits if loss.uses_real else (REAL, *logits))), used
    )


@pytest.mark.parametrize("name", SCALAR)
def test_rows_and_what_they_see(name):
    """The flags are true: rows do or do not depend on one another, and on real images."""
    loss = LOSSES[name]
    apart = torch.stack([loss.discriminator(REAL[i : i + 1], FAKE[i : i + 1])[0] for i in range(7)])
    assert torch.allclose(loss.discriminator(REAL, FAKE), apart) != loss.couples_rows
    moved = loss.generator(REAL + 1, FAKE)
    assert torch.allclose(loss.generator(REAL, FAKE), moved) != loss.uses_real


@pytest.mark.parametrize("name", SCALAR)
def test_directions(name):
    """A better discriminator has the lower loss; fakes that look more real lower the
    generator's.
    """
    loss = LOSSES[name]
    assert loss.discriminator(REAL + 0.1, FAKE - 0.1).mean() < loss.discriminator(REAL, FAKE).mean()
    assert loss.generator(REAL, FAKE + 0.1).mean() < loss.generator(REAL, FAKE).mean()


@pytest.mark.parametrize("name", SCALAR)
def test_extreme_logits_stay_finite(name):
    for real, fake in ((1e4, -1e4), (-1e4, 1e4)):
        logits = (torch.full((3,), real), torch.full((3,), fake))
        assert torch.isfinite(LOSSES[name].discriminator(*logits)).all()
        assert torch.isfinite(LOSSES[name].generator(*logits)).all()


def test_multi_hinge_is_the_multi_margin_of_the_hardest_class():
    """With two classes it is torch's multi-margin loss (times 2, which averages over classes)."""
    logits = torch.randn(9, 2, dtype=torch.float64)
    labels = torch.arange(9) % 2
    torch_loss = torch.nn.functional.multi_margin_loss(logits, labels, reduction="none")
    torch.testing.assert_close(multi_hinge(logits, labels), 2 * torch_loss)
    three = torch.tensor([[2.0, 1.5, -1.0], [0.0, 3.0, 1.0]])
    expected = torch.tensor([0.5, 4.0])
    torch.testing.assert_close(multi_hinge(three, torch.tensor([0, 0])), expected)


def test_multi_hinge_game():
    """D: real images to their class, generated ones to the last; G: generated ones to their
    class.
    """
    real, fake = torch.randn(2, 5, 4, dtype=torch.float64).unbind()
    labels = torch.tensor([0, 1, 2, 0, 1])

    def hinge(scores, y):
        others = [torch.cat([s[:k], s[k + 1 :]]).max() for s, k in zip(scores, y, strict=True)]
        chosen = [s[k] for s, k in zip(scores, y, strict=True)]
        return torch.stack([(1 - a + b).clamp_min(0) for a, b in zip(chosen, others, strict=True)])

    loss = LOSSES["multi_hinge"]
    expected = hinge(real, labels) + hinge(fake, [3] * 5)
    torch.testing.assert_close(loss.discriminator(real, fake, labels), expected)
    torch.testing.assert_close(loss.generator(real, fake, labels), hinge(fake, labels))
    inputs = (real.requires_grad_(), fake.requires_grad_())
    assert torch.autograd.gradcheck(lambda *x: loss.discriminator(*x, labels), inputs)
