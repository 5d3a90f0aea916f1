"""Log-likelihood against probabilistic PCA, where it is known, and the scale of bits/dim."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from hfgen.errors import HfgenError
from hfgen.evaluation.likelihood import BIN, BOUNDS, log_likelihood
from hfgen.models.gan_dcgan import DCGANGenerator
from hfgen.models.layers.posterior import DiagonalGaussian
from hfgen.models.vae_mlp import MLPVAE
from hfgen.pipelines.gan_pipeline import GANPipeline
from hfgen.pipelines.vae_pipeline import VAEPipeline
from hfgen.rng import Rng

D, LATENT, STD = 16, 3, 0.4


class LinearVAE(MLPVAE):
    """x = W z + b + noise with the exact posterior's mean, and a chosen posterior spread.

    With ``spread`` 1 the posterior is exact: pPCA (Tipping & Bishop 1999, section 3).
    """

    def setup(self, spread: float) -> LinearVAE:
        draw = torch.Generator().manual_seed(0)
        self.b = torch.randn(D, generator=draw) * 0.1
        # orthogonal columns: only then is the exact posterior diagonal
        basis = torch.linalg.qr(torch.randn(D, LATENT, generator=draw))[0]
        self.W = basis * torch.tensor([0.5, 0.3, 0.2])
        precision = torch.eye(LATENT) + self.W.T @ self.W / STD**2
        self.covariance = torch.linalg.inv(precision)
        self.spread = spread
        return self

    def encode(self, x, *arguments, **named):
        mean = (x.flatten(1) - self.b) @ self.W @ self.covariance / STD**2
        logvar = (self.covariance.diagonal() * self.spread**2).log().expand_as(mean)
        output = super().encode(torch.zeros(len(x), 1, 4, 4))
        output.latent_dist = DiagonalGaussian(mean, logvar)
        return output

    def decode(self, z, *arguments, **named):
        output = super().decode(torch.zeros(len(z), LATENT))
        output.sample = (z @ self.W.T + self.b).view(-1, 1, 4, 4)
        return output

    def exact(self, x: Tensor) -> Tensor:
        """ln p(x) of the marginal N(b, W W' + std^2 I)."""
        covariance = self.W @ self.W.T + STD**2 * torch.eye(D)
        marginal = torch.distributions.MultivariateNormal(self.b, covariance)
        return marginal.log_prob(x.flatten(1))


def pipeline(spread: float) -> VAEPipeline:
    vae = LinearVAE(sample_size=4, hidden_size=4, latent_dim=LATENT).setup(spread)
    return VAEPipeline(vae, likelihood={"type": "gaussian", "std": STD})


def images(n: int, seed: int = 0) -> Tensor:
    return 0.5 * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def nats(pipe: VAEPipeline, x: Tensor, bound: str, k: int) -> float:
    """Without dequantisation: the density of the images as they are."""
    with torch.inference_mode():
        return float(BOUNDS[bound].log_prob(pipe, x, k, Rng(0)).mean())


@pytest.mark.parametrize(("bound", "k"), [("elbo", 1), ("elbo", 7), ("iw", 1), ("iw", 50)])
def test_every_bound_is_exact_with_the_exact_posterior(bound, k):
    pipe, x = pipeline(1.0), images(40)
    assert nats(pipe, x, bound, k) == pytest.approx(float(pipe.vae.exact(x).mean()), abs=1e-3)


def test_bounds_lie_below_and_tighten_with_k():
    pipe, x = pipeline(1.6), images(400)
    exact = float(pipe.vae.exact(x).mean())
    gaps = [exact - nats(pipe, x, "elbo", 1)]
    gaps += [exact - nats(pipe, x, "iw", k) for k in (1, 4, 64, 4096)]
    # KL(q || p) of three dimensions with their deviations scaled by 1.6
    assert gaps[0] == pytest.approx(3 * (-math.log(1.6) + (1.6**2 - 1) / 2), rel=0.1)
    assert gaps[1] == pytest.approx(gaps[0], abs=1e-6)
    assert gaps[1] > gaps[2] > gaps[3] > gaps[4] > -0.01
    assert gaps[4] < 0.01


def test_exactly_k_samples_however_they_are_grouped(monkeypatch):
    pipe, x = pipeline(1.6), images(10)
    calls = []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda z: calls.append(len(z)) or decode(z))
    whole = nats(pipe, x, "iw", 37)
    assert sum(calls) == 37 * 10
    monkeypatch.setattr("hfgen.evaluation.likelihood.ROWS", 50)
    assert nats(pipe, x, "iw", 37) == pytest.approx(whole, abs=1e-4)


def test_result_names_its_terms_and_converts_to_bits():
    pipe = pipeline(1.0)
    pixels = torch.randint(0, 256, (64, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    x = pixels / 127.5 - 1
    result = log_likelihood(pipe, x, bound="iw", k=5)
    assert (result.bound, result.k, result.nfe, result.count) == ("iw", 5, 5, 64)
    assert result.pixels == "density of 8-bit pixels + uniform noise of one level"
    assert result.bits_per_dim == pytest.approx(
        -(result.nats + D * math.log(BIN)) / D / math.log(2)
    )
    with torch.inference_mode():
        spread = pipe.vae.exact(x).std() / 8
    assert result.standard_error == pytest.approx(float(spread), rel=0.1)


def test_uniform_images_cost_eight_bits():
    """A density that is uniform on the levels' range gives log2 256 per pixel."""
    pipe = pipeline(1.0)
    pipe.vae.W = torch.zeros(D, LATENT)
    pipe.vae.covariance = torch.eye(LATENT)
    wide = {"type": "gaussian", "std": 50.0}
    flat = VAEPipeline(pipe.vae, likelihood=wide)
    x = torch.randint(0, 256, (64, 1, 4, 4)) / 127.5 - 1
    expected = math.log2(50 * math.sqrt(2 * math.pi)) - math.log2(BIN)
    assert log_likelihood(flat, x).bits_per_dim == pytest.approx(expected, abs=0.01)


def test_batch_size_changes_nothing():
    pipe, x = pipeline(1.3), images(70)
    values = [log_likelihood(pipe, x, bound="iw", k=3, batch_size=b).nats for b in (16, 64)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_bernoulli_on_grey_pixels_is_named_for_what_it_is():
    vae = MLPVAE(sample_size=4, hidden_size=8, latent_dim=2).eval()
    pipe = VAEPipeline(vae, likelihood={"type": "bernoulli"})
    grey = log_likelihood(pipe, torch.rand(8, 1, 4, 4) * 2 - 1)
    assert "not a density" in grey.pixels and grey.bits_per_dim is None
    binary = log_likelihood(pipe, (torch.rand(8, 1, 4, 4) > 0.5) * 2.0 - 1)
    assert binary.pixels == "probability of binary pixels, not dequantised"
    assert binary.bits_per_dim == pytest.approx(-binary.nats / 16 / math.log(2))


def test_stock_autoencoder_kl():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, norm_num_groups=4,
        block_out_channels=(8,), sample_size=8,
    ).eval()  # fmt: skip
    pipe = VAEPipeline(vae, likelihood={"type": "gaussian", "std": 1.0})
    x = torch.rand(20, 1, 8, 8) * 2 - 1
    elbo, iw = (log_likelihood(pipe, x, bound=b, k=8) for b in ("elbo", "iw"))
    with torch.inference_mode():
        posterior = vae.encode(x).latent_dist
        recon = -0.5 * ((x - vae.decode(posterior.mode()).sample) ** 2 + math.log(2 * math.pi))
        around = float((recon.flatten(1).sum(1) - posterior.kl()).mean())
    assert elbo.nats < iw.nats
    assert elbo.nats == pytest.approx(around, abs=0.3 * abs(around))


def test_a_gan_has_none():
    generator = DCGANGenerator(sample_size=8, channels=4, latent_dim=4, out_channels=1)
    with pytest.raises(HfgenError, match="a GAN has no likelihood"):
        log_likelihood(GANPipeline(generator), images(4))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 0}, "k: 0 samples per image"),
        ({"bound": "ebo"}, "did you mean 'elbo'"),
        ({"max_images": 1}, "images: 1; a standard error needs at least 2"),
    ],
)
def test_bad_input(options, says):
    with pytest.raises(HfgenError, match=says):
        log_likelihood(pipeline(1.0), images(4), **options)


def test_images_that_do_not_fit_the_model():
    vae = MLPVAE(sample_size=4, hidden_size=8, latent_dim=2)
    with pytest.raises(HfgenError, match=r"images of \(1, 5, 5\) under this model"):
        log_likelihood(VAEPipeline(vae), torch.zeros(4, 1, 5, 5))
