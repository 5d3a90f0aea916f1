"""Priors fitted after training: EM against scikit-learn, draws that follow the latents, errors."""

import math

import pytest
import torch
from sklearn.mixture import GaussianMixture

from hfgen.data import TensorSource
from hfgen.errors import HfgenError
from hfgen.fit_prior import fit_mixture, fit_prior
from hfgen.models.prior_codes import CodePrior
from hfgen.models.prior_two_stage import TwoStagePrior
from hfgen.models.vae_mlp import MLPVAE
from hfgen.models.vae_vq import VQVAE
from hfgen.pipelines.vae_pipeline import VAEPipeline


def source(rows=256, size=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(rows, 1, 1, 1, generator=generator) * torch.ones(rows, 1, size, size)
    return TensorSource(images * 2 - 1, labels=torch.arange(rows) % 2)


def mlp_pipeline(**options):
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=8, hidden_size=16, latent_dim=2, **options)
    with torch.no_grad():
        vae.fc21.weight.mul_(20)
        vae.fc22.bias.sub_(6)
    return VAEPipeline(vae)


def test_mixture_reaches_scikit_learns_likelihood():
    torch.manual_seed(0)
    centres = 4 * torch.randn(3, 2)
    rows = centres[torch.randint(3, (600,))] + torch.randn(600, 2) * torch.tensor([0.3, 1.0])
    ours = float(fit_mixture(rows, 3).log_prob(rows).mean().detach())
    theirs = GaussianMixture(3, covariance_type="diag", n_init=5, random_state=0).fit(rows.numpy())
    assert abs(ours - theirs.score(rows.numpy())) < 0.02


@pytest.mark.parametrize("kind", ["gmm", "maf", "iaf", "two-stage"])
def test_draws_follow_the_latents(kind, tmp_path):
    pipeline, data = mlp_pipeline(), source()
    latents = pipeline.vae.encode(data.batch(range(256))["images"]).latent_dist.mode().detach()
    prior = fit_prior(pipeline, data, kind, num_components=5, total_images=20_000, batch_size=128)
    assert pipeline.prior is prior
    drawn = prior.sample(2000, torch.Generator().manual_seed(0))
    assert (drawn.mean(0) - latents.mean(0)).norm() < 0.25 * latents.std(0).norm()
    assert 0.7 < drawn.std(0).norm() / latents.std(0).norm() < 1.4
    normal = -0.5 * (latents.square() + math.log(2 * math.pi)).sum(1)
    assert prior.log_prob(latents).mean() > normal.mean() + 0.5
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(4, generator=torch.Generator().manual_seed(0), output_type="pt").images
    pipeline.save_pretrained(tmp_path)
    again = VAEPipeline.from_pretrained(tmp_path)
    same = again(4, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert torch.equal(images, same)


def test_same_seed_same_prior():
    first, second = (fit_prior(mlp_pipeline(), source(), "gmm", num_components=3) for _ in "ab")
    assert torch.equal(first.mean, second.mean)


@pytest.mark.parametrize("classes", [None, 2])
def test_codes_learn_their_distribution(classes):
    torch.manual_seed(0)
    config = {"type": "vq", "num_embeddings": 4, "dim": 2}
    vae = VQVAE(
        sample_size=8, block_out_channels=(4, 4), quantizer=config, num_class_embeds=classes
    )
    pipeline = VAEPipeline(vae.eval())
    prior = fit_prior(pipeline, source(), "codes", total_images=6000, batch_size=64)
    uniform = 4 * math.log(4)
    batch = source().batch(range(64))
    labels = batch["labels"] if classes else None
    given = {} if labels is None else {"class_labels": labels}
    indices = vae.quantize(vae.encode_map(batch["images"], **given)).indices
    assert -prior.log_prob_indices(indices, labels).mean() < 0.7 * uniform
    drawn = prior.sample(50, torch.Generator().manual_seed(0), labels[:50] if classes else None)
    assert drawn.shape == (50, 2, 2, 2)
    assert (
        torch.cdist(drawn.movedim(1, -1).reshape(-1, 2), vae.codebook.codebook).amin(1).max() == 0
    )


@torch.no_grad()
def test_code_prior_is_autoregressive_and_normalised():
    torch.manual_seed(0)
    prior = CodePrior((2, 1, 3), num_embeddings=3, hidden_size=8, num_layers=2, num_heads=2).eval()
    prior.tables.normal_()
    every = torch.cartesian_prod(*[torch.arange(3)] * 3).view(-1, 1, 3, 1)
    total = prior.log_prob_indices(every).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0))
    drawn = prior.sample(3000, torch.Generator().manual_seed(0))
    index = torch.cdist(drawn.flatten(2).transpose(1, 2), prior.tables[0]).argmin(-1)
    share = torch.bincount((index * torch.tensor([9, 3, 1])).sum(1), minlength=27)
    expected = prior.log_prob_indices(every).exp()
    assert (share / 3000 - expected).abs().sum() < 0.15
    torch.testing.assert_close(prior.log_prob(prior.embed(every)), expected.log())


@pytest.mark.parametrize(
    "config",
    [
        {"type": "residual", "num_quantizers": 2, "num_embeddings": 4, "dim": 2},
        {"type": "fsq", "levels": [3, 3]},
        {"type": "lfq", "bits": 3},
    ],
    ids=str,
)
def test_tables_embed_as_the_quantizer_does(config):
    torch.manual_seed(0)
    vae = VQVAE(sample_size=8, block_out_channels=(4, 4), quantizer=config).eval()
    out = vae.quantize(torch.randn(3, vae.codebook.dim, 2, 2))
    prior = CodePrior(
        vae.latent_shape,
        num_embeddings=vae.codebook.num_embeddings,
        num_quantizers=vae.codebook.num_quantizers,
    )
    prior.tie(vae)
    torch.testing.assert_close(prior.embed(out.indices), out.codes)
    with pytest.raises(ValueError, match=r"is \[1, 512, 2\], but the autoencoder's codes are"):
        CodePrior((2, 2, 2)).tie(vae)


@torch.no_grad()
def test_two_stage_bound_is_exact_for_a_linear_decoder():
    torch.manual_seed(0)
    prior = TwoStagePrior((2,), num_samples=20_000).eval()
    matrix = torch.tensor([[0.8, 0.3], [-0.2, 0.5]])
    linear = torch.nn.Linear(2, 2)
    linear.weight.copy_(matrix)
    linear.bias.zero_()
    prior.decoder, prior.encoder = linear, torch.nn.Linear(2, 4)
    prior.encoder.weight.zero_()
    prior.encoder.bias.zero_()
    covariance = matrix @ matrix.T + torch.eye(2)
    z = torch.randn(4, 2)
    exact = torch.distributions.MultivariateNormal(torch.zeros(2), covariance).log_prob(z)
    torch.testing.assert_close(prior.log_prob(z), exact, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "kind,message",
    [("gmmm", "did you mean 'gmm'"), ("codes", "'codes' does not fit the latents of MLPVAE")],
)
def test_kinds_that_do_not_fit_are_named(kind, message):
    with pytest.raises(HfgenError, match=message):
        fit_prior(mlp_pipeline(), source(), kind)


def test_more_components_than_latents_is_named():
    with pytest.raises(HfgenError, match="500 components for 256 latents"):
        fit_prior(mlp_pipeline(), source(), "gmm", num_components=500)
