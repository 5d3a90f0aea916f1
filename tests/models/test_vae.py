"""The VAEs: the AutoencoderKL interface, labels, sizes, and PyTorch's classic example as the
reference.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hfgen.likelihoods import Gaussian
from hfgen.models.vae_conv import ConvVAE
from hfgen.models.vae_mlp import MLPVAE


class ClassicVAE(nn.Module):
    """pytorch/examples/vae: the network as published."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 400)
        self.fc21 = nn.Linear(400, 20)
        self.fc22 = nn.Linear(400, 20)
        self.fc3 = nn.Linear(20, 400)
        self.fc4 = nn.Linear(400, 784)

    def encode(self, x):
        h1 = F.relu(self.fc1(x))
        return self.fc21(h1), self.fc22(h1)

    def decode(self, z):
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))


def tiny(kind: str, **options):
    torch.manual_seed(0)
    if kind == "mlp":
        return MLPVAE(hidden_size=16, latent_dim=3, **options)
    return ConvVAE(block_out_channels=(4, 8, 8), latent_dim=3, **options)


KINDS = ["mlp", "conv"]


@torch.no_grad()
def test_mlp_is_the_classic_example():
    classic, ours = ClassicVAE(), MLPVAE(logits=False)
    ours.load_state_dict(classic.state_dict())
    pixels = torch.rand(5, 784)
    mean, logvar = classic.encode(pixels)
    posterior = ours.encode(2 * pixels.view(5, 1, 28, 28) - 1).latent_dist
    torch.testing.assert_close(posterior.mean, mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(posterior.logvar, logvar, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.decode(mean).sample.flatten(1), classic.decode(mean))
    kld = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())  # the example's line
    torch.testing.assert_close(posterior.kl().sum(), kld)
    logits = MLPVAE()
    logits.load_state_dict(classic.state_dict())
    torch.testing.assert_close(torch.sigmoid(logits.decode(mean).sample), ours.decode(mean).sample)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size,channels,out", [(28, 1, None), (32, 3, 6), (17, 2, None)])
def test_shapes_and_forward(kind, size, channels, out):
    vae = tiny(kind, sample_size=size, in_channels=channels, out_channels=out)
    x = torch.rand(4, channels, size, size) * 2 - 1
    assert vae.latent_shape == (3,)
    result = vae(x)
    assert result.sample.shape == (4, out or channels, size, size)
    torch.testing.assert_close(result.sample, vae.decode(vae.encode(x).latent_dist.mode()).sample)
    drawn = [
        vae(x, sample_posterior=True, generator=torch.manual_seed(s)).sample for s in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", KINDS)
def test_labels_change_both_directions(kind):
    vae = tiny(kind, num_class_embeds=4)
    x, z = torch.rand(2, 1, 28, 28), torch.randn(2, 3)
    a, b = torch.tensor([0, 1]), torch.tensor([2, 3])
    assert not torch.equal(vae.encode(x, a).latent_dist.mean, vae.encode(x, b).latent_dist.mean)
    assert not torch.equal(vae.decode(z, a).sample, vae.decode(z, b).sample)
    with pytest.raises(ValueError, match="class_labels are required"):
        vae.encode(x)
    with pytest.raises(ValueError, match=r"\[0, 4\), got \[1, 7\]"):
        vae.decode(z, torch.tensor([7, 1]))
    with pytest.raises(ValueError, match="without classes"):
        tiny(kind).decode(z, a)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind, tmp_path):
    vae = tiny(kind).eval()
    vae.save_pretrained(tmp_path)
    again = type(vae).from_pretrained(tmp_path).eval()
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(vae(x).sample, again(x).sample)


def test_gradient_checkpointing_changes_nothing():
    x, gradients = torch.rand(2, 1, 28, 28), []
    for enable in (False, True):
        vae = tiny("conv").train()
        if enable:
            vae.enable_gradient_checkpointing()
        vae(x).sample.square().sum().backward()
        gradients.append([p.grad for p in vae.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_size_is_named(kind):
    with pytest.raises(
        ValueError, match=r"images must be \[B, \(1, 28, 28\)\], got \(2, 1, 32, 32\)"
    ):
        tiny(kind).encode(torch.zeros(2, 1, 32, 32))


def test_impossible_sizes_are_named():
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        MLPVAE(hidden_size=0)
    with pytest.raises(ValueError, match="ConvVAE: block_out_channels is empty"):
        ConvVAE(block_out_channels=())
    with pytest.raises(ValueError, match="too small to halve 3 times"):
        ConvVAE(sample_size=4)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_scale_learns_the_root_mean_square_error(kind):
    vae = tiny(kind, sample_size=8, out_channels=2, shared_scale=True)
    likelihood = Gaussian(std=None, min_std=1e-6)
    x = torch.rand(16, 1, 8, 8) * 2 - 1
    params = vae.decode(vae.encode(x).latent_dist.mode()).sample
    assert params.shape == (16, 2, 8, 8) and len(params[:, 1].unique()) == 1
    location = params[:, :1].detach()
    optimizer = torch.optim.Adam(vae.scale.parameters(), lr=0.05)
    for _ in range(200):
        loss = -likelihood.log_prob(x, vae.scale(location)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimal = (x - location).square().mean().sqrt()  # Rybkin et al. 2021, eq. 4
    torch.testing.assert_close(vae.scale.log_scale.exp()[0], optimal, atol=1e-3, rtol=1e-2)


def test_shared_scale_needs_room_for_scales():
    with pytest.raises(ValueError, match="out_channels must be even .* got 1"):
        tiny("mlp", shared_scale=True)
