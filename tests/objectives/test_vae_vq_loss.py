"""The VQ objective: the paper's loss by hand, independent of the batch size, learns on data."""

import pytest
import torch

from hfgen.errors import HfgenError
from hfgen.likelihoods import Gaussian
from hfgen.models.prior_codes import CodePrior
from hfgen.models.vae_vq import VQVAE
from hfgen.objectives.base import Clock
from hfgen.objectives.vae_vq import VectorQuantized, perplexity
from hfgen.rng import Rng

QUANTIZERS = [
    {"type": "vq", "num_embeddings": 8, "dim": 3},
    {"type": "vq", "num_embeddings": 8, "dim": 3, "ema_decay": 0.9},
    {"type": "vq", "num_embeddings": 8, "dim": 3, "rotation": True},
    {"type": "residual", "num_quantizers": 2, "num_embeddings": 4, "dim": 3},
    {"type": "fsq", "levels": [5, 4, 3]},
    {"type": "lfq", "bits": 4},
]


def setup(config, rows=8):
    torch.manual_seed(0)
    vae = VQVAE(sample_size=8, block_out_channels=(4, 8), quantizer=config).train()
    with torch.no_grad():  # residual blocks that do something
        for name, parameter in vae.named_parameters():
            if name.endswith("conv2.weight"):
                parameter.normal_(std=0.1)
    return vae, {"images": torch.rand(rows, 1, 8, 8) * 2 - 1}


def run(objective, vae, batch, step=0):
    return objective.loss("vae", {"vae": vae}, batch, Rng(0), Clock(step, 0, 1))


def names(config) -> str:
    return "-".join(map(str, config.values()))


def test_loss_by_hand():
    vae, batch = setup(QUANTIZERS[0])
    loss, _ = run(VectorQuantized(commitment=0.3), vae, batch)
    z = vae.encode_map(batch["images"])
    codes = vae.quantize(z).codes
    distance = (z - codes).square().sum() / 8
    nats = -Gaussian().log_prob(batch["images"], vae.decode(codes).sample).mean()
    torch.testing.assert_close(loss, nats + 1.3 * distance)


@pytest.mark.parametrize("config", QUANTIZERS, ids=names)
def test_loss_and_gradient_do_not_depend_on_the_batch_size(config):
    vae, batch = setup(config)
    objective = VectorQuantized(likelihood=Gaussian(std=0.3))
    loss, _ = run(objective, vae, batch)
    twice, _ = run(objective, vae, {"images": batch["images"].repeat(2, 1, 1, 1)})
    torch.testing.assert_close(loss, twice)


@pytest.mark.parametrize("config", QUANTIZERS, ids=names)
def test_it_learns(config):
    vae, batch = setup(config, rows=16)
    objective = VectorQuantized(likelihood=Gaussian(std=0.1), entropy=0.1)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss, terms = run(objective, vae, batch, step)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert all(p.grad is not None for p in vae.parameters())
        optimizer.step()
        losses.append(float(terms["reconstruction"]))
    assert losses[-1] < 0.75 * losses[0]
    assert 1 <= terms["perplexity"] <= vae.codebook.num_embeddings


def test_perplexity_by_hand():
    torch.testing.assert_close(perplexity(torch.tensor([0, 1, 2, 3]), 8), torch.tensor(4.0))
    torch.testing.assert_close(perplexity(torch.tensor([5, 5]), 8), torch.tensor(1.0))


def test_codebook_larger_than_a_batch_is_named():
    vae, batch = setup({"type": "vq", "num_embeddings": 64, "dim": 3}, rows=2)
    with pytest.raises(HfgenError, match="num_embeddings 64 is larger than the 8 latents"):
        run(VectorQuantized(), vae, batch)


def test_prior_learns_the_codes_in_its_own_phase():
    vae, batch = setup(QUANTIZERS[0])
    objective = VectorQuantized(learn_prior=True)
    assert [p.trains for p in objective.phases] == [("vae",), ("prior",)]
    run(objective, vae, batch)
    prior = CodePrior((3, 2, 2), num_embeddings=8, hidden_size=16, num_layers=1, num_heads=2)
    models = {"vae": vae, "prior": prior}
    loss, _ = objective.loss("prior", models, batch, Rng(0), Clock(0, 0, 1))
    loss.backward()
    assert all(p.grad is not None for p in prior.parameters())
    assert all(p.grad is None for p in vae.parameters())
    indices = vae.quantize(vae.encode_map(batch["images"])).indices
    torch.testing.assert_close(loss, -prior.log_prob_indices(indices).mean())
    assert torch.equal(prior.tables[0], vae.codebook.codebook)
