"""Priors over codes: only the past is seen, all of it, and it is a distribution."""

import itertools

import pytest
import torch

from hfgen.models.prior_codes import CodePrior
from hfgen.models.prior_pixelcnn import PixelCNNPrior
from hfgen.models.vae_vq import VQVAE

PRIORS = [CodePrior, PixelCNNPrior]


def small(kind, **options):
    torch.manual_seed(0)
    sizes = {"latent_shape": (2, 3, 3), "num_embeddings": 4, "hidden_size": 8, "num_layers": 2}
    if kind is PixelCNNPrior:
        sizes["kernel_size"] = 5
    else:
        sizes["num_heads"] = 2
    return kind(**sizes, **options).eval()


@pytest.mark.parametrize("kind", PRIORS)
def test_a_token_is_told_by_all_before_it_and_by_none_after(kind):
    prior = small(kind)
    embedded = []
    prior.token.register_forward_hook(lambda *args: embedded.append(args[2]) or args[2])
    for position in range(9):
        embedded.clear()
        logits = prior.logits(torch.randint(4, (1, 8)))
        embedded[0].retain_grad()
        logits[0, position].square().sum().backward()
        seen = embedded[0].grad[0].abs().flatten(0, -2).sum(-1)[:8] > 0
        assert seen.tolist() == [i < position for i in range(8)]


@pytest.mark.parametrize("kind", PRIORS)
@torch.no_grad()
def test_probabilities_of_all_maps_sum_to_one(kind):
    torch.manual_seed(0)
    options = {"latent_shape": (2, 2, 2), "num_embeddings": 3, "hidden_size": 8, "num_layers": 1}
    prior = kind(**options, **({"num_heads": 2} if kind is CodePrior else {"kernel_size": 3}))
    maps = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2, 1)
    total = prior.log_prob_indices(maps).exp().sum()
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", PRIORS)
@torch.no_grad()
def test_draws_follow_the_probabilities_and_are_codes(kind):
    prior = small(kind)
    with torch.no_grad():
        prior.tables.normal_()
    z = prior.sample(2000, torch.Generator().manual_seed(0))
    assert z.shape == (2000, 2, 3, 3)
    first = torch.cdist(z[:, :, 0, 0], prior.tables[0]).argmin(1)
    share = torch.bincount(first, minlength=4) / 2000
    expected = torch.softmax(prior.logits(torch.zeros(1, 0, dtype=torch.long))[0, 0], dim=0)
    torch.testing.assert_close(share, expected, atol=0.04, rtol=0)
    assert prior.log_prob(z[:3]).shape == (3,)


@pytest.mark.parametrize("kind", PRIORS)
def test_what_does_not_fit_is_named(kind):
    quantizer = {"type": "vq", "num_embeddings": 8, "dim": 2}
    vae = VQVAE(sample_size=8, block_out_channels=(4, 8), quantizer=quantizer)
    with pytest.raises(ValueError, match=rf"{kind.__name__}: .* is \[1, 4, 2\], but .*\[1, 8, 2\]"):
        small(kind).tie(vae)
    vae = VQVAE(
        sample_size=8, block_out_channels=(4, 8), quantizer={**quantizer, "num_embeddings": 4}
    )
    with pytest.raises(ValueError, match=r"is \[2, 3, 3\], but the .* codes are \[2, 2, 2\]"):
        small(kind).tie(vae)
    with pytest.raises(ValueError, match="class_labels are for, and needed by"):
        small(kind).logits(torch.zeros(1, 0, dtype=torch.long), torch.tensor([0]))


def test_the_class_changes_what_is_drawn():
    prior = small(PixelCNNPrior, num_class_embeds=2)
    tokens = torch.zeros(2, 8, dtype=torch.long)
    first, second = prior.logits(tokens, torch.tensor([0, 1]))
    assert (first - second).abs().max() > 1e-3
    with pytest.raises(ValueError, match="odd kernel_size >= 3"):
        PixelCNNPrior(kernel_size=4)
