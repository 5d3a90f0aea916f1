"""The ELBO: closed forms, schedules, the stock AutoencoderKL, and one-line errors."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from hfgen.errors import HfgenError
from hfgen.likelihoods import Bernoulli, Gaussian
from hfgen.models.prior_mixture import GaussianMixturePrior
from hfgen.models.prior_poincare import PoincarePrior
from hfgen.models.prior_sphere import SphereUniformPrior
from hfgen.models.prior_vamp import VampPrior
from hfgen.models.vae_mlp import MLPVAE
from hfgen.models.vae_vq import VQVAE
from hfgen.objectives.base import Clock
from hfgen.objectives.vae import ELBO, Autoencoder, active_units
from hfgen.objectives.vae_bounds import IWAE
from hfgen.objectives.vae_penalties import TotalCorrelation
from hfgen.rng import Rng

START = Clock(step=0, images_seen=0, total_images=1000)


def batch(rows: int = 6, size: int = 8, channels: int = 1):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(rows, channels, size, size, generator=generator) * 2 - 1
    return {"images": images, "labels": torch.arange(rows) % 3}


def mlp(**options) -> MLPVAE:
    torch.manual_seed(0)
    return MLPVAE(sample_size=8, hidden_size=16, latent_dim=3, **options)


def run(objective, vae, data=None, clock=START):
    return objective.loss("vae", {"vae": vae}, data or batch(), Rng(0), clock)


def test_is_the_classic_loss():
    vae, data = mlp(), batch()
    loss, terms = run(ELBO(), vae, data)
    posterior = vae.encode(data["images"]).latent_dist
    z = posterior.mean + posterior.std * Rng(0).randn("eps", (6, 3))
    probability = torch.sigmoid(vae.decode(z).sample)
    bce = F.binary_cross_entropy(probability, (data["images"] + 1) / 2, reduction="sum")
    kld = -0.5 * torch.sum(1 + posterior.logvar - posterior.mean.pow(2) - posterior.logvar.exp())
    torch.testing.assert_close(loss, (bce + kld) / 6)
    torch.testing.assert_close(terms["elbo"], -(terms["reconstruction"] + terms["kl"]))
    torch.testing.assert_close(terms["kl"], posterior.kl().mean().detach())


def test_beta_and_warmup():
    _, terms = run(ELBO(), mlp())
    half = Clock(step=1, images_seen=50, total_images=1000)
    loss, _ = run(ELBO(beta=4.0, kl_warmup_images=100), mlp(), clock=half)
    torch.testing.assert_close(loss.detach(), terms["reconstruction"] + 2.0 * terms["kl"])


def test_free_bits_stop_the_kl_gradient():
    vae = mlp()
    loss, terms = run(ELBO(free_bits=50.0), vae)
    torch.testing.assert_close(loss.detach(), terms["reconstruction"] + 3 * 50.0)


def test_conditional_and_missing_labels():
    vae, data = mlp(num_class_embeds=3), batch()
    first, _ = run(ELBO(), vae, data)
    second, _ = run(ELBO(), vae, data | {"labels": data["labels"].flip(0)})
    assert first != second
    with pytest.raises(HfgenError, match="the data has no labels"):
        run(ELBO(), vae, {"images": data["images"]})


def test_stock_autoencoder_kl():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=2,
        sample_size=8,
    )
    data = batch(channels=3)
    loss, terms = run(ELBO(likelihood=Gaussian(std=0.1)), vae, data)
    torch.testing.assert_close(
        terms["kl"], vae.encode(data["images"]).latent_dist.kl().mean().detach()
    )
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_micro_batches_give_the_same_gradient():
    vae, data = mlp(), batch(32)
    whole = torch.autograd.grad(run(ELBO(), vae, data)[0], list(vae.parameters()))
    for start in (0, 8, 16, 24):
        part = {k: v[start : start + 8] for k, v in data.items()}
        loss, _ = ELBO().loss("vae", {"vae": vae}, part, Rng(0, start=start), START)
        (loss / 4).backward()
    torch.testing.assert_close(
        [p.grad for p in vae.parameters()], list(whole), atol=1e-6, rtol=1e-5
    )


def test_active_units():
    mean = torch.stack([torch.tensor([0.0, 1.0]), torch.tensor([0.0, -1.0])])
    assert active_units(mean) == 1


@pytest.mark.parametrize("name", ["beta", "kl_warmup_images", "free_bits"])
def test_negative_arguments_are_named(name):
    with pytest.raises(HfgenError, match=rf"objective.{name} must be at least 0, got -1"):
        ELBO(**{name: -1})


def test_images_out_of_range_are_named():
    data = batch()
    data["images"] = data["images"] * 3
    with pytest.raises(
        HfgenError, match=r"Bernoulli needs images in \[-1, 1\], got values in \[-2.9"
    ):
        run(ELBO(likelihood=Bernoulli()), mlp(), data)


def test_wrong_decoder_channels_are_named():
    with pytest.raises(HfgenError, match="set model.vae.out_channels to 1"):
        run(ELBO(), mlp(out_channels=2))


POSTERIORS = [{"type": kind} for kind in ("planar", "radial", "iaf", "vmf")]


@pytest.mark.parametrize("posterior", POSTERIORS, ids=str)
def test_every_posterior_trains(posterior):
    vae = mlp(posterior=posterior)
    loss, terms = run(ELBO(), vae)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    assert terms["kl"].isfinite()


def test_flow_kl_is_the_closed_one_where_the_flow_does_nothing():
    vae = mlp(posterior={"type": "iaf", "steps": 2})  # starts as the identity
    many = {"images": batch()["images"].repeat(2000, 1, 1, 1)}
    _, terms = run(ELBO(), vae, many)
    base = vae.encode(batch()["images"]).latent_dist.base
    assert abs(float((terms["kl"] - base.kl().mean()).detach())) < 0.05


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_learned_prior_learns_with_the_vae(prior):
    vae = mlp()
    torch.manual_seed(1)
    component = GaussianMixturePrior((3,), 4) if prior == "mixture" else VampPrior(3, 4, 8)
    objective = ELBO(learn_prior=True)
    assert objective.phases[0].trains == ("vae", "prior")
    models = {"vae": vae, "prior": component}
    loss, terms = objective.loss("vae", models, batch(), Rng(0), START)
    loss.backward()
    assert all(p.grad is not None for p in component.parameters())
    posterior = vae.encode(batch()["images"]).latent_dist
    z, log_q = posterior.rsample(Rng(0).randn("eps", (6, 3)))
    expected = (log_q - component.log_prob(z)).mean()
    torch.testing.assert_close(terms["kl"], expected.detach())


def test_sphere_prior_keeps_the_closed_kl():
    vae = mlp(posterior={"type": "vmf"})
    models = {"vae": vae, "prior": SphereUniformPrior(3)}
    _, terms = ELBO().loss("vae", models, batch(), Rng(0), START)
    torch.testing.assert_close(terms["kl"], run(ELBO(), vae)[1]["kl"])


def test_penalties_of_gaussians_name_another_posterior():
    with pytest.raises(HfgenError, match="needs a Gaussian posterior, got FlowPosterior"):
        run(ELBO(penalty=TotalCorrelation()), mlp(posterior={"type": "planar"}))


@pytest.mark.parametrize(
    "objective,vae,prior,message",
    [
        (ELBO(), VQVAE(8, block_out_channels=(4,)), None, "a deterministic encoder has no density"),
        (ELBO(), MLPVAE(8, latent_dim=3), VampPrior(5, 4, 8), "latent_dim is 5, but the VAE's"),
        (Autoencoder(), MLPVAE(8, posterior={"type": "vmf"}), None, "got VonMisesFisher"),
    ],
)
def test_parts_that_do_not_fit_are_named(objective, vae, prior, message):
    models = {"vae": vae} | ({"prior": prior} if prior is not None else {})
    with pytest.raises(HfgenError, match=message):
        objective.loss("vae", models, batch(), Rng(0), START)


@pytest.mark.parametrize(
    ("prior", "vae"),
    [
        (GaussianMixturePrior(latent_shape=(7,), num_components=2), {}),
        (SphereUniformPrior(latent_dim=7), {"posterior": {"type": "vmf"}}),
        (PoincarePrior(latent_dim=7), {"posterior": {"type": "poincare"}}),
    ],
)
def test_a_prior_of_another_size_is_named(prior, vae):
    models = {"vae": mlp(**vae), "prior": prior}
    for objective in (ELBO(), IWAE(num_samples=2)):
        with pytest.raises(HfgenError, match=r"model.prior.latent_.* is .*7.*latents are \[3\]"):
            objective.loss("vae", models, batch(), Rng(0), START)
