"""The denoising objective against closed forms: times, weights, labels, the loss of a Gaussian."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusion_analytic import Config, Optimal
from scipy import stats
from torch import nn

from hfgen.denoising import PREDICTIONS, EDMPath, LinearPath, parameterisation
from hfgen.errors import HfgenError
from hfgen.objectives.base import Clock
from hfgen.objectives.diffusion import Diffusion, class_labels
from hfgen.objectives.diffusion_importance import LossHistory
from hfgen.objectives.diffusion_times import (
    TIME_SAMPLERS,
    LogitNormalTime,
    LogNormalTime,
    ModeTime,
    UniformTime,
)
from hfgen.objectives.diffusion_weightings import (
    WEIGHTINGS,
    EDMWeight,
    LearnedWeight,
    LogVariance,
    MinSNRWeight,
    P2Weight,
    SNRWeight,
    SoftMinSNRWeight,
    UniformWeight,
    VelocityWeight,
)
from hfgen.rng import Rng
from tests.tiny_unet import tiny_unet as unet

CLOCK = Clock(step=0, images_seen=0, total_images=1)
SCHEDULERS = {
    "ddpm": DDPMScheduler(),
    "v": DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "sample": DDPMScheduler(prediction_type="sample"),
    "flow": FlowMatchEulerDiscreteScheduler(),
    "edm": EDMEulerScheduler(),
}


def loss_floor(scheduler, std: float, t: torch.Tensor) -> torch.Tensor:
    """error_scale * Var[x | x_t] = error_scale * sigma^2 std^2 / (alpha^2 std^2 + sigma^2)."""
    param = parameterisation(scheduler)
    alpha, sigma = param.path.alpha_sigma(t)
    variance = (sigma * std) ** 2 / ((alpha * std) ** 2 + sigma**2)
    return param.prediction.error_scale(alpha, sigma) * variance


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_optimal_denoiser_has_the_analytic_loss(name):
    scheduler, std, rng = SCHEDULERS[name], 0.3, Rng(0, 0, "denoise")
    objective = Diffusion(time=LogNormalTime(mean=-0.5, std=1.0))
    images = std * torch.randn(512, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    models = {"unet": Optimal(scheduler, std), "scheduler": scheduler}
    loss, terms = objective.loss("denoise", models, {"images": images}, rng, CLOCK)
    t = objective.time.sample(rng, 512, parameterisation(scheduler).path)
    assert loss.item() == pytest.approx(loss_floor(scheduler, std, t).mean().item(), rel=0.01)
    assert terms["mse"].item() == pytest.approx(loss.item())


class Gains(nn.Module):
    """One gain per step: the family that holds the optimal noise predictor of Gaussian data."""

    config = Config()

    def __init__(self, steps: int):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(steps))

    def forward(self, sample, time):
        return SimpleNamespace(sample=self.gain[time].reshape(-1, 1, 1, 1) * sample)


def test_a_trained_network_reaches_the_closed_form():
    """The trained gain of noise prediction is sigma / (alpha^2 std^2 + sigma^2)."""
    scheduler, std = DDPMScheduler(num_train_timesteps=8, beta_end=0.3), 0.5
    network, objective = Gains(8), Diffusion()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(0)
    for step in range(300):
        images = std * torch.randn(64, 1, 16, 16, generator=generator)
        models = {"unet": network, "scheduler": scheduler}
        rng = Rng(0, step, "denoise")
        loss, _ = objective.loss("denoise", models, {"images": images}, rng, CLOCK)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    alpha, sigma = parameterisation(scheduler).path.alpha_sigma(torch.arange(8))
    expected = sigma / ((alpha * std) ** 2 + sigma**2)
    torch.testing.assert_close(network.gain.detach(), expected, atol=0.02, rtol=0)


# --- times ---


def shares(sampler, path=None) -> torch.Tensor:
    return sampler.sample(Rng(3), 20_000, path or LinearPath())


def test_uniform_time_visits_every_step_alike():
    path = parameterisation(DDPMScheduler(num_train_timesteps=10)).path
    steps = shares(UniformTime(), path)
    assert steps.dtype == torch.int64
    assert stats.chisquare(torch.bincount(steps, minlength=10).numpy()).pvalue > 1e-3


def test_log_normal_time_on_the_edm_path():
    log_sigma = shares(LogNormalTime(), EDMPath(0.002, 80.0)).log()
    assert stats.kstest(log_sigma.numpy(), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3


def test_logit_normal_time_is_log_normal_on_the_linear_path():
    logit = torch.logit(shares(LogitNormalTime(mean=0.4, std=0.8)))
    assert stats.kstest(logit.numpy(), stats.norm(0.4, 0.8).cdf).pvalue > 1e-3
    other = shares(LogNormalTime(mean=0.4, std=0.8))
    torch.testing.assert_close(other, torch.sigmoid(logit), rtol=1e-4, atol=1e-6)


def test_log_normal_time_on_the_chain_is_the_nearest_step():
    path = parameterisation(DDPMScheduler()).path
    steps = LogNormalTime().sample(Rng(3), 1000, path)
    normal = torch.special.ndtri(Rng(3).rand("t", (1000,)).clamp(1e-6, 1 - 1e-6))
    ratio = torch.exp(-1.2 + 1.2 * normal)
    alpha, sigma = path.alpha_sigma(torch.arange(1000))
    distance = ((sigma / alpha).log()[None] - ratio.log()[:, None]).abs()
    chosen = distance[torch.arange(1000), steps]
    torch.testing.assert_close(chosen, distance.min(1).values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29])
def test_mode_time_has_the_density_of_its_formula(scale):
    """P(T <= f(u)) = 1 - u for the falling f; checked on the quantiles of the sample."""
    times = shares(ModeTime(scale=scale))
    u = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    quantile = 1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
    measured = torch.tensor([(times <= q).double().mean() for q in quantile])
    torch.testing.assert_close(measured, 1 - u, atol=0.015, rtol=0)


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_times_do_not_depend_on_the_split(name):
    sampler, path = TIME_SAMPLERS[name](), parameterisation(DDPMScheduler()).path
    whole = sampler.sample(Rng(0, 1), 40, path)
    parts = [sampler.sample(Rng(0, 1, start=s), 8, path) for s in range(0, 40, 8)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_strata_hold_one_row_each_over_all_micro_batches(name):
    """Every 32nd of the distribution gets one row of a global batch of 32, wherever it is."""
    sampler, path = TIME_SAMPLERS[name](stratified=True), LinearPath()
    parts = [sampler.shares(Rng(0, 1, start=s), 8, 32) for s in range(0, 32, 8)]
    assert (torch.cat(parts) * 32).long().tolist() == list(range(32))
    free = TIME_SAMPLERS[name]()
    grid = torch.linspace(0.001, 0.999, 999)
    assert bool((free.at(grid, path).diff() > 0).all()), "at() is a quantile function"
    torch.testing.assert_close(sampler.at(grid, path), free.at(grid, path), rtol=0, atol=0)


def history(loss_of, steps: int = 200, rows: int = 256) -> LossHistory:
    """A history that has seen ``loss_of(u)`` at uniform shares."""
    memory = LossHistory(parts=16)
    for step in range(steps):
        u = torch.rand(rows, generator=torch.Generator().manual_seed(step))
        memory.warp(u[:1], step)  # what earlier steps added counts from now on
        memory.add(u, loss_of(u), step)
    memory.warp(u[:1], steps)
    return memory


def test_importance_draws_in_proportion_to_the_loss_and_keeps_means():
    memory = history(lambda u: 0.1 + 3 * u**2)
    u = (torch.arange(100_000) + 0.5) / 100_000
    moved, weight = memory.warp(u, 10_000)
    parts = (moved * 16).long().bincount(minlength=16) / 100_000 * 16
    torch.testing.assert_close(parts.double(), memory.density, atol=1e-3, rtol=0)
    middle = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    expected = 0.1 + 3 * middle**2
    expected = 0.99 * expected / expected.mean() + 0.01
    torch.testing.assert_close(memory.density, expected, atol=0.02, rtol=0.02)
    for function in (torch.ones_like, torch.sin, lambda v: v**3):  # weighted means are unbiased
        exact = function((torch.arange(100_000) + 0.5) / 100_000).mean()
        torch.testing.assert_close((weight * function(moved)).mean(), exact, atol=1e-3, rtol=0)


def test_importance_lowers_the_variance_of_the_loss():
    loss_of = lambda u: torch.exp(4 * u)  # noqa: E731
    memory = history(loss_of)
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    moved, weight = memory.warp(u, 10_000)
    assert (weight * loss_of(moved)).std() < 0.2 * loss_of(u).std()


def test_importance_is_even_until_every_part_has_been_seen():
    memory = LossHistory(parts=4)
    u = torch.rand(64, generator=torch.Generator().manual_seed(0))
    memory.add(u, torch.ones(64) * u, 0)
    moved, weight = memory.warp(u, 0)  # the same step sees nothing of itself
    torch.testing.assert_close(moved, u)
    assert weight.tolist() == [1.0] * 64


def test_the_learned_weight_finds_the_mean_error_of_each_level():
    """The minimum of exp(-u) e + u is u = ln E[e | sigma] (EDM2, eq. 14)."""
    torch.manual_seed(0)
    model = LogVariance()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(400):
        t = torch.rand(256) * 0.9 + 0.05
        alpha, sigma = 1 - t, t
        error = (0.2 + t**2) * torch.randn(256, 32).square().mean(1)  # mean 0.2 + t^2
        u = model(alpha, sigma)
        optimizer.zero_grad()
        (error * torch.exp(-u) + u).mean().backward()
        optimizer.step()
    t = torch.linspace(0.1, 0.9, 9)
    torch.testing.assert_close(model(1 - t, t).exp(), 0.2 + t**2, rtol=0.3, atol=0.0)


def test_state_of_the_objective_is_named_by_its_parts():
    objective = Diffusion(weighting=LearnedWeight(), importance=True)
    assert set(objective.extra_models()) == {"log_variance", "loss_history"}
    assert objective.phases[0].trains == ("unet", "log_variance")
    scheduler = SCHEDULERS["flow"]
    models = {"unet": Optimal(scheduler, 0.3), "scheduler": scheduler, **objective.extra_models()}
    images = 0.3 * torch.randn(64, 1, 4, 4)
    first, _ = objective.loss("denoise", models, {"images": images}, Rng(0, 0), CLOCK)
    plain, _ = Diffusion().loss("denoise", models, {"images": images}, Rng(0, 0), CLOCK)
    torch.testing.assert_close(first, plain)  # u = 0 and even draws at the start


@pytest.mark.parametrize("build", [LogNormalTime, LogitNormalTime])
def test_a_spread_of_nothing_is_refused(build):
    with pytest.raises(ValueError, match="positive, got 0"):
        build(std=0.0)


# --- weightings ---

RATIO = torch.logspace(-2, 2, 30, dtype=torch.float64)
ALPHA, SIGMA = (1 + RATIO**2).rsqrt(), RATIO * (1 + RATIO**2).rsqrt()
SNR = RATIO**-2


def weight(weighting, prediction: str) -> torch.Tensor:
    return weighting.weight(ALPHA, SIGMA, PREDICTIONS[prediction]())


@pytest.mark.parametrize(
    ("weighting", "prediction", "expected"),
    [
        (UniformWeight(), "epsilon", torch.ones(30)),
        (SNRWeight(), "epsilon", torch.ones(30)),
        (SNRWeight(), "sample", SNR),
        (SNRWeight(), "v_prediction", SNR / (SNR + 1)),
        (MinSNRWeight(gamma=5), "epsilon", SNR.clamp(max=5) / SNR),
        (MinSNRWeight(gamma=5), "v_prediction", SNR.clamp(max=5) / (SNR + 1)),
        (MinSNRWeight(gamma=5), "sample", SNR.clamp(max=5)),
        (SoftMinSNRWeight(gamma=4), "sample", 1 / (1 / SNR + 1 / 4)),
        (P2Weight(gamma=0.5, k=2), "epsilon", (2 + SNR) ** -0.5),
        (EDMWeight(sigma_data=0.7), "sample", (RATIO**2 + 0.49) / (RATIO * 0.7) ** 2),
        (VelocityWeight(floor=1e-3), "sample", SIGMA**-2),
        (VelocityWeight(floor=0.5), "sample", SIGMA.clamp(min=0.5) ** -2),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_weights_equal_the_papers(weighting, prediction, expected):
    torch.testing.assert_close(weight(weighting, prediction), expected.double())


def test_velocity_weight_is_flow_matchings_plain_loss():
    t = torch.linspace(0.06, 0.99, 10, dtype=torch.float64)
    ones = VelocityWeight().weight(1 - t, t, PREDICTIONS["flow_prediction"]())
    torch.testing.assert_close(ones, torch.ones_like(t))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_weighting_means_the_same_loss_under_every_prediction(name):
    """All but the plain one: the weight of the image's error, weight * error_scale, is the same."""
    weighting = WEIGHTINGS[name]()
    on_image = [
        weight(weighting, kind) * PREDICTIONS[kind]().error_scale(ALPHA, SIGMA)
        for kind in ("epsilon", "sample", "v_prediction", "flow_prediction", "score")
    ]
    same = all(torch.allclose(on_image[0], other) for other in on_image[1:])
    assert same == (name not in ("uniform", "learned"))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_finite_at_zero_snr(name):
    zero, one = torch.zeros(1), torch.ones(1)
    value = WEIGHTINGS[name]().weight(zero, one, PREDICTIONS["v_prediction"]())
    assert value.isfinite().all() and (value >= 0).all()


# --- labels, splits, export ---


def batch(rows: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(rows, 1, 8, 8, generator=generator) * 2 - 1
    return {"images": images, "labels": torch.arange(rows) % 10}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_micro_batches_sum_to_the_whole(name):
    models = {"unet": unet(num_class_embeds=11), "scheduler": SCHEDULERS[name]}
    objective, data = Diffusion(label_dropout=0.3), batch()
    whole, _ = objective.loss("denoise", models, data, Rng(0, 0), CLOCK)
    parts = [
        objective.loss(
            "denoise",
            models,
            {key: value[start : start + 8] for key, value in data.items()},
            Rng(0, 0, start=start),
            CLOCK,
        )[0]
        for start in range(0, 32, 8)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-5, atol=1e-6)


def test_label_dropout_replaces_its_share_by_the_null_label():
    data = {"labels": torch.arange(20_000) % 10}
    labels = class_labels(unet(num_class_embeds=11), data, Rng(0), 0.1)
    assert labels is not None
    dropped = labels == 10
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(labels[~dropped], data["labels"][~dropped])


@pytest.mark.parametrize(
    ("options", "dropout", "data", "message"),
    [
        ({}, 0.1, batch(), "the network is unconditional"),
        (
            {"num_class_embeds": 10},
            0.1,
            batch(),
            "label 9 in the data; the network knows 9",
        ),
        ({"num_class_embeds": 9}, 0.0, batch(), "label 9 in the data"),
        ({"num_class_embeds": 10}, 0.0, {"images": batch()["images"]}, "the data has no labels"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(options, dropout, data, message):
    models = {"unet": unet(**options), "scheduler": DDPMScheduler()}
    with pytest.raises(HfgenError, match=message) as error:
        Diffusion(label_dropout=dropout).loss("denoise", models, data, Rng(0), CLOCK)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({}, "model.scheduler: missing"),
        ({"scheduler": DDPMScheduler(rescale_betas_zero_snr=True)}, "zero terminal SNR"),
    ],
)
def test_schedulers_that_do_not_fit_are_one_line(scheduler, message):
    with pytest.raises(HfgenError, match=message):
        Diffusion().loss("denoise", {"unet": unet(), **scheduler}, batch(), Rng(0), CLOCK)


def test_a_network_of_another_shape_is_one_line():
    wrong = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=3,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    with pytest.raises(HfgenError, match=r"puts out \[3, 8, 8\] for images of \[1, 8, 8\]"):
        models = {"unet": wrong, "scheduler": DDPMScheduler()}
        Diffusion().loss("denoise", models, batch(), Rng(0), CLOCK)


@pytest.mark.parametrize(("channels", "self_conditioning"), [(3, 0.0), (1, 0.5)])
def test_a_network_of_other_channels_is_one_line(channels, self_conditioning):
    objective = Diffusion(self_conditioning=self_conditioning)
    models = {"unet": unet(in_channels=channels), "scheduler": DDPMScheduler()}
    given = 2 if self_conditioning else 1
    with pytest.raises(HfgenError, match=rf"takes {channels} channel\(s\), but is given {given}"):
        objective.loss("denoise", models, batch(), Rng(0), CLOCK)


@pytest.mark.parametrize("name", ["ddpm", "flow"])
def test_the_stock_pipeline_samples_what_was_trained(name, tmp_path):
    """One training step, exported, loaded by stock diffusers: the same images, bit for bit."""
    models = {"unet": unet(), "scheduler": SCHEDULERS[name]}
    optimizer = torch.optim.SGD(models["unet"].parameters(), lr=0.01)
    Diffusion().loss("denoise", models, batch(), Rng(0), CLOCK)[0].backward()
    optimizer.step()
    pipeline = DDPMPipeline(**models)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    again = DDPMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    images = [
        p(
            batch_size=2,
            num_inference_steps=4,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images
        for p in (pipeline, again)
    ]
    assert (images[0] == images[1]).all()
    assert images[0].std() > 0


class Told(nn.Module):
    """Puts out what it is told, so that the loss shows it."""

    config = Config(in_channels=2)

    def forward(self, sample, time):
        return SimpleNamespace(sample=sample[:, 1:] + 0.25)


def test_self_conditioning_tells_a_share_of_the_rows_their_first_image():
    scheduler = DDPMScheduler(prediction_type="sample")
    models = {"unet": Told(), "scheduler": scheduler}
    images = {"images": torch.ones(64, 1, 4, 4)}
    told = Rng(0, 0).rand("self_conditioning", (64,)) < 0.5
    loss, _ = Diffusion(self_conditioning=0.5).loss("denoise", models, images, Rng(0, 0), CLOCK)
    # first image 0.25; told rows put out 0.5, the others 0.25; the image is 1
    expected = torch.where(told, (1 - 0.5) ** 2, (1 - 0.25) ** 2).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(HfgenError, match="self_conditioning must be in"):
        Diffusion(self_conditioning=1.5)
