"""The ladder VAE: a hierarchy that is used like a flat VAE."""

import math

import pytest
import torch

from hfgen.models.vae_ladder import LadderVAE
from hfgen.objectives.base import Clock
from hfgen.objectives.vae import ELBO
from hfgen.objectives.vae_bounds import IWAE
from hfgen.rng import Rng


def ladder(**options) -> LadderVAE:
    torch.manual_seed(0)
    vae = LadderVAE(8, levels="1x1,2x2,4x1", hidden_size=8, latent_channels=2, **options)
    with torch.no_grad():
        for layer in vae.layers:
            layer.relative[-1].weight.normal_(std=0.05)
            layer.block.conv2.weight.normal_(std=0.1)
    return vae.eval()


X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_shapes_splits_and_saving(tmp_path):
    vae = ladder()
    assert vae.latent_shape == (2 * (1 + 2 * 4 + 16),)
    posterior = vae.encode(X).latent_dist
    z = posterior.sample(torch.manual_seed(0))
    assert z.shape == (3, 50) and vae.decode(z).sample.shape == X.shape
    assert [tuple(p.shape[1:]) for p in vae.split(z)] == [
        (2, 1, 1),
        (2, 2, 2),
        (2, 2, 2),
        (2, 4, 4),
    ]
    vae.save_pretrained(tmp_path)
    assert torch.equal(LadderVAE.from_pretrained(tmp_path).eval()(X).sample, vae(X).sample)


@torch.no_grad()
def test_rsample_agrees_with_log_prob_and_leading_samples():
    vae = ladder()
    posterior = vae.encode(X).latent_dist
    noise = torch.randn(5, *posterior.noise_shape)
    z, log_q = posterior.rsample(noise)
    assert z.shape == (5, 3, 50) and log_q.shape == (5, 3)
    torch.testing.assert_close(posterior.log_prob(z[2]), log_q[2], atol=1e-4, rtol=1e-5)
    one, one_log_q = posterior.rsample(noise[2])
    torch.testing.assert_close(one, z[2])
    torch.testing.assert_close(one_log_q, log_q[2])


@torch.no_grad()
def test_conditional_kl_is_the_expectation_of_the_sampled_one():
    vae = ladder()
    posterior = vae.encode(X[:1].repeat(4000, 1, 1, 1)).latent_dist
    assert posterior.kl_terms() is None
    z, log_q = posterior.rsample(torch.randn(posterior.noise_shape))
    log_p = (-0.5 * (z.square() + math.log(2 * math.pi))).sum(1)
    closed = posterior.kl_terms().sum(1)
    difference = (log_q - log_p) - closed
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(4000)
    assert closed.var() < 0.5 * (log_q - log_p).var()


@torch.no_grad()
def test_lower_latents_depend_on_those_above():
    vae = ladder()
    posterior = vae.encode(X).latent_dist
    noise = torch.zeros(posterior.noise_shape)
    moved = noise.clone()
    moved[:, :2] += 3.0  # the top layer's noise
    first, second = posterior.rsample(noise)[0], posterior.rsample(moved)[0]
    assert not torch.allclose(first[:, 2:], second[:, 2:], atol=1e-4)


@pytest.mark.parametrize("objective", [ELBO(), ELBO(free_bits=0.1), IWAE(num_samples=3)], ids=repr)
def test_every_parameter_learns(objective):
    vae = ladder().train()
    loss, terms = objective.loss("vae", {"vae": vae}, {"images": X}, Rng(0), Clock(0, 0, 1))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_conditional():
    vae = ladder(num_class_embeds=3)
    z, labels = torch.randn(2, 50), torch.tensor([0, 2])
    assert not torch.equal(vae.decode(z, labels).sample, vae.decode(z, labels.flip(0)).sample)
    with pytest.raises(ValueError, match="class_labels are required"):
        vae.decode(z)


@pytest.mark.parametrize(
    "levels,message",
    [("4,2", "must look like"), ("4x1,2x1", "must rise"), ("1x1,20x1", "half of sample_size 28")],
)
def test_bad_levels_are_named(levels, message):
    with pytest.raises(ValueError, match=message):
        LadderVAE(levels=levels)
