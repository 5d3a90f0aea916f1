"""A loopback Hub for the whole session, its clients, and a run to push."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_client import Client
from loopback import LoopbackHub

TOKENS = {"hf_user": "user", "hf_other": "other"}


@pytest.fixture(scope="session")
def server():
    with LoopbackHub(TOKENS) as hub:
        yield hub


@pytest.fixture
def hub(server):
    server.forget()
    yield server
    server.forget()
    assert server.errors == []


@pytest.fixture(scope="session")
def client(server, tmp_path_factory):
    """A process where hfgen is installed."""
    process = Client(server.url, tmp_path_factory.mktemp("client"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def stranger(server, tmp_path_factory):
    """A process where hfgen cannot be imported."""
    process = Client(server.url, tmp_path_factory.mktemp("stranger"), "--without-hfgen")
    yield process
    process.close()


@pytest.fixture(scope="session")
def stock_pipeline(client, tmp_path_factory) -> Path:
    """A saved DDPMPipeline of diffusers, 8x8, grey."""
    folder = tmp_path_factory.mktemp("stock") / "pipeline"
    client.run(
        """
        import torch
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
        torch.manual_seed(0)
        unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
            block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownBlock2D",
            "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"))
        DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10)).save_pretrained(folder)
        """,
        folder=str(folder),
    )
    return folder


RECIPE = """\
format_version: 1
name: tiny-ddpm
family: diffusion
pipeline: DDPMPipeline
description: A tiny diffusion model.
data: {path: mnist, split: train, resolution: 8}
model: {unet: {type: UNet2DModel}, scheduler: {type: DDPMScheduler}}
objective: {type: diffusion}
optimizer: {type: adamw, learning_rate: 0.001}
training: {total_images: 1000, total_batch_size: 10, mixed_precision: 'no'}
ema: {half_lives: [500]}
logging: {num_inference_steps: 10}
hub: {license: apache-2.0}
"""
METRICS = {
    "model": "runs/tiny-ddpm",
    "scores": [
        {
            "name": "fd",
            "value": 12.3456,
            "standard_error": 0.21,
            "better": "lower",
            "protocol": "0123456789abcdef",
            "settings": "ddof 1",
        }
    ],
    "protocols": {"0123456789abcdef": {"summary": "efficientnet-lite0, 1000 samples, 10 steps"}},
    "warnings": [],
}


@pytest.fixture
def run_folder(stock_pipeline, tmp_path) -> Path:
    """A run as the trainer leaves it: recipe, numbers, a grid, the exported pipeline."""
    from PIL import Image

    run = tmp_path / "runs" / "tiny-ddpm"
    shutil.copytree(stock_pipeline, run / "pipeline")
    (run / "recipe.yaml").write_text(RECIPE)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "metrics.json").write_text(json.dumps(METRICS))
    machine = {"hardware": "a CPU, 2 cores", "torch": "2.13.0", "commit": None}
    (run / "environment.json").write_text(json.dumps(machine))
    lines = [
        {"step": 50, "images_seen": 500, "seconds": 4.0},
        {"step": 100, "images_seen": 1000, "seconds": 75.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "samples").mkdir()
    Image.new("L", (16, 16), 128).save(run / "samples" / "grid.png")
    return run
