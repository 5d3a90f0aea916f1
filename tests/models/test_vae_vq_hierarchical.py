"""VQ-VAE-2: levels see what is above them, one vocabulary names all codes, it learns."""

import pytest
import torch

from hfgen.data import TensorSource
from hfgen.fit_prior import fit_prior
from hfgen.models.layers.vq_hierarchical import HierarchicalQuantizer
from hfgen.models.prior_codes import CodePrior
from hfgen.models.vae_vq_hierarchical import HierarchicalVQVAE
from hfgen.objectives.base import Clock
from hfgen.objectives.vae_vq import VectorQuantized, code_prior_loss
from hfgen.pipelines.vae_pipeline import VAEPipeline
from hfgen.rng import Rng

CODES = {"num_embeddings": 6, "dim": 3}


def model(**options) -> HierarchicalVQVAE:
    torch.manual_seed(0)
    widths = options.pop("block_out_channels", (8, 8, 8))
    vae = HierarchicalVQVAE(block_out_channels=widths, quantizer=CODES, **options)
    with torch.no_grad():  # residual blocks that do something
        for name, parameter in vae.named_parameters():
            if name.endswith("conv2.weight"):
                parameter.normal_(std=0.1)
    return vae.eval()


def images(rows=4, size=28):
    return torch.rand(rows, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("levels,length", [(1, 16), (2, 65), (3, 261)])
def test_latents_are_the_codes_of_all_levels(levels, length):
    vae = model(num_levels=levels)
    x = images()
    latents = vae.encode_map(x)
    assert latents.shape[1:] == vae.latent_shape == (3, length)
    out = vae.quantize(latents)
    assert out.indices.shape == (4, length, 1)
    torch.testing.assert_close(vae.codebook.embed(out.indices), out.codes)
    level = out.indices.squeeze(-1) // 6
    sizes = torch.tensor(vae.codebook.positions)
    assert torch.equal(level, torch.arange(levels).repeat_interleave(sizes).expand(4, -1))
    assert vae.decode(out.codes).sample.shape == x.shape


@torch.no_grad()
def test_lower_levels_see_the_codes_above_and_not_the_reverse():
    vae = model()
    x = images()
    before = vae.encode_map(x)
    vae.codebook.layers[0].codebook.add_(1.0)  # other codes at the top
    after = vae.encode_map(x)
    assert torch.equal(before[..., :16], after[..., :16])
    assert not torch.allclose(before[..., 16:], after[..., 16:])
    vae.codebook.layers[1].codebook.add_(1.0)
    assert torch.equal(after, vae.encode_map(x))


@torch.no_grad()
def test_every_level_reaches_the_image():
    vae = model()
    codes = vae.encode(images()).latent_dist.mode()
    whole = vae.decode(codes).sample
    for part in (slice(0, 16), slice(16, 65)):
        changed = codes.clone()
        changed[..., part] = changed[..., part].flip(2)
        assert (vae.decode(changed).sample - whole).abs().max() > 1e-3


def test_gradient_passes_to_the_top_through_both_its_code_and_the_bottom_that_sees_it():
    vae = model().train()
    latents = vae.encode_map(images())
    (gradient,) = torch.autograd.grad(
        latents[..., 16:].square().sum(), [vae.to_latents[0][2].weight]
    )
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("decay", [None, 0.9])
def test_training_lowers_the_loss_and_uses_both_codebooks(decay):
    torch.manual_seed(0)
    quantizer = {"num_embeddings": 8, "dim": 4, "ema_decay": decay}
    vae = HierarchicalVQVAE(sample_size=8, block_out_channels=(8, 8), quantizer=quantizer).train()
    x = images(64, 8).mean((2, 3), keepdim=True).sign() * torch.ones(64, 1, 8, 8) * 0.5
    x[:, :, ::2] *= torch.linspace(-1, 1, 64).view(-1, 1, 1, 1)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    objective, losses = VectorQuantized(), []
    for step in range(40):
        loss, logs = objective.loss(
            "vae", {"vae": vae}, {"images": x}, Rng(0), Clock(step, 64 * step, 1)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(logs["reconstruction"]))
    assert losses[-1] < 64 * 0.5 * 1.8379 + 0.3 * (losses[0] - 64 * 0.5 * 1.8379)
    indices = vae.eval().quantize(vae.encode_map(x)).indices
    assert len(indices[:, :4].unique()) > 1 and len(indices[:, 4:].unique()) > 1


def test_one_prior_covers_both_levels():
    vae = model(sample_size=8, block_out_channels=(8, 8))
    prior = CodePrior((3, 20), 12, hidden_size=32, num_layers=1)
    prior.tie(vae)
    x = images(64, 8)
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(60):
        loss, _ = code_prior_loss({"vae": vae, "prior": prior}, {"images": x})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = prior.sample(50, torch.Generator().manual_seed(0))
    table = vae.codebook.tables()[0].T  # which level each drawn code is of
    index = (drawn.unsqueeze(-1) - table[None, :, None]).square().sum(1).argmin(-1)
    right = index // 6 == torch.tensor([0] * 4 + [1] * 16)
    assert right.float().mean() > 0.98
    assert vae.decode(drawn).sample.shape == (50, 1, 8, 8)


def test_fit_prior_knows_the_codes():
    pipeline = VAEPipeline(model(sample_size=8, block_out_channels=(8, 8)))
    prior = fit_prior(pipeline, TensorSource(images(32, 8)), "codes", total_images=32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.prior is prior and prior.positions == (20,)
    assert pipeline(3, output_type="pt").images.shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"num_levels": 4}, "num_levels must be from 1 to 3"),
        ({"sample_size": 4}, "too small to halve 3 times"),
        ({"quantizer": {"type": "fsq"}}, "takes type vq alone, got 'fsq'"),
        ({"quantizer": {"codes": 3}}, "vq does not take these options"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalVQVAE(**options)


def test_levels_of_a_quantizer_keep_their_own_codes():
    torch.manual_seed(0)
    quantizer = HierarchicalQuantizer((2, 3), num_embeddings=4, dim=2)
    z = torch.randn(8, 2, 5)
    quantizer.start_from(z)
    codes = quantizer(z).codes.detach()
    for level, part in enumerate(codes.split([2, 3], dim=2)):
        rows = part.movedim(1, 2).reshape(-1, 2)
        assert torch.cdist(rows, quantizer.layers[level].codebook).amin(1).max() < 1e-6
