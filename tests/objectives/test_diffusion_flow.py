"""The probability-flow ODE on Gaussians and mixtures, where its solution is closed-form."""

import math

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    SCMScheduler,
    ScoreSdeVeScheduler,
)
from diffusion_analytic import Mixture, Optimal
from scipy import stats

from hfgen.denoising import parameterisation
from hfgen.probability_flow import ProbabilityFlow, ancestral, diffuse, heun, rk45, rotate

SCHEDULERS = {
    "ddpm": DDPMScheduler(),
    "cosine, v": DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    ),
    "zero SNR": DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    "flow": FlowMatchEulerDiscreteScheduler(),
    "flow, x": DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="sample"),
    "edm": EDMEulerScheduler(),
    "trig": SCMScheduler(),
    "ve": ScoreSdeVeScheduler(sigma_max=50.0),
}
STD, MEAN = 0.4, 0.3


def flow_of(network) -> ProbabilityFlow:
    network = network.double()
    return ProbabilityFlow(network.param, lambda x, t: network(x, t).sample)


def noise(rows: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 1, 4, 4, dtype=torch.float64, generator=generator)


def exact(z: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """On N(MEAN, STD^2): (z - cos MEAN) / std(z) stays what it is."""

    def std(phi):
        return math.hypot(math.cos(phi) * STD, math.sin(phi))

    return math.cos(end) * MEAN + std(end) / std(start) * (z - math.cos(start) * MEAN)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_rk45_solves_the_gaussian_on_every_path(name):
    flow = flow_of(Optimal(SCHEDULERS[name], STD, MEAN))
    clean, dirty = flow.ends
    image, evaluations = rk45(flow.velocity, noise(), dirty, clean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(image, exact(noise(), dirty, clean), rtol=1e-4, atol=1e-4)
    assert 13 <= evaluations < 400
    back, _ = rk45(flow.velocity, image, clean, dirty, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back, noise(), rtol=1e-3, atol=1e-3)


def ddim(flow: ProbabilityFlow, z: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    for start, end in zip(grid[:-1], grid[1:], strict=True):
        z = rotate(*flow.split(z, start), end)
    return z


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
@pytest.mark.parametrize("name", ["flow", "edm"])
def test_order_of_convergence(name, solver, order):
    flow = flow_of(Optimal(SCHEDULERS[name], STD, MEAN))
    clean, dirty = flow.ends
    errors = []
    for steps in (40, 80):
        grid = flow.grid(steps).flip(0)
        solve = (
            heun(flow.velocity, noise(), grid) if solver == "heun" else ddim(flow, noise(), grid)
        )
        errors.append((solve - exact(noise(), dirty, clean)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_a_mixture_is_sampled_as_it_is():
    """Half of the pixels near -1, half near 1, each normal with the right spread."""
    flow = flow_of(Mixture(SCHEDULERS["flow"], 0.1))
    clean, dirty = flow.ends
    pixels, _ = rk45(flow.velocity, noise(250), dirty, clean)
    pixels = pixels.flatten().numpy()
    assert (pixels > 0).mean() == pytest.approx(0.5, abs=0.03)
    spread = abs(pixels) - 1
    assert stats.kstest(spread, stats.norm(0, 0.1).cdf).pvalue > 1e-3


def test_the_grid_is_karras_schedule_in_phi():
    """Karras et al. 2022, eq. 5, from clean to noise."""
    flow = flow_of(Optimal(EDMEulerScheduler(), STD))
    low, high = math.atan(0.002), math.atan(80.0)
    i = torch.arange(11, dtype=torch.float64) / 10
    phi = (low ** (1 / 3) + i * (high ** (1 / 3) - low ** (1 / 3))) ** 3
    torch.testing.assert_close(flow.grid(10), phi)


def test_diffuse_then_ancestral_keeps_the_marginal():
    """Both are draws of the joint law: the variance of z at phi stays cos^2 std^2 + sin^2."""
    generator = torch.Generator().manual_seed(0)

    def draw():
        return torch.randn(200_000, generator=generator, dtype=torch.float64)

    image = STD * draw()
    early, late = torch.tensor([0.5, 1.2], dtype=torch.float64)
    z = rotate(image, draw(), early)
    later = diffuse(z, early, late, draw())
    back = ancestral(image, later, late, early, draw())
    for value, phi in ((later, late), (back, early)):
        expected = (phi.cos() * STD) ** 2 + phi.sin() ** 2
        assert value.var().item() == pytest.approx(expected.item(), rel=0.01)
        covariance = (value * image).mean() / STD**2
        assert covariance.item() == pytest.approx(phi.cos().item(), abs=0.01)


def test_ancestral_is_the_posterior_of_ddpm():
    """One step of DDPMScheduler with its own noise, in the chain's coordinates."""
    scheduler = DDPMScheduler(clip_sample=False, prediction_type="sample")
    scheduler.set_timesteps(1000)
    x_t, image = noise(2)[:1], noise(2)[1:]
    path = parameterisation(scheduler).path
    ratio = [torch.div(*path.alpha_sigma(torch.tensor([t]))[::-1]).double() for t in (500, 499)]
    start, end = (r.atan() for r in ratio)
    generator = torch.Generator().manual_seed(1)
    expected = scheduler.step(image, 500, x_t, generator=generator).prev_sample
    fresh = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(
        ancestral(image, x_t, start, end, fresh), expected, rtol=1e-3, atol=1e-3
    )


def test_a_network_that_breaks_is_named():
    flow = ProbabilityFlow(parameterisation(SCHEDULERS["flow"]), lambda x, t: x * math.nan)
    with pytest.raises(ValueError, match="not finite at phi"):
        rk45(flow.velocity, noise(), *flow.ends)


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": -1.0}])
def test_tolerances_are_positive(options):
    with pytest.raises(ValueError, match="must be positive"):
        rk45(lambda z, t: z, noise(), 0.0, 1.0, **options)
