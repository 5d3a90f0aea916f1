"""Every scheduler that is offered for a network samples what the network was trained on."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
)

import hfgen
from hfgen.cli import main
from hfgen.errors import HfgenError
from hfgen.pipelines.diffusion_pipeline import DenoisingPipeline
from hfgen.schedulers import fitting, swapped

sys.path.insert(0, str(Path(__file__).parent / "objectives"))
from diffusion_analytic import Optimal  # noqa: E402

BASES = {
    "ddpm": DDPMScheduler(clip_sample=False),
    "v": DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
    "flow": FlowMatchEulerDiscreteScheduler(),
    "edm": EDMEulerScheduler(),
    "jit": DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="sample"),
}
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # in diffusers
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    CASES = [(base, name) for base in BASES for name in fitting(BASES[base])]


def test_what_fits_is_more_than_one_and_not_what_diffusers_calls_compatible():
    for base, scheduler in BASES.items():
        names = list(fitting(scheduler))
        assert type(scheduler).__name__ in names and len(names) > 1, base
    assert "HeunDiscreteScheduler" in fitting(BASES["ddpm"])
    assert "EDMEulerScheduler" not in fitting(BASES["ddpm"])
    assert "DDIMScheduler" not in fitting(BASES["jit"])
    assert "FlowMatchHeunDiscreteScheduler" in fitting(BASES["flow"])
    assert "EDMHeunScheduler" in fitting(BASES["edm"])


@pytest.mark.parametrize(("base", "name"), CASES)
def test_each_one_samples_the_gaussian_that_the_network_knows(base, name):
    """Data N(0.3, 0.5^2), the exact denoiser, 40 steps: mean and deviation of 4096 pixels."""
    network, scheduler = Network(Optimal(BASES[base], 0.5, 0.3)), fitting(BASES[base])[name]
    pipeline = DenoisingPipeline(unet=network, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 40, "generator": torch.Generator().manual_seed(0)}
    x = pipeline(batch_size=64, output_type="latent", **call).images
    assert float(x.mean()) == pytest.approx(0.3, abs=0.05)
    # first-order ancestral steps lose variance: 0.435 after 40 of them
    tolerance = 0.15 if name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler") else 0.08
    assert float(x.std()) == pytest.approx(0.5, rel=tolerance)


def test_predictor_and_corrector_sample_it_too():
    """The one scheduler for its path; noise of up to 20 times the deviation, 100 steps."""
    scheduler = ScoreSdeVeScheduler(sigma_max=10.0)
    assert list(fitting(scheduler)) == ["ScoreSdeVeScheduler"]
    pipeline = DenoisingPipeline(Network(Optimal(scheduler, 0.5, 0.3)), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 100, "generator": torch.Generator().manual_seed(0)}
    x = pipeline(batch_size=64, output_type="latent", **call).images
    assert float(x.mean()) == pytest.approx(0.3, abs=0.05)
    assert float(x.std()) == pytest.approx(0.5, rel=0.08)


def Network(analytic):  # noqa: N802
    """A registered component around a closed form."""
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    network.forward = lambda sample, time, **_: analytic(sample, time)
    return network


def test_a_stock_pipeline_becomes_ours_where_inputs_are_scaled():
    stock = DDPMPipeline(Network(Optimal(BASES["ddpm"], 0.5)), BASES["ddpm"])
    made = swapped(stock, "EulerDiscreteScheduler")
    assert type(made) is DenoisingPipeline
    assert type(made.scheduler).__name__ == "EulerDiscreteScheduler"


def test_a_scheduler_for_another_prediction_is_one_line():
    stock = DDPMPipeline(Network(Optimal(BASES["ddpm"], 0.5)), BASES["ddpm"])
    with pytest.raises(HfgenError, match="EDMEulerScheduler") as caught:
        swapped(stock, "EDMEulerScheduler")
    assert "DDIMScheduler" in str(caught.value) and "\n" not in str(caught.value)


def test_the_table_and_the_plot(tmp_path, capsys):
    run = tmp_path / "run"
    quick = {"training.max_steps": 1, "training.total_batch_size": 8, "data.max_images": 64}
    unet = {
        "type": "UNet2DModel",
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    hfgen.train(
        "mnist-edm",
        **{**quick, "training.sample_every": 0, "output_dir": str(run), "model.unet": unet},
        **{"objective.label_dropout": 0.0},
    )
    words = ["--compare-schedulers", "2", "3", "--num-images", "8"]
    assert main(["sample", str(run), *words, "--output", str(tmp_path / "plot.png")]) == 0
    rows = json.loads((tmp_path / "plot.json").read_text())
    nfe = {(row["scheduler"], row["steps"]): row["nfe"] for row in rows}
    assert nfe["EDMHeunScheduler", 3] == 5 and nfe["EDMEulerScheduler", 3] == 3
    assert len(rows) == 2 * len({name for name, _ in nfe})
    assert "| EDMHeunScheduler | 3 | 5 |" in capsys.readouterr().out
    assert (tmp_path / "plot.png").stat().st_size > 5000
