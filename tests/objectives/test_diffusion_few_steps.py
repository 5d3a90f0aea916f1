"""Flow maps and consistency training on Gaussians, where average velocities are closed-form."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusion_analytic import Analytic, Optimal
from scipy import stats

from hfgen.denoising import LinearPath, like_image, parameterisation
from hfgen.errors import HfgenError
from hfgen.models.transformer_pixel import PixelTransformer
from hfgen.objectives.base import Clock
from hfgen.objectives.diffusion import Diffusion
from hfgen.objectives.diffusion_consistency import Consistency
from hfgen.objectives.diffusion_reflow import Reflow
from hfgen.objectives.flow import FLOW_MAP_TARGETS, FlowMaps, MeanFlowTarget, ShortcutTarget
from hfgen.pipelines.diffusion_pipeline import DenoisingPipeline
from hfgen.rng import Rng

pytestmark = pytest.mark.filterwarnings(  # torch.func's own import
    "ignore:.torch.jit.script:DeprecationWarning"
)
STD = 0.4
START = Clock(step=0, images_seen=0, total_images=100)
END = Clock(step=1, images_seen=100, total_images=100)


def spread(t):
    """Standard deviation of x_t on the linear path, for data N(0, STD^2)."""
    return torch.sqrt(((1 - t) * STD) ** 2 + t**2)


def exact_map(x_t, t, r):
    """(x_t - x_r) / (t - r) along the flow x_r = x_t spread(r) / spread(t); its limit at r = t."""
    gap = like_image(t - r, x_t)
    still = gap == 0
    moved = (1 - like_image(spread(r) / spread(t), x_t)) / torch.where(still, 1.0, gap)
    return x_t * torch.where(still, like_image(rate(t), x_t), moved)


def rate(t):
    """Velocity / x_t: d ln spread / dt."""
    return (t - (1 - t) * STD**2) / spread(t) ** 2


def some(rows: int = 64):
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(rows, 1, 4, 4, dtype=torch.float64, generator=generator)
    t = 0.1 + 0.85 * torch.rand(rows, dtype=torch.float64, generator=generator)
    r = t * torch.rand(rows, dtype=torch.float64, generator=generator)
    return x_t, t, r


@pytest.mark.parametrize(
    ("target", "tolerance"),
    [
        (MeanFlowTarget(), 1e-9),
        (MeanFlowTarget(improved=True), 1e-9),
        (MeanFlowTarget(derivative="difference"), 2e-3),
        (ShortcutTarget(), 1e-9),
    ],
    ids=["jvp", "improved", "difference", "shortcut"],
)
def test_the_exact_map_is_a_fixed_point(target, tolerance):
    """Under the marginal velocity, u equals its own target: its MeanFlow, shortcut identity."""
    x_t, t, r = some()
    velocity = x_t * like_image(rate(t), x_t)
    result = target.target(exact_map, x_t, t, r, velocity)
    torch.testing.assert_close(result, exact_map(x_t, t, r), rtol=0, atol=tolerance)
    assert not torch.allclose(result, velocity, atol=1e-2)


@pytest.mark.parametrize("name", FLOW_MAP_TARGETS)
def test_where_the_times_agree_the_target_is_the_velocity(name):
    x_t, t, _ = some()
    velocity = torch.randn_like(x_t)
    result = FLOW_MAP_TARGETS[name]().target(exact_map, x_t, t, t, velocity)
    torch.testing.assert_close(result, velocity)


def test_mean_flow_times():
    t, r = MeanFlowTarget(instantaneous=0.25).times(Rng(0), 20_000)
    assert (r <= t).all() and (0 < r).all() and (t < 1).all()
    assert (t == r).float().mean().item() == pytest.approx(0.25, abs=0.02)
    logit = torch.logit(t)
    larger = stats.norm(-0.4, 1.0)
    assert stats.kstest(logit.numpy(), lambda x: larger.cdf(x) ** 2).pvalue > 1e-3


def test_shortcut_times_lie_on_their_grid():
    t, r = ShortcutTarget(steps=8, instantaneous=0.0).times(Rng(0), 5_000)
    gap = t - r
    assert set(gap.tolist()) == {1.0, 0.5, 0.25}
    torch.testing.assert_close(t / gap, (t / gap).round())
    assert r.min() == 0 and t.max() == 1


def network(**options) -> PixelTransformer:
    torch.manual_seed(0)
    model = PixelTransformer(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        hidden_dim=16,
        num_layers=1,
        second_time=True,
        time_factor=0.01,
        **options,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def data(rows: int = 32) -> dict[str, torch.Tensor]:
    images = STD * torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return {"images": images, "labels": torch.arange(rows) % 3}


@pytest.mark.parametrize(
    "objective",
    [
        FlowMaps(),
        FlowMaps(target=MeanFlowTarget(derivative="difference")),
        FlowMaps(target=ShortcutTarget(), power=0.0),
        FlowMaps(target=MeanFlowTarget(improved=True), guidance_scale=2.0, label_dropout=0.2),
    ],
    ids=["mean flow", "difference", "shortcut", "guided"],
)
def test_flow_maps_train_and_split(objective):
    model = network(num_class_embeds=4)
    models = {"unet": model, "scheduler": FlowMapEulerDiscreteScheduler()}
    whole, terms = objective.loss("flow_map", models, data(), Rng(0, 0), START)
    whole.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert terms["mse"].isfinite()
    parts = [
        objective.loss(
            "flow_map",
            models,
            {key: value[start : start + 16] for key, value in data().items()},
            Rng(0, 0, start=start),
            START,
        )[0]
        for start in (0, 16)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rows_that_stand_still_cost_no_derivative(share):
    """A central difference evaluates the network twice, for the rows with r < t alone."""
    seen, model = [], network(num_class_embeds=4)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    target = MeanFlowTarget(derivative="difference", instantaneous=share)
    models = {"unet": model, "scheduler": FlowMapEulerDiscreteScheduler()}
    FlowMaps(target=target).loss("flow_map", models, data(), Rng(0, 0), START)
    t, r = target.times(Rng(0, 0), len(data()["images"]))
    moving = int((t > r).sum())
    assert sorted(seen) == sorted([moving] * 2 * (moving > 0) + [len(t)])


def test_jvp_and_difference_give_one_gradient():
    gradients = []
    for derivative in ("jvp", "difference"):
        model = network()
        models = {"unet": model, "scheduler": FlowMapEulerDiscreteScheduler()}
        objective = FlowMaps(target=MeanFlowTarget(derivative=derivative, instantaneous=0.0))
        objective.loss("flow_map", models, data(), Rng(0, 0), START)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert difference.item() < 0.02


def test_improved_mean_flow_is_a_regression_on_the_velocity():
    """|V - (n - x)|^2 with V = u + (t - r) stopgrad(du/dt), the derivative along the network's own
    u(x_t, t, t) (Geng et al. 2025b, eq. 12 and algorithm 1), written out here once more.
    """
    model, target = network(), MeanFlowTarget(improved=True)
    models = {"unet": model, "scheduler": FlowMapEulerDiscreteScheduler()}
    FlowMaps(target=target, power=0.0).loss("flow_map", models, data(), Rng(0, 0), START)[
        0
    ].backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])

    x, rng = data()["images"], Rng(0, 0)
    n, (t, r) = rng.randn("noise", x.shape), target.times(rng, len(x))
    x_t, gap = torch.lerp(x, n, like_image(t, x)), like_image(t - r, x)

    def u(z, a, b):
        return model(z, 1000 * a, second_timestep=1000 * b).sample

    with torch.no_grad():
        tangents = (u(x_t, t, t), torch.ones_like(t), torch.zeros_like(r))
        change = torch.func.jvp(u, (x_t, t, r), tangents)[1]
    model.zero_grad()
    (u(x_t, t, r) + gap * change - (n - x)).square().mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert change.abs().max() > 0.01


class Map(torch.nn.Module):
    """The exact map of N(0, STD^2) as a denoiser that a pipeline can hold."""

    config = {"sample_size": 8, "in_channels": 1, "second_time": True}
    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, sample, time, second_timestep):
        u = exact_map(sample, time / 1000, second_timestep / 1000)
        return SimpleNamespace(sample=u.float())


@pytest.mark.parametrize("steps", [1, 3])
def test_any_number_of_steps_is_exact_with_the_exact_map(steps):
    pipeline = DenoisingPipeline(Map(), FlowMapEulerDiscreteScheduler())
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = pipeline(latents=latents, num_inference_steps=steps, output_type="latent").images
    torch.testing.assert_close(images, latents * STD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FlowMaps(guidance_scale=2.0), "needs label_dropout"),
        (lambda: FlowMaps(label_dropout=1.0), "label_dropout must be in"),
        (lambda: Consistency(q=1.0), "q must be above 1"),
        (lambda: ShortcutTarget(steps=6), "power of two"),
    ],
)
def test_impossible_settings_are_one_line(build, message):
    with pytest.raises((HfgenError, ValueError), match=message):
        build()


@pytest.mark.parametrize("objective", [FlowMaps(), Consistency()])
def test_a_scheduler_of_another_path_is_one_line(objective):
    models = {"unet": network(), "scheduler": DDPMScheduler()}
    with pytest.raises(HfgenError, match="model.scheduler"):
        objective.loss("x", models, data(), Rng(0), START)


def test_a_network_that_breaks_is_one_line():
    model = network()
    torch.nn.init.constant_(model.patches_out.weight, float("nan"))
    models = {"unet": model, "scheduler": FlowMapEulerDiscreteScheduler()}
    with pytest.raises(HfgenError, match="NaN in the jvp"):
        FlowMaps().loss("flow_map", models, data(), Rng(0), START)


# --- consistency ---


def test_the_gap_closes_in_stages():
    """First r = 0 (diffusion training), last r / t = 1 - n(t) / q^stages."""
    t = torch.tensor([0.01, 1.0, 50.0])
    objective = Consistency(q=4.0, stages=3)
    assert (objective.earlier(t, START) == 0).all()
    share = (1 + 8 * torch.sigmoid(-t)) / 64
    torch.testing.assert_close(objective.earlier(t, END), t * (1 - share))


@pytest.mark.parametrize("clock", [START, END], ids=["first stage", "last stage"])
def test_consistency_of_the_true_denoiser(clock):
    """First stage: the denoiser's own error. Last: far less, D hardly changes over the gap."""
    scheduler = CMStochasticIterativeScheduler()
    models = {"unet": Optimal(scheduler, STD), "scheduler": scheduler}
    _, terms = Consistency().loss("consistency", models, data(), Rng(0, 0), clock)
    t = Consistency().time.sample(Rng(0, 0), 32, parameterisation(scheduler).path)
    posterior = ((t * STD) ** 2 / (t**2 + STD**2)).mean().item()
    if clock is START:
        assert terms["mse"].item() == pytest.approx(posterior, rel=0.15)
        assert terms["gap"].item() > 0.9
    else:
        assert terms["mse"].item() < 0.01 * posterior


def test_consistency_exports_a_stock_pipeline(tmp_path):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    models = {"unet": unet, "scheduler": CMStochasticIterativeScheduler()}
    loss, _ = Consistency().loss("consistency", models, data(), Rng(0), END)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())
    ConsistencyModelPipeline(**models).save_pretrained(tmp_path)
    pipeline = ConsistencyModelPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = pipeline(num_inference_steps=1, generator=generator, output_type="pt").images
    latents = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    param, level = parameterisation(models["scheduler"]), torch.tensor([80.0])
    x_t = latents * 80.0
    with torch.no_grad():
        output = unet(*param.path.model_input(x_t, level)).sample
    expected = param.denoised(output, x_t, level)
    torch.testing.assert_close(image, (expected / 2 + 0.5).clamp(0, 1), rtol=1e-3, atol=1e-3)


# --- with a teacher ---


class OneStep(Analytic):
    """The exact consistency function of N(0, STD^2): x_t followed along the ODE to sigma_min."""

    def posterior_mean(self, x_t, alpha, sigma):
        return x_t * ((0.002**2 + STD**2) / (sigma**2 + STD**2)).sqrt()


class Straight(Analytic):
    """The flow of the pairs (STD n, n): x_t = ((1 - t) STD + t) n, so x = STD n exactly."""

    def posterior_mean(self, x_t, alpha, sigma):
        return STD * x_t / (alpha * STD + sigma)


def test_distillation_has_no_error_at_the_teachers_own_map():
    """The same function as one step of consistency *training* is still wrong by the noise in x."""
    scheduler = CMStochasticIterativeScheduler(sigma_data=0.5)
    teacher = Optimal(EDMEulerScheduler(sigma_data=0.5), STD)
    models = {"unet": OneStep(scheduler), "scheduler": scheduler, "teacher": teacher}
    call = ("consistency", models, data(), Rng(0, 0), END)
    distilled = Consistency(teacher="teacher", first_stage=2).loss(*call)[1]["mse"].item()
    trained = Consistency(first_stage=2).loss(*call)[1]["mse"].item()
    assert distilled < 1e-6 and distilled < 0.02 * trained


def test_the_first_stage_is_where_distillation_begins():
    t = torch.tensor([0.5, 5.0])
    begun = Consistency(first_stage=2, stages=4, teacher="teacher").earlier(t, START)
    share = (1 + 8 * torch.sigmoid(-t)) / 16
    torch.testing.assert_close(begun, t * (1 - share))


def test_reflow_pairs_noise_with_the_teachers_image():
    """Data N(0, STD^2): the ODE's image of n is STD n; a network of straight paths has no error."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    models = {"unet": Straight(scheduler), "scheduler": scheduler}
    models["teacher"] = Optimal(scheduler, STD)
    objective = Reflow(teacher_steps=400)
    param = parameterisation(scheduler)
    x, noise = objective.pairs(models, param, data(), Rng(0, 0))
    torch.testing.assert_close(x, STD * noise, rtol=0.02, atol=1e-3)
    loss, _ = objective.loss("denoise", models, data(), Rng(0, 0), START)
    crossing, _ = Diffusion().loss("denoise", models, data(), Rng(0, 0), START)
    assert loss.item() < 1e-3 < 0.01 * crossing.item()


@pytest.mark.parametrize(
    ("objective", "scheduler"),
    [
        (Reflow(), FlowMatchEulerDiscreteScheduler()),
        (Consistency(teacher="teacher"), CMStochasticIterativeScheduler()),
    ],
)
def test_a_missing_teacher_is_one_line(objective, scheduler):
    models = {"unet": Optimal(scheduler, STD), "scheduler": scheduler}
    with pytest.raises(HfgenError, match="model.teacher: missing"):
        objective.loss("x", models, data(), Rng(0), END)


def test_linear_path_is_required_of_a_flow_map():
    path = parameterisation(FlowMapEulerDiscreteScheduler()).path
    assert path == LinearPath(1000)
