"""What diffusers' train_unconditional.py gets wrong holds here: schedules under accumulation,
resume without decoding again, grey images. (Averages on several processes: tests/invariants.)
"""

from __future__ import annotations

import json

import pytest
from PIL import Image

import hfgen
from hfgen.build import build_component
from hfgen.data import load
from hfgen.errors import HfgenError

UNET = {
    "type": "UNet2DModel",
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def settings(tmp_path, **more) -> dict:
    return {
        "model.unet": UNET,
        "data.max_images": 48,
        "data.cache_dir": str(tmp_path / "cache"),
        "training.max_steps": 12,
        "training.total_batch_size": 8,
        "training.mixed_precision": "no",
        "training.sample_every": 0,
        "logging.logging_steps": 1,
        "optimizer.lr_warmup_steps": 8,
        "output_dir": str(tmp_path / "run"),
        **more,
    }


def rates(run) -> list[float]:
    lines = (run.output_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["lr/unet"] for line in lines]


def test_warm_up_counts_steps_whatever_the_accumulation(tmp_path):
    """The peer multiplies warm-up by the accumulation factor: 8 updates took 32."""
    whole = rates(hfgen.train("mnist-ddpm", **settings(tmp_path)))
    split = {"training.gradient_accumulation_steps": 4, "output_dir": str(tmp_path / "split")}
    assert rates(hfgen.train("mnist-ddpm", **settings(tmp_path, **split))) == whole
    assert max(whole) == pytest.approx(1e-3) and whole.index(max(whole)) == 7  # after 8 steps


def test_resuming_decodes_nothing_again(tmp_path, monkeypatch):
    hfgen.train("mnist-ddpm", **settings(tmp_path, **{"training.checkpoint_every": 48}))

    def refuse(*args, **kwargs):
        raise AssertionError("images were decoded again")

    monkeypatch.setattr(load, "_decode", refuse)
    checkpoint = str(tmp_path / "run" / "checkpoints" / "checkpoint-6")
    again = {
        "training.resume_from_checkpoint": checkpoint,
        "output_dir": str(tmp_path / "again"),
        "training.checkpoint_every": 48,
    }
    run = hfgen.train("mnist-ddpm", **settings(tmp_path, **again))
    assert run.finished and len(rates(run)) == 6  # steps 7 to 12 alone


def test_grey_images_stay_grey(tmp_path):
    """The peer converts everything to three channels."""
    folder = tmp_path / "grey"
    folder.mkdir()
    for i in range(16):
        Image.new("L", (16, 16), 10 * i).save(folder / f"{i}.png")
    over = {"data.path": str(folder), "data.max_images": None, "training.max_steps": 1}
    pipeline = hfgen.train("mnist-ddpm", **settings(tmp_path, **over)).pipeline
    assert pipeline.unet.config.in_channels == pipeline.unet.config.out_channels == 1
    pipeline.set_progress_bar_config(disable=True)
    array = pipeline(batch_size=1, num_inference_steps=2, output_type="np").images
    assert array.shape == (1, 16, 16, 1)


def test_images_that_a_unet_cannot_halve_are_one_line():
    """28 = 4 * 7 allows two halvings; diffusers itself fails in the middle of a step."""
    unet = {"type": "UNet2DModel", "block_out_channels": [8] * 4, "norm_num_groups": 4}
    blocks = {"down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4}
    with pytest.raises(HfgenError, match="28 is not a multiple of 8; set data.resolution to 32"):
        build_component("unet", {**unet, **blocks}, {"sample_size": 28})
    assert build_component("unet", {**unet, **blocks}, {"sample_size": 32}) is not None
