"""EDM's Heun sampler against the formula on a Gaussian, and the optimal pairing of noise."""

import itertools
import math

import pytest
import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler

from hfgen.denoising import EDMPath, EDMPrecondition, parameterisation
from hfgen.models.scheduler_edm_heun import EDMHeunScheduler
from hfgen.models.transformer_pixel import PixelTransformer
from hfgen.objectives.diffusion_couplings import (
    COUPLINGS,
    IndependentCoupling,
    OptimalTransportCoupling,
)
from hfgen.pipelines.diffusion_pipeline import DenoisingPipeline

STD = 0.5


def pipeline(scheduler) -> DenoisingPipeline:
    """A fresh transformer puts out 0, under EDM the best denoiser of N(0, STD^2)."""
    network = PixelTransformer(
        sample_size=8, in_channels=1, out_channels=1, hidden_dim=16, num_layers=1
    )
    result = DenoisingPipeline(network.eval(), scheduler)
    result.set_progress_bar_config(disable=True)
    return result


def sample(scheduler, steps: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    latents = torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = pipeline(scheduler)(
        latents=latents,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).images
    return latents, images


def test_evaluations_and_levels():
    scheduler = EDMHeunScheduler()
    scheduler.set_timesteps(18)
    assert len(scheduler.timesteps) == 2 * 18 - 1
    stock = EDMEulerScheduler()
    stock.set_timesteps(18)
    torch.testing.assert_close(scheduler.sigmas.float(), stock.sigmas, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scheduler.timesteps[::2], stock.timesteps, rtol=1e-5, atol=1e-6)


def test_it_is_heuns_method():
    """On the linear ODE dx/ds = x s / (s^2 + STD^2), step by step by hand."""
    scheduler = EDMHeunScheduler()
    latents, images = sample(scheduler, 7)
    gain = 80.0
    for sigma, after in itertools.pairwise(scheduler.sigmas.tolist()):
        first = sigma / (sigma**2 + STD**2)
        euler = 1 + (after - sigma) * first
        if after == 0:
            gain *= euler
            continue
        second = euler * after / (after**2 + STD**2)
        gain *= 1 + (after - sigma) * (first + second) / 2
    torch.testing.assert_close(images, latents * gain, rtol=1e-4, atol=1e-5)


def test_second_order():
    exact = 80 * STD / math.hypot(80, STD)
    errors = []
    for steps in (32, 64):
        latents, images = sample(EDMHeunScheduler(sigma_min=1e-4), steps)
        errors.append((images / latents - exact).abs().median().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.4)


def test_churn_keeps_the_distribution():
    scheduler = EDMHeunScheduler(s_churn=40, s_tmin=0.05, s_tmax=50)
    _, images = sample(scheduler, 60, rows=200)
    _, plain = sample(EDMHeunScheduler(), 60, rows=200)
    assert images.std().item() == pytest.approx(STD, rel=0.03)
    assert not torch.allclose(images, plain, atol=0.1)


def test_its_path_is_edms_and_configs_travel(tmp_path):
    scheduler = EDMHeunScheduler.from_config(EDMEulerScheduler(sigma_data=0.6).config)
    param = parameterisation(scheduler)
    assert param.path == EDMPath(0.002, 80.0, 0.6) and param.prediction == EDMPrecondition(0.6)
    one = pipeline(scheduler)
    one.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    again.set_progress_bar_config(disable=True)
    results = [
        p(generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="pt")
        for p in (one, again)
    ]
    assert torch.equal(results[0].images, results[1].images)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="num_inference_steps=0"):
        EDMHeunScheduler().set_timesteps(0)


# --- couplings ---


def cost(images, noise):
    return (images - noise).square().sum().item()


def test_the_pairing_is_optimal_and_a_permutation():
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 6, 1, 2, 2, generator=generator).unbind()
    paired = OptimalTransportCoupling().pair(images, noise, None)
    best = min(cost(images, noise[list(order)]) for order in itertools.permutations(range(6)))
    assert cost(images, paired) == pytest.approx(best, rel=1e-5)
    assert sorted(paired.flatten().tolist()) == sorted(noise.flatten().tolist())


def test_an_independent_pair_of_normals_is_2d_apart():
    """E |x - n|^2 = 2 D, with a standard error of sqrt(8 D / B); transport brings them nearer."""
    images, noise = torch.randn(2, 2000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    mean = cost(images, IndependentCoupling().pair(images, noise, None)) / 2000
    assert mean == pytest.approx(8, abs=4 * (8 * 4 / 2000) ** 0.5)
    assert cost(images, OptimalTransportCoupling().pair(images, noise, None)) / 2000 < 0.3 * mean


def test_pairs_stay_within_their_class():
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 40, 1, 2, 2, generator=generator).unbind()
    labels = torch.arange(40) % 4
    paired = OptimalTransportCoupling().pair(images, noise, labels)
    for label in range(4):
        rows = labels == label
        assert sorted(paired[rows].flatten().tolist()) == sorted(noise[rows].flatten().tolist())
    assert cost(images, paired) < cost(images, noise)


@pytest.mark.parametrize("name", COUPLINGS)
def test_couplings_keep_the_noise(name):
    images, noise = torch.randn(2, 9, 3, 2, 2).unbind()
    paired = COUPLINGS[name]().pair(images, noise, None)
    assert paired.shape == noise.shape
    torch.testing.assert_close(paired.sum(), noise.sum())
