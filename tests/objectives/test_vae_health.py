"""Symptoms in the log, and what is to be tried: spectral norms, balanced groups, MS-SSIM."""

import pytest
import torch

import hfgen
from hfgen.errors import HfgenError
from hfgen.evaluation.metrics import ssim
from hfgen.likelihoods import Gaussian
from hfgen.models.vae_ladder import LadderVAE
from hfgen.models.vae_mlp import MLPVAE
from hfgen.objectives.base import Clock
from hfgen.objectives.vae import ELBO, balance
from hfgen.objectives.vae_penalties import MSSSIM
from hfgen.objectives.vae_spectral import spectral_norms
from hfgen.objectives.vae_ssim import ms_ssim
from hfgen.objectives.vae_symptoms import symptoms
from hfgen.objectives.vae_vq import code_counts, code_usage
from hfgen.rng import Rng

LATER = Clock(100, 20_000, 100_000)


@pytest.mark.parametrize(
    ("terms", "name", "advice"),
    [
        ({"kl": 0.01, "active_units": 0.0}, "posterior collapse", "objective.free_bits"),
        ({"kl": 5e4, "reconstruction": 90.0}, "exploding KL", "max_grad_norm"),
        ({"code_usage": 0.02}, "dead codes", "restart_below"),
    ],
)
def test_each_trouble_is_named_with_what_to_try(terms, name, advice):
    found = symptoms(terms, LATER)
    assert list(found) == [name] and advice in found[name] and "\n" not in found[name]
    assert symptoms(terms, Clock(1, 100, 100_000)) == {}, "an untrained network looks ill"


def test_a_healthy_vae_is_left_alone():
    terms = {"kl": 25.0, "active_units": 12.0, "reconstruction": 80.0, "code_usage": 0.9}
    assert symptoms(terms, LATER) == {}


SMALL_RUN = {
    "training.total_images": 12_800,
    "training.sample_every": 0,
    "logging.logging_steps": 10,
    "data.max_images": 512,
}
COLLAPSING = {"objective.beta": 1000.0, "model.vae.hidden_size": 16}
EXPLODING = {
    "objective.beta": 0.0,
    "model.vae.hidden_size": 16,
    "model.vae.latent_dim": 200,
    "optimizer.learning_rate": 1.0,
}
DYING = {
    "model.vae.block_out_channels": [4, 4],
    "model.vae.quantizer.num_embeddings": 512,
    "model.vae.quantizer.kmeans_start": False,
    "model.vae.quantizer.restart_below": 0.0,
    "model.prior": {"num_embeddings": 512, "hidden_size": 4, "num_layers": 1},
    "objective.learn_prior": False,
}


@pytest.mark.parametrize(
    ("recipe", "spoiled", "trouble", "advice"),
    [
        ("mnist-vae", COLLAPSING, "posterior collapse", "objective.kl_warmup_images"),
        ("mnist-vae", EXPLODING, "exploding KL", "a lower optimizer.learning_rate"),
        ("mnist-vq-vae", DYING, "dead codes", "kmeans_start"),
    ],
    ids=["collapse", "explosion", "dead codes"],
)
def test_a_run_in_trouble_says_so_once(recipe, spoiled, trouble, advice, tmp_path, capsys):
    """A weight of 1000 on the KL makes any VAE ignore its latents; without one it runs away at a
    high learning rate; codes that start at random and are never moved die.
    """
    hfgen.train(
        recipe,
        **SMALL_RUN,
        **{**spoiled, "training.total_batch_size": 256, "output_dir": str(tmp_path / "run")},
    )
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    said = [line for line in said if f"{trouble} at step" in line]
    assert len(said) == 1 and advice in said[0]


def test_code_usage_by_hand():
    counts = code_counts(torch.tensor([0, 1, 1, 1]), 8)
    assert counts.tolist() == [1, 3, 0, 0, 0, 0, 0, 0]
    assert code_usage(counts) == 0.5  # two of the four that four positions could use
    assert code_usage(counts[:2]) == 1.0


def test_spectral_norms_are_the_largest_singular_values():
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 5, 3)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), convolution)
    exact = sum(torch.linalg.matrix_norm(m.weight.flatten(1), 2) for m in (model[0], convolution))
    total = spectral_norms(model)
    torch.testing.assert_close(total, exact, rtol=2e-2, atol=0)
    assert total <= exact + 1e-6
    (slope,) = torch.autograd.grad(total, model[0].weight)
    u, _, v = torch.linalg.svd(model[0].weight)
    outer = u[:, :1] @ v[:1]
    assert torch.nn.functional.cosine_similarity(slope.flatten(), outer.flatten(), dim=0) > 0.97


def test_balance_by_hand():
    vae = LadderVAE(sample_size=8, levels="1x1,2x1", hidden_size=8, latent_channels=2)
    assert vae.group_sizes == [2, 8]
    terms = torch.cat([torch.full((3, 2), 1.5), torch.full((3, 8), 0.5)], dim=1)
    # s E[KL]: 2 * 3 and 8 * 4, of L = 2 groups
    expected = torch.tensor([2 * 6 / 38] * 2 + [2 * 32 / 38] * 8)
    torch.testing.assert_close(balance(vae, terms), expected)
    with pytest.raises(HfgenError, match="kl_balance: MLPVAE has one group of latents"):
        balance(MLPVAE(sample_size=8), terms)


def test_balance_only_while_the_kl_warms_up():
    torch.manual_seed(0)
    vae = LadderVAE(sample_size=8, levels="1x1,2x1", hidden_size=8, latent_channels=2)
    with torch.no_grad():
        for layer in vae.layers:
            layer.relative[-1].weight.normal_(std=0.3)
    batch = {"images": torch.rand(4, 1, 8, 8) * 2 - 1}
    options = {"likelihood": Gaussian(), "kl_warmup_images": 100}
    losses = [
        [
            ELBO(kl_balance=b, **options).loss("vae", {"vae": vae}, batch, Rng(0), clock)[0]
            for b in (True, False)
        ]
        for clock in (Clock(1, 50, 1000), Clock(2, 100, 1000))
    ]
    assert losses[0][0] != losses[0][1]
    assert losses[1][0] == losses[1][1]


def test_ms_ssim_of_one_scale_is_ssim():
    torch.manual_seed(0)
    x = torch.rand(3, 2, 16, 16) * 2 - 1
    y = (x + 0.2 * torch.randn_like(x)).clamp(-1, 1)
    torch.testing.assert_close(ms_ssim(x, y).double(), ssim(x, y).double(), rtol=1e-3, atol=1e-3)


def test_ms_ssim_is_one_for_equals_and_falls_with_noise():
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(2, 1, 8, 8), size=64, mode="bicubic") * 2 - 1
    values = [ms_ssim(x, x + level * torch.randn_like(x)).mean() for level in (0, 0.1, 0.3, 0.9)]
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values == sorted(values, reverse=True)
    with pytest.raises(ValueError, match="at least 11 pixels, got 8"):
        ms_ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_spectral_and_ms_ssim_enter_the_loss():
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=12, hidden_size=8, latent_dim=3)
    batch = {"images": torch.rand(4, 1, 12, 12) * 2 - 1}

    def loss(**options):
        return ELBO(**options).loss("vae", {"vae": vae}, batch, Rng(0), Clock(0, 0, 1))

    plain, _ = loss()
    torch.testing.assert_close(loss(spectral=0.1)[0], plain + 0.1 * spectral_norms(vae))
    with_it, logs = loss(penalty=MSSSIM(weight=10.0))
    torch.testing.assert_close(with_it, plain + logs["penalty"])
    assert 0 < logs["penalty"] < 20
