"""Likelihood of denoising models on Gaussians, whose density is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusion_analytic import Config, Mixture, Optimal
from torch import nn

from hfgen.chain import Chain, discretised_log_prob
from hfgen.errors import HfgenError
from hfgen.evaluation.likelihood import BIN, log_likelihood
from hfgen.evaluation.likelihood_diffusion import (
    ProbabilityFlowODE,
    VariationalBound,
    flow_log_prob,
)
from hfgen.models.transformer_pixel import PixelTransformer
from hfgen.objectives.base import Clock
from hfgen.objectives.diffusion import Diffusion
from hfgen.pipelines.diffusion_pipeline import DenoisingPipeline
from hfgen.probability_flow import ProbabilityFlow, rk45
from hfgen.rng import Rng

STD = 0.3
SCHEDULERS = {
    "flow": FlowMatchEulerDiscreteScheduler(),
    "edm": EDMEulerScheduler(),
    "ddpm": DDPMScheduler(clip_sample=False),
    "v": DDPMScheduler(prediction_type="v_prediction", clip_sample=False),
}


def images(rows: int = 32, levels: bool = False) -> torch.Tensor:
    x = STD * torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1 if levels else x


def gaussian(name: str) -> DenoisingPipeline:
    return DenoisingPipeline(Optimal(SCHEDULERS[name], STD), SCHEDULERS[name])


def bits(nats: torch.Tensor) -> torch.Tensor:
    """Bits per dimension of 8-bit pixels, from a density."""
    return -nats / (64 * math.log(2)) - math.log2(BIN)


def exact(x: torch.Tensor, std: float = STD) -> torch.Tensor:
    """ln N(x; 0, std^2 I)."""
    nats = -0.5 * (x / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
    return nats.double().flatten(1).sum(1)


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_the_ode_gives_the_density_of_a_gaussian(name):
    """Each image's bits per dimension within 5e-4 of the closed form."""
    x = images()
    nats = ProbabilityFlowODE(steps=128).log_prob(gaussian(name), x, 1, Rng(0))
    torch.testing.assert_close(bits(nats), bits(exact(x)), atol=5e-4, rtol=0)


@pytest.mark.parametrize(("name", "steps"), [("flow", 64), ("edm", 64)])
def test_seven_point_three_one_one_nine_bits(name, steps):
    """8-bit pixels x = (k + u) / 128 - 1, so 7 bits more than the density's, of a Gaussian with an
    entropy of 7.3119 bits/dim, which has a standard deviation of 2^0.3119 / sqrt(2 pi e) = 0.3004;
    images with exactly its mean square.
    """

    def bits_of_levels(nats):
        return (7 - nats / (64 * math.log(2))).mean().item()

    std = 2 ** (7.3119 - 7) / math.sqrt(2 * math.pi * math.e)
    x = images().double()
    x *= std / x.square().mean().sqrt()
    assert bits_of_levels(exact(x, std)) == pytest.approx(7.3119, abs=1e-9)
    pipeline = DenoisingPipeline(Optimal(SCHEDULERS[name], std), SCHEDULERS[name])
    nats = ProbabilityFlowODE(steps=steps).log_prob(pipeline, x, 1, Rng(0))
    assert bits_of_levels(nats) == pytest.approx(7.3119, abs=5e-4)


@pytest.mark.parametrize("name", ["ddpm", "v"])
def test_on_a_chain_it_is_the_density_at_its_first_step(name):
    """sigma / alpha = 0.01 there, so the variance is STD^2 + 0.01^2."""
    x = images()
    nats = ProbabilityFlowODE(steps=128).log_prob(gaussian(name), x, 1, Rng(0))
    noisy = math.hypot(STD, 0.01)
    torch.testing.assert_close(bits(nats), bits(exact(x, noisy)), atol=2e-3, rtol=0)


def test_a_mixture_too():
    """ln (N(x; -1, s^2) + N(x; 1, s^2)) / 2, pixel by pixel; independent pixels need no probe."""
    std, scheduler = 0.4, SCHEDULERS["flow"]
    pipeline = DenoisingPipeline(Mixture(scheduler, std), scheduler)
    x = images() * 4
    nats = ProbabilityFlowODE(steps=256).log_prob(pipeline, x, 1, Rng(0))
    each = [-0.5 * ((x - m) / std) ** 2 - math.log(std * math.sqrt(8 * math.pi)) for m in (-1, 1)]
    expected = torch.logsumexp(torch.stack(each).double(), 0).flatten(1).sum(1)
    torch.testing.assert_close(bits(nats), bits(expected), atol=2e-3, rtol=0)


def test_rk45_agrees_with_heun():
    pipeline, x = gaussian("flow"), images(4)
    network = pipeline.unet
    flow = ProbabilityFlow(network.param, lambda sample, time: network(sample, time).sample)
    clean, dirty = flow.ends
    nats = flow_log_prob(
        flow, x, torch.ones_like(x), lambda field, z: rk45(field, z, clean, dirty, 1e-6, 1e-6)[0]
    )
    torch.testing.assert_close(bits(nats), bits(exact(x)), atol=5e-4, rtol=0)


class Coupled(nn.Module):
    """The optimal EDM output for data of covariance Q diag(s) Q^T: its Jacobian is not diagonal."""

    config, dtype, device = Config(sample_size=8, in_channels=1), torch.float64, "cpu"

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        matrix = torch.randn(64, 64, generator=generator, dtype=torch.float64)
        self.basis = torch.linalg.qr(matrix)[0]
        self.std = torch.linspace(0.1, 0.5, 64, dtype=torch.float64)

    def denoise(self, x_t, sigma):
        gain = self.std**2 / (self.std**2 + sigma.reshape(-1, 1) ** 2)
        return ((x_t.flatten(1) @ self.basis) * gain @ self.basis.T).reshape(x_t.shape)


def test_probes_are_unbiased_where_pixels_are_coupled():
    """Mean over many probes is the density; one probe has the error that Hutchinson's has."""
    network = Coupled()
    param = Optimal(SCHEDULERS["edm"], 1.0).param

    def output(sample, time):
        sigma = param.path.from_model_time(time)
        unit, _ = param.path.model_input(torch.ones_like(sample), sigma)
        x_t = sample / unit
        s = sigma.reshape(-1, 1, 1, 1)
        return (network.denoise(x_t, sigma) - 0.25 / (s**2 + 0.25) * x_t) * (
            (s**2 + 0.25).sqrt() / (0.5 * s)
        )

    flow = ProbabilityFlow(param, output)
    x = torch.zeros(256, 1, 8, 8, dtype=torch.float64)
    probes = 2.0 * Rng(0).randint("probe", 2, x.shape) - 1
    ends = flow.ends
    nats = flow_log_prob(
        flow, x, probes, lambda field, z: rk45(field, z, *ends, rtol=1e-4, atol=1e-4)[0]
    )
    expected = -(network.std.log() + 0.5 * math.log(2 * math.pi)).sum().item()
    error = nats.std().item() / 16
    assert nats.std().item() > 0.1
    assert nats.mean().item() == pytest.approx(expected, abs=4 * error + 0.05)


def test_rk45_and_heun_stand_behind_one_interface():
    """Both within 5e-4 of the closed form; RK45 reports what it has used."""
    x = images(8, levels=True)
    noisy = x + (Rng(0, "log_likelihood").rand("dequantise", x.shape) - 0.5) * BIN
    expected = bits(exact(noisy)).mean().item()
    for bound, evaluations in (("pf_ode", {128}), ("pf_ode_rk45", range(20, 200))):
        result = log_likelihood(gaussian("flow"), x, bound=bound)
        assert result.bits_per_dim == pytest.approx(expected, abs=5e-4)
        assert result.nfe in evaluations


def test_log_likelihood_reports_bound_and_cost():
    x = images(levels=True)
    result = log_likelihood(gaussian("flow"), x, bound="pf_ode")
    assert result.bound == "pf_ode" and result.nfe == 128
    noisy = x + (Rng(0, "log_likelihood").rand("dequantise", x.shape) - 0.5) * BIN
    assert result.bits_per_dim == pytest.approx(bits(exact(noisy)).mean().item(), abs=1e-3)


# --- the bound of a chain ---


@pytest.mark.parametrize("solver", [DPMSolverMultistepScheduler, DDIMScheduler])
def test_a_solver_that_names_no_variance_has_the_chain_of_the_small_one(solver):
    small = Chain.of(DDPMScheduler(variance_type="fixed_small"))
    assert torch.equal(Chain.of(solver()).model, small.model)


def closed_form_terms(scheduler, x: torch.Tensor) -> torch.Tensor:
    """E KL of L_1 ... L_{T-1} per image, for the optimal denoiser and the posterior's variance.

    |true - mean|^2 = weight^2 |x - E[x | x_t]|^2 per pixel, averaged over x_t given x.
    """
    chain = Chain.of(scheduler)
    alpha_bar = chain.alphas_cumprod[1:, None]
    gain = alpha_bar.sqrt() * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
    square = x.double().square().flatten(1).sum(1)[None]
    bias = (1 - gain * alpha_bar.sqrt()) ** 2 * square
    spread = gain**2 * (1 - alpha_bar) * x[0].numel()
    return (chain.image[1:, None] ** 2 / (2 * chain.variance[1:, None]) * (bias + spread)).T


def test_the_bounds_terms_are_their_closed_form():
    scheduler = DDPMScheduler(num_train_timesteps=50, beta_end=0.3, clip_sample=False)
    x = images(64, levels=True)
    pipeline = DenoisingPipeline(Optimal(scheduler, STD), scheduler)
    nats = VariationalBound().log_prob(pipeline, x, 1, Rng(0))
    from hfgen.evaluation.likelihood_diffusion import denoiser, vlb_terms

    terms = vlb_terms(*denoiser(pipeline, None), Chain.of(scheduler), x, Rng(0, 0), False)
    torch.testing.assert_close(-terms.sum(1), nats)
    expected = closed_form_terms(scheduler, x).mean(0)
    torch.testing.assert_close(terms[:, 1:-1].mean(0), expected, rtol=0.08, atol=0.02)
    assert terms[:, 1:-1].sum(1).mean().item() == pytest.approx(expected.sum().item(), rel=0.01)


def test_the_bound_is_above_the_entropy_and_near_it():
    """T = 1000 with variance beta, nearly the true one of pixels without structure."""
    scheduler = DDPMScheduler(clip_sample=False, variance_type="fixed_large")
    pipeline = DenoisingPipeline(Optimal(scheduler, STD), scheduler)
    x = images(16, levels=True)
    result = log_likelihood(pipeline, x, bound="vlb")
    true = bits(exact(x)).mean().item()
    assert result.nfe == len(scheduler.alphas_cumprod)
    assert true - 0.01 < result.bits_per_dim < true + 0.1


def test_levels_have_probability_one_together():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean = torch.tensor(0.9, dtype=torch.float64)
    log_prob = discretised_log_prob(levels.reshape(-1, 1), mean, torch.tensor(0.2).double())
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_the_chain_is_ddpms_own_posterior():
    scheduler = DDPMScheduler(
        clip_sample=False, prediction_type="sample", variance_type="fixed_small"
    )
    scheduler.set_timesteps(1000)
    chain = Chain.of(scheduler)
    for t in (1, 500, 999):
        expected = scheduler._get_variance(t)
        assert chain.variance[t].item() == pytest.approx(float(expected), rel=1e-3)
    x, image = torch.randn(2, 1, 1, 4, 4).unbind()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    stepped = scheduler.step(image, 500, x, generator=generator).prev_sample
    mean = chain.image[500] * image + chain.noisy[500] * x + chain.variance[500].sqrt() * noise
    torch.testing.assert_close(mean.float(), stepped, rtol=1e-3, atol=1e-4)


# --- what has no likelihood ---


def small_unet(**options) -> UNet2DModel:
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        **options,
    )


@pytest.mark.parametrize(
    ("pipeline", "bound", "message"),
    [
        (gaussian("flow"), "vlb", "no discrete chain; use pf_ode"),
        (
            DenoisingPipeline(small_unet(num_class_embeds=3), DDPMScheduler()),
            "pf_ode",
            "without a null label",
        ),
        (
            DenoisingPipeline(
                small_unet(),
                DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="sample"),
            ),
            "pf_ode",
            "grows without bound at the image",
        ),
        (
            DenoisingPipeline(
                small_unet(),
                DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
            ),
            "vlb",
            "not finite",
        ),
    ],
)
def test_no_likelihood_is_one_line(pipeline, bound, message):
    with pytest.raises(HfgenError, match=message) as error:
        log_likelihood(pipeline, images(2), bound=bound)
    assert "\n" not in str(error.value)


def test_a_real_network_under_its_null_label():
    """A fresh pixel transformer under EDM is N(0, 0.5^2), whatever its label."""
    torch.manual_seed(0)
    network = PixelTransformer(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        hidden_dim=16,
        num_layers=1,
        num_class_embeds=3,
    )
    pipeline = DenoisingPipeline(network.eval(), EDMEulerScheduler(), label_dropout=0.1)
    nats = ProbabilityFlowODE(steps=32).log_prob(pipeline, images(4), 1, Rng(0))
    torch.testing.assert_close(bits(nats), bits(exact(images(4), 0.5)), atol=0.02, rtol=0)


# --- learned variance ---


class Learned(nn.Module):
    """The optimal noise prediction of N(0, STD^2), and a learned share of variance per step."""

    config, dtype, device = Config(sample_size=8, in_channels=1), torch.float64, "cpu"

    def __init__(self, scheduler):
        super().__init__()
        self.mean = Optimal(scheduler, STD)
        self.raw = nn.Parameter(torch.zeros(len(scheduler.alphas_cumprod), dtype=torch.float64))

    def forward(self, sample, time):
        prediction = self.mean(sample, time).sample.detach()
        raw = self.raw[time].reshape(-1, 1, 1, 1).expand_as(prediction)
        return SimpleNamespace(sample=torch.cat([prediction, raw], 1))


def test_the_hybrid_loss_learns_the_true_variance():
    """Reverse step of N(0, STD^2): posterior variance + image^2 Var[x | x_t]."""
    scheduler = DDPMScheduler(
        num_train_timesteps=10, beta_end=0.3, variance_type="learned_range", clip_sample=False
    )
    network, chain = Learned(scheduler), Chain.of(scheduler)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        x = STD * torch.randn(64, 1, 8, 8, generator=generator)
        models = {"unet": network, "scheduler": scheduler}
        rng, clock = Rng(0, step), Clock(step=0, images_seen=0, total_images=1)
        loss, terms = Diffusion(bound_weight=1.0).loss("denoise", models, {"images": x}, rng, clock)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {"loss", "mse", "bound"} == set(terms)
    alpha_bar = chain.alphas_cumprod
    posterior = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    expected = chain.variance + chain.image**2 * posterior
    steps = torch.arange(1, 10)
    learned = chain.step_variance(
        network.raw.detach().reshape(-1, 1), torch.arange(10), expected[:, None]
    )
    torch.testing.assert_close(learned[steps, 0], expected[steps], rtol=0.08, atol=0)


def test_the_learned_variance_is_the_schedulers():
    """DDPMScheduler with learned_range draws with the same variance."""
    scheduler = DDPMScheduler(
        variance_type="learned_range", prediction_type="sample", clip_sample=False
    )
    scheduler.set_timesteps(1000)
    x_t, image, raw = torch.randn(3, 1, 1, 4, 4).unbind()
    raw = raw.clamp(-1, 1)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    output = torch.cat([image, raw], 1)
    stepped = scheduler.step(output, 300, x_t, generator=generators[0]).prev_sample
    fresh = torch.randn(x_t.shape, generator=generators[1])
    chain, t = Chain.of(scheduler), torch.tensor([300])
    mean = chain.image[300] * image + chain.noisy[300] * x_t
    expected = mean + chain.step_variance(raw, t, x_t).sqrt() * fresh
    torch.testing.assert_close(stepped.double(), expected, rtol=1e-3, atol=1e-3)


def test_a_variance_without_its_scheduler_is_one_line():
    models = {"unet": Learned(DDPMScheduler()), "scheduler": DDPMScheduler()}
    with pytest.raises(HfgenError, match="variance_type 'fixed_small'"):
        clock = Clock(step=0, images_seen=0, total_images=1)
        Diffusion().loss("denoise", models, {"images": images(2)}, Rng(0), clock)
