"""Quantisers against by-hand answers, and the codebook's health."""

import math

import pytest
import torch

from hfgen.models.layers.vq import (
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    build_quantizer,
    kmeans,
    rotate,
)
from hfgen.models.vae_vq import VQVAE

CONFIGS = [
    {"type": "vq", "num_embeddings": 8, "dim": 3},
    {"type": "vq", "num_embeddings": 8, "dim": 3, "ema_decay": 0.9, "rotation": True},
    {"type": "residual", "num_quantizers": 3, "num_embeddings": 4, "dim": 3},
    {"type": "fsq", "levels": [5, 4, 3]},
    {"type": "lfq", "bits": 4},
]


def names(config) -> str:
    return "-".join(map(str, config.values()))


def latents(dim: int, batch=4):
    return torch.randn(batch, dim, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_codes_are_embedded_indices(config):
    quantizer = build_quantizer(config).eval()
    z = latents(quantizer.dim)
    out = quantizer(z)
    assert out.codes.shape == z.shape
    assert out.indices.shape == (4, 3, 3, quantizer.num_quantizers)
    assert 0 <= out.indices.min() and out.indices.max() < quantizer.num_embeddings
    torch.testing.assert_close(quantizer.embed(out.indices), out.codes)
    assert out.codebook.shape == out.commitment.shape == (4,)


@pytest.mark.parametrize("config,size", [(CONFIGS[3], 60), (CONFIGS[4], 16)], ids=repr)
def test_every_index_has_its_own_code(config, size):
    quantizer = build_quantizer(config)
    assert quantizer.num_embeddings == size
    codes = quantizer.embed(torch.arange(size).view(-1, 1, 1))
    assert len(codes.flatten(1).unique(dim=0)) == size


def test_fsq_reaches_all_levels_evenly_spaced():
    quantizer = FiniteScalarQuantizer((4, 5))
    sweep = torch.linspace(-6, 6, 2001)
    codes = quantizer(torch.stack([sweep, sweep])[None]).codes[0]
    torch.testing.assert_close(codes[0].unique(), torch.tensor([-1.0, -0.5, 0.0, 0.5]))
    torch.testing.assert_close(codes[1].unique(), torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))


def test_nearest_neighbour_and_straight_through():
    quantizer = VectorQuantizer(2, 1, kmeans_start=False)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[-1.0], [2.0]]))
    z = torch.tensor([[[-0.5, 0.4, 0.6]]], requires_grad=True)
    out = quantizer(z)
    assert out.indices.flatten().tolist() == [0, 0, 1]
    torch.testing.assert_close(out.codes, torch.tensor([[[-1.0, -1.0, 2.0]]]))
    expected = torch.tensor([0.5**2 + 1.4**2 + 1.4**2])
    torch.testing.assert_close(out.commitment, expected)
    torch.testing.assert_close(out.codebook, expected)
    (gradient,) = torch.autograd.grad((out.codes * torch.tensor([1.0, 2.0, 3.0])).sum(), z)
    torch.testing.assert_close(gradient, torch.tensor([[[1.0, 2.0, 3.0]]]))
    (to_z,) = torch.autograd.grad(quantizer(z).commitment.sum(), z)
    torch.testing.assert_close(to_z, torch.tensor([[[1.0, 2.8, -2.8]]]))
    (to_codes,) = torch.autograd.grad(quantizer(z).codebook.sum(), quantizer.codebook)
    torch.testing.assert_close(to_codes, torch.tensor([[-3.8], [2.8]]))


def test_rotation_gives_the_code_and_keeps_angles_of_gradients():
    torch.manual_seed(0)
    z, e = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    moved = rotate(z, e)
    torch.testing.assert_close(moved, e)
    g = torch.randn(5, 4)
    (gradient,) = torch.autograd.grad((moved * g).sum(), z)
    scale = e.norm(dim=1) / z.norm(dim=1)
    torch.testing.assert_close(gradient.norm(dim=1), scale * g.norm(dim=1))
    before = torch.nn.functional.cosine_similarity(gradient, z.detach())
    torch.testing.assert_close(before, torch.nn.functional.cosine_similarity(g, e))


def test_kmeans_finds_separate_clusters():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = (centres[:, None] + 0.1 * torch.randn(3, 50, 2)).flatten(0, 1)
    found = min(
        (kmeans(rows, 3) for _ in range(10)), key=lambda c: torch.cdist(rows, c).amin(1).sum()
    )
    assert torch.cdist(centres, found).amin(1).max() < 0.1


def test_ema_codebook_becomes_the_mean_of_its_latents():
    quantizer = VectorQuantizer(2, 1, ema_decay=0.5, kmeans_start=False).train()
    quantizer.codebook.copy_(torch.tensor([[-1.0], [1.0]]))
    z = torch.tensor([-3.0, -2.0, 4.0]).view(3, 1, 1)
    for step in range(40):
        quantizer.advance(step)
        quantizer(z)
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[-2.5], [4.0]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("parts", [1, 4])
def test_ema_does_not_see_how_a_batch_is_split(parts):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 2, ema_decay=0.9, kmeans_start=False, restart_below=0.0).train()
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        for part in torch.randn(16, 2, 5, generator=generator).chunk(parts):
            quantizer.advance(step)
            quantizer(part)
    quantizer.advance(3)
    torch.manual_seed(0)
    whole = VectorQuantizer(4, 2, ema_decay=0.9, kmeans_start=False, restart_below=0.0).train()
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        whole.advance(step)
        whole(torch.randn(16, 2, 5, generator=generator))
    whole.advance(3)
    torch.testing.assert_close(quantizer.codebook, whole.codebook)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_dead_codes_restart_at_latents(decay):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 2, ema_decay=decay, kmeans_start=False, restart_below=0.1)
    with torch.no_grad():
        quantizer.codebook[1:] += 1000.0
    z = torch.randn(64, 2, 4)
    used = []
    for step in range(300):
        quantizer.advance(step)
        used.append(len(quantizer(z).indices.unique()))
    assert used[0] == 1 and used[-1] >= 14


def test_kmeans_start_happens_once_and_names_a_codebook_that_is_too_large():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 2)
    z = torch.randn(3, 2, 5)
    quantizer.start_from(z)
    first = quantizer.codebook.detach().clone()
    quantizer.start_from(z + 5)
    assert torch.equal(first, quantizer.codebook)
    with pytest.raises(ValueError, match="num_embeddings 64 is larger than the 15 latents"):
        VectorQuantizer(64, 2).start_from(z)


def test_residual_levels_refine():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, num_embeddings=8, dim=2)
    z = torch.randn(32, 2, 8)
    quantizer.start_from(z)
    out = quantizer(z)
    error = [
        (z - quantizer.embed(out.indices)).square().mean(),
        (z - quantizer.layers[0].embed(out.indices[..., :1])).square().mean(),
    ]
    assert error[0] < 0.05 * error[1]


def test_lfq_entropy_prefers_certain_and_diverse_codes():
    quantizer = LookupFreeQuantizer(2)
    spread = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).unsqueeze(-1)
    certain = quantizer(5 * spread).entropy
    torch.testing.assert_close(certain, torch.tensor(-2 * math.log(2)), atol=1e-3, rtol=0)
    assert quantizer(0 * spread).entropy.abs() < 1e-6  # uncertain: H(p) = H(E p)
    assert quantizer(5 * torch.ones(4, 2, 1)).entropy.abs() < 1e-3  # one code: both are 0


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_vqvae_saves_loads_and_reconstructs(config, tmp_path):
    torch.manual_seed(0)
    vae = VQVAE(block_out_channels=(4, 8), quantizer=config).eval()
    x = torch.rand(2, 1, 28, 28) * 2 - 1
    assert vae.latent_shape == (vae.codebook.dim, 7, 7)
    posterior = vae.encode(x).latent_dist
    assert torch.equal(posterior.mode(), posterior.sample())
    vae.save_pretrained(tmp_path)
    assert torch.equal(VQVAE.from_pretrained(tmp_path).eval()(x).sample, vae(x).sample)


@pytest.mark.parametrize(
    "config,message",
    [
        ({"type": "pq"}, "unknown type 'pq'; valid: vq, residual, fsq, lfq"),
        ({"type": "vq", "num_embeddings": 1}, "num_embeddings >= 2"),
        ({"type": "vq", "ema_decay": 1.0}, r"ema_decay must be in \(0, 1\)"),
        ({"type": "fsq", "levels": [1]}, "every one of levels must be >= 2"),
        ({"type": "lfq", "bits": 0}, r"bits must be in \[1, 30\], got 0"),
        ({"type": "vq", "codes": 3}, "vq does not take these options"),
    ],
)
def test_bad_quantizers_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        VQVAE(quantizer=config)
