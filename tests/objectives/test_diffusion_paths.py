"""Paths and predictions: inverse to one another, convertible, and equal to diffusers' own."""

import math

import diffusers
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    SCMScheduler,
    ScoreSdeVeScheduler,
)

from hfgen.denoising import (
    PATHS,
    PREDICTIONS,
    DiscretePath,
    EDMPath,
    EDMPrecondition,
    Flow,
    LinearPath,
    Parameterisation,
    ProbabilityPath,
    TrigPath,
    Velocity,
    VEPath,
    parameterisation,
)

EXAMPLES = {
    "discrete": DiscretePath(DDPMScheduler().alphas_cumprod.double()),
    "linear": LinearPath(),
    "trig": TrigPath(),
    "ve": VEPath(0.01, 50.0),
    "edm": EDMPath(0.002, 80.0),
}
SHARES = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


def noisy(path: ProbabilityPath) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(25, 3, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    t = path.at(SHARES)
    return x, noise, t, path.add_noise(x, noise, t)


def test_every_path_has_an_example():
    assert set(EXAMPLES) == set(PATHS)
    assert all(type(EXAMPLES[name]) is PATHS[name] for name in PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_at_ratio_inverts_alpha_sigma_and_noise_grows(name):
    path = EXAMPLES[name]
    t = path.at(SHARES)
    alpha, sigma = path.alpha_sigma(t)
    torch.testing.assert_close(path.at_ratio(sigma / alpha), t.double(), rtol=1e-6, atol=1e-6)
    assert ((sigma / alpha).diff() > 0).all()


def test_the_chain_is_continuous_between_its_steps():
    path = EXAMPLES["discrete"]
    steps = torch.arange(1000)
    whole, between = path.alpha_sigma(steps), path.alpha_sigma(steps.double())
    torch.testing.assert_close(whole, between)
    ratio = torch.logspace(-1.9, 2, 50, dtype=torch.float64)
    alpha, sigma = path.alpha_sigma(path.at_ratio(ratio))
    torch.testing.assert_close(sigma / alpha, ratio)


@pytest.mark.parametrize("name", ["discrete", "trig"])
def test_variance_preserving(name):
    alpha, sigma = EXAMPLES[name].alpha_sigma(EXAMPLES[name].at(SHARES))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


PAIRS = [
    (name, prediction)
    for name in PATHS
    for prediction in PREDICTIONS
    if prediction != "edm" or issubclass(PATHS[name], VEPath)  # EDM's c_skip is for alpha = 1
]


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
def test_the_target_means_the_image_and_its_noise(name, prediction):
    param = Parameterisation(EXAMPLES[name], PREDICTIONS[prediction]())
    x, noise, t, x_t = noisy(param.path)
    denoised = param.denoised(param.target(x, noise, t), x_t, t)
    torch.testing.assert_close(denoised, x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(param.noise(denoised, x_t, t), noise, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("goal", PREDICTIONS)
def test_any_output_converts_to_any_other_and_back(source, goal):
    """On the VE path, where all are defined: an arbitrary output, not only a target."""
    path = EXAMPLES["edm"]
    one, other = (Parameterisation(path, PREDICTIONS[kind]()) for kind in (source, goal))
    _, _, t, x_t = noisy(path)
    output = torch.randn(x_t.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def convert(output, start, end):
        image = start.denoised(output, x_t, t)
        return end.target(image, start.noise(image, x_t, t), t)

    back = convert(convert(output, one, other), other, one)
    torch.testing.assert_close(back, output, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_error_scale_is_the_ratio_of_squared_errors(prediction):
    param = Parameterisation(EXAMPLES["edm"], PREDICTIONS[prediction]())
    x, noise, t, x_t = noisy(param.path)
    output = param.target(x, noise, t) + 1.0
    ratio = 1.0 / (param.denoised(output, x_t, t) - x).square().mean((1, 2, 3))
    torch.testing.assert_close(param.prediction.error_scale(*param.path.alpha_sigma(t)), ratio)


SCHEDULES = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
]


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
def test_discrete_agrees_with_ddpm_add_noise_and_velocity(options):
    scheduler = DDPMScheduler(**options)
    path = parameterisation(scheduler).path
    x, noise, t, x_t = (v if v.dtype == torch.int64 else v.float() for v in noisy(path))
    torch.testing.assert_close(x_t, scheduler.add_noise(x, noise, t), rtol=1e-6, atol=1e-6)
    velocity = Parameterisation(path, Velocity()).target(x, noise, t)
    torch.testing.assert_close(velocity, scheduler.get_velocity(x, noise, t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_denoised_is_ddims_predicted_original_sample(kind):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    param = parameterisation(scheduler)
    x_t, output = torch.randn(2, 1, 3, 4, 4).unbind()
    for step in (0, 1, 500, 999):
        expected = scheduler.step(output, step, x_t).pred_original_sample
        torch.testing.assert_close(param.denoised(output, x_t, torch.tensor([step])), expected)


def test_linear_agrees_with_flow_match():
    scheduler = FlowMatchEulerDiscreteScheduler()
    param = parameterisation(scheduler)
    t = scheduler.sigmas[[0, 200, 999]]
    x, noise = torch.randn(2, 3, 1, 4, 4).unbind()
    x_t = param.path.add_noise(x, noise, t)
    _, time = param.path.model_input(x_t, t)
    torch.testing.assert_close(time, scheduler.timesteps[[0, 200, 999]])
    torch.testing.assert_close(x_t, scheduler.scale_noise(x, time, noise))
    assert isinstance(param.prediction, Flow)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parametrize("kind", ["flow_prediction", "sample"])
def test_multistep_solvers_with_flow_sigmas_take_the_linear_path(kind):
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type=kind, final_sigmas_type="zero"
    )
    param = parameterisation(scheduler)
    scheduler.set_timesteps(5)
    x, noise = torch.randn(2, 1, 1, 4, 4).unbind()
    t = scheduler.sigmas[:1]
    output = param.target(x, noise, t)
    x_t = param.path.add_noise(x, noise, t)
    denoised = scheduler.convert_model_output(output, sample=_indexed(scheduler, x_t))
    torch.testing.assert_close(denoised, x, rtol=1e-3, atol=1e-3)


def _indexed(scheduler, sample):
    scheduler._init_step_index(scheduler.timesteps[0])
    return sample


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm_agrees_with_the_scheduler(kind):
    scheduler = EDMEulerScheduler(prediction_type=kind)
    param = parameterisation(scheduler)
    sigma = torch.tensor([0.002, 0.5, 80.0])
    x_t, output = torch.randn(2, 3, 1, 4, 4).unbind()
    sample, time = param.path.model_input(x_t, sigma)
    for row in range(3):
        one = sigma[row]
        torch.testing.assert_close(sample[row], scheduler.precondition_inputs(x_t[row], one))
        torch.testing.assert_close(time[row], scheduler.precondition_noise(one))
        expected = scheduler.precondition_outputs(x_t[row], output[row], one)
        torch.testing.assert_close(param.denoised(output, x_t, sigma)[row], expected)


def test_ve_agrees_with_score_sde():
    scheduler = ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)
    path = parameterisation(scheduler).path
    x, noise = torch.randn(2, 3, 1, 4, 4).unbind()
    steps = torch.tensor([0, 1000, 1999])
    share = steps / 1999
    torch.testing.assert_close(path.at(share), scheduler.discrete_sigmas[steps])
    expected = scheduler.add_noise(x, noise, steps)
    torch.testing.assert_close(path.add_noise(x, noise, path.at(share)), expected)


def test_trig_agrees_with_scm():
    scheduler = SCMScheduler()
    scheduler.set_timesteps(1, intermediate_timesteps=None)
    param = parameterisation(scheduler)
    x_t, output = torch.randn(2, 1, 1, 4, 4).unbind()
    expected = scheduler.step(output, scheduler.timesteps[0], x_t).pred_original_sample
    denoised = param.denoised(output, x_t, scheduler.timesteps[:1])
    torch.testing.assert_close(denoised, expected)


def test_consistency_model_boundary():
    """D(x, sigma_min) = x (Song et al. 2023, section 3), and diffusers' denoised elsewhere."""
    scheduler = CMStochasticIterativeScheduler(clip_denoised=False)
    param = parameterisation(scheduler)
    x_t, output = torch.randn(2, 2, 1, 4, 4).unbind()
    lowest = torch.full((2,), 0.002)
    torch.testing.assert_close(param.denoised(output, x_t, lowest), x_t)
    scheduler.set_timesteps(1)
    sigma = scheduler.sigmas[:1]
    expected = scheduler.step(output[:1], scheduler.timesteps[0], x_t[:1]).prev_sample
    torch.testing.assert_close(param.denoised(output[:1], x_t[:1], sigma), expected)
    _, time = param.path.model_input(x_t, sigma)
    torch.testing.assert_close(time, scheduler.timesteps[:1].float(), rtol=1e-5, atol=1e-3)


def test_edm_hides_its_weight_in_the_output():
    """c_out^-2 is lambda(sigma) of Karras et al. 2022, table 1."""
    sigma, data = torch.logspace(-3, 2, 20, dtype=torch.float64), 0.5
    scale = EDMPrecondition(data).error_scale(torch.ones_like(sigma), sigma)
    torch.testing.assert_close(scale, (sigma**2 + data**2) / (sigma * data) ** 2)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(rescale_betas_zero_snr=True),
        diffusers.VQDiffusionScheduler(num_vec_classes=4),
    ],
    ids=["epsilon at zero SNR", "no path"],
)
def test_what_cannot_be_trained_for_is_refused(scheduler):
    with pytest.raises(ValueError, match=type(scheduler).__name__):
        parameterisation(scheduler)


def test_trig_ends():
    alpha, sigma = TrigPath().alpha_sigma(torch.tensor([0.0, math.pi / 2]))
    torch.testing.assert_close(alpha, torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(sigma, torch.tensor([0.0, 1.0]))
