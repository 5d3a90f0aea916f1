"""Class-conditional models are told the classes of the images: p(x | class) where it is known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import Tensor, nn

from hfgen.data import TensorSource
from hfgen.errors import HfgenError
from hfgen.evaluation import evaluate
from hfgen.evaluation.backbones import CallableBackbone
from hfgen.evaluation.conditions import Condition
from hfgen.evaluation.likelihood import BIN, has_likelihood, log_likelihood
from hfgen.evaluation.metrics import psnr
from hfgen.evaluation.model_metrics import MODEL_METRICS
from hfgen.models.layers.posterior import DiagonalGaussian
from hfgen.models.vae_mlp import MLPVAE
from hfgen.pipelines.diffusion_pipeline import DenoisingPipeline
from hfgen.pipelines.vae_pipeline import VAEPipeline
from hfgen.rng import Rng

SIDE, CLASSES, STD, LATENT = 4, 3, 0.4, 2
D = SIDE * SIDE
CENTRES = torch.tensor([-0.5, 0.1, 0.6])
"""Mean of every pixel of a class."""


def labelled(n: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=draw)
    noise = torch.randn(n, 1, SIDE, SIDE, generator=draw)
    return CENTRES[labels, None, None, None] + STD * noise, labels


def dequantised(x: Tensor) -> Tensor:
    return x + (Rng(0, "log_likelihood").rand("dequantise", x.shape) - 0.5) * BIN


def normal(x: Tensor, mean: Tensor | float, std: float) -> Tensor:
    """ln N(x; mean, std^2 I), [B] float64."""
    nats = -0.5 * ((x - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
    return nats.double().flatten(1).sum(1)


class Known(MLPVAE):
    """x = W z + b_class + noise with its exact posterior, so every bound is ln p(x | class)."""

    def setup(self) -> Known:
        basis = torch.linalg.qr(torch.randn(D, LATENT, generator=torch.Generator()))[0]
        self.W = basis * torch.tensor([0.5, 0.3])
        self.covariance = torch.linalg.inv(torch.eye(LATENT) + self.W.T @ self.W / STD**2)
        return self

    def encode(self, x, class_labels=None, return_dict=True):
        mean = (x.flatten(1) - CENTRES[class_labels, None]) @ self.W @ self.covariance / STD**2
        logvar = self.covariance.diagonal().log().expand_as(mean)
        return SimpleNamespace(latent_dist=DiagonalGaussian(mean, logvar))

    def decode(self, z, class_labels=None, return_dict=True):
        rows = z @ self.W.T + CENTRES[class_labels, None]
        return SimpleNamespace(sample=rows.view(-1, 1, SIDE, SIDE))

    def exact(self, x: Tensor, labels: Tensor) -> Tensor:
        covariance = self.W @ self.W.T + STD**2 * torch.eye(D)
        marginal = torch.distributions.MultivariateNormal(torch.zeros(D), covariance)
        return marginal.log_prob(x.flatten(1) - CENTRES[labels, None])


def known_vae() -> VAEPipeline:
    vae = Known(sample_size=SIDE, hidden_size=4, latent_dim=LATENT, num_class_embeds=CLASSES)
    return VAEPipeline(vae.setup(), likelihood={"type": "gaussian", "std": STD})


@pytest.mark.parametrize(("bound", "k"), [("elbo", 1), ("elbo", 5), ("iw", 40)])
def test_bounds_of_a_conditional_vae_are_of_the_density_given_the_class(bound, k, monkeypatch):
    monkeypatch.setattr("hfgen.evaluation.likelihood.ROWS", 150)  # several draws in several groups
    pipe, (x, labels) = known_vae(), labelled()
    result = log_likelihood(pipe, x, labels=labels, bound=bound, k=k)
    expected = pipe.vae.exact(dequantised(x), labels).mean()
    assert result.nats == pytest.approx(float(expected), abs=1e-3)
    assert result.condition == Condition.CLASS
    others = log_likelihood(pipe, x, labels=(labels + 1) % CLASSES, bound=bound, k=k)
    assert others.nats < result.nats - 10


def test_a_source_brings_its_labels():
    pipe, (x, labels) = known_vae(), labelled()
    source = TensorSource(x, labels, name="classes")
    found = [log_likelihood(pipe, source), log_likelihood(pipe, x, labels=labels)]
    assert found[0] == found[1]


class Denoiser(nn.Module):
    """The velocity E[n - x | x_t] of N(centre of the class, STD^2), for labels 0 to 2; the fourth,
    null label is N(0, STD^2)."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, classes: int):
        super().__init__()
        self.config = Config(sample_size=SIDE, in_channels=1, num_class_embeds=classes)

    def forward(self, sample, time, class_labels):
        t = (time / 1000).view(-1, 1, 1, 1)
        centre = torch.cat([CENTRES, torch.zeros(1)]).double()[class_labels].view(-1, 1, 1, 1)
        gain = (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2)
        image = centre + gain * (sample - (1 - t) * centre)
        return SimpleNamespace(sample=(sample - image) / t)


class Config(dict):
    """A network's config: keys are attributes too."""

    __getattr__ = dict.__getitem__


def denoiser(dropout: float) -> DenoisingPipeline:
    unet = Denoiser(CLASSES + (dropout > 0))
    return DenoisingPipeline(unet, FlowMatchEulerDiscreteScheduler(), label_dropout=dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_flow_of_a_conditional_denoiser_is_told_the_class(dropout):
    x, labels = labelled()
    result = log_likelihood(denoiser(dropout), x, labels=labels, bound="pf_ode")
    expected = normal(dequantised(x), CENTRES[labels, None, None, None], STD).mean()
    assert result.nats == pytest.approx(float(expected), abs=5e-3 * D)
    assert result.condition == Condition.CLASS


def test_without_labels_it_is_under_the_null_label():
    x, _ = labelled()
    result = log_likelihood(denoiser(0.1), x, bound="pf_ode")
    expected = normal(dequantised(x), 0, STD).mean()
    assert result.nats == pytest.approx(float(expected), abs=5e-3 * D)
    assert result.condition == Condition.NULL_LABEL


def test_adaptive_steps_are_on_request_and_on_the_same_images():
    """As many as 2600 evaluations are enough for at 128 each; both are the closed form."""
    x, labels = labelled()
    source = TensorSource(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8), labels)
    metrics = ("likelihood", "pf_ode_rk45")
    found = evaluate(denoiser(0.1), data=source, metrics=metrics, evaluations=2600, progress=False)
    fixed, adaptive = found["pf_ode_nats"], found["pf_ode_rk45_nats"]
    assert adaptive.value == pytest.approx(fixed.value, abs=5e-3 * D)
    assert adaptive.standard_error == pytest.approx(fixed.standard_error, rel=1e-2)
    assert ", 20 images" in adaptive.settings and ", 20 images" in fixed.settings
    assert "pf_ode_rk45" not in MODEL_METRICS["likelihood"].functions


def unet(**options) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), layers_per_block=1,
        **options,
    ).eval()  # fmt: skip


def test_the_variational_bound_of_a_real_conditional_network():
    """Its label embeddings decide: with one row for all classes the label changes nothing."""
    scheduler = DDPMScheduler(num_train_timesteps=20)
    pipe = DenoisingPipeline(unet(num_class_embeds=CLASSES), scheduler)
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = [torch.full((6,), c) for c in (0, 2)]
    first, second = (log_likelihood(pipe, x, labels=c, bound="vlb").nats for c in given)
    assert first != second
    with torch.no_grad():
        pipe.unet.class_embedding.weight[:] = pipe.unet.class_embedding.weight[:1].clone()
    first, second = (log_likelihood(pipe, x, labels=c, bound="vlb").nats for c in given)
    assert first == second


def small_source(n: int = 96) -> TensorSource:
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (n,), generator=draw)
    images = torch.rand(n, 1, 16, 16, generator=draw) + labels[:, None, None, None] / 2
    return TensorSource((images * 120).to(torch.uint8), labels, name="classes")


@pytest.fixture
def options(tmp_path) -> dict:
    backbone = CallableBackbone(lambda x: x.float().flatten(1)[:, ::64] / 255, "few", revision="1")
    return {"backbone": backbone, "cache_dir": str(tmp_path), "progress": False}


def test_every_metric_of_the_model_tells_a_conditional_vae_the_class(options):
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=16, hidden_size=8, latent_dim=3, num_class_embeds=CLASSES).eval()
    pipe = VAEPipeline(vae, likelihood={"type": "gaussian", "std": 0.5})
    metrics = ("likelihood", "reconstruction", "representation", "rfd", "fd")
    source = small_source()
    found = evaluate(pipe, data=source, metrics=metrics, num_images=64, **options)
    assert {"iw_bits_per_dim", "psnr", "linear_probe", "rfd", "fd"} <= set(found.values())
    assert "given the class" in found["iw_nats"].settings
    images, labels = source.batch(range(96)).values()
    again = pipe.reconstruct((images + 1) / 2, labels, output_type="pt").images
    expected = psnr(images, again * 2 - 1).mean()
    assert found["psnr"].value == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "bound", "classes", "says"),
    [
        (known_vae, "elbo", None, "Known: class-conditional, but these images have no labels"),
        (known_vae, "iw", 5, "Known: knows 3 classes, but these images have 5"),
        (lambda: denoiser(0.1), "pf_ode", 4, "knows 3 classes, but these images have 4"),
        (lambda: denoiser(0.0), "pf_ode", None, "has p.x . class. but no p.x., and these images"),
    ],
)
def test_labels_that_do_not_fit(make, bound, classes, says):
    x, _ = labelled(6)
    labels = None if classes is None else torch.arange(6) % classes
    with pytest.raises(HfgenError, match=says) as error:
        log_likelihood(make(), x, labels=labels, bound=bound)
    assert "\n" not in str(error.value)
    assert not has_likelihood(make(), bound, classes)
    assert has_likelihood(make(), bound, CLASSES)


def test_one_label_for_each_image():
    x, labels = labelled(6)
    with pytest.raises(HfgenError, match="labels: 5 for 6 images"):
        log_likelihood(known_vae(), x, labels=labels[:5])


def test_an_unconditional_model_is_told_nothing():
    torch.manual_seed(0)
    pipe = VAEPipeline(MLPVAE(sample_size=SIDE, hidden_size=4, latent_dim=2).eval())
    x, labels = labelled(8)
    assert log_likelihood(pipe, x, labels=labels) == log_likelihood(pipe, x)
    plain = DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=10))
    assert log_likelihood(plain, torch.zeros(2, 1, 8, 8), bound="vlb").condition == ""
