"""Short real trainings of text-to-image recipes on four pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

import hfgen

COLORS = {
    "red square": (255, 40, 40),
    "green square": (40, 220, 60),
    "blue circle": (40, 60, 250),
    "white circle": (240, 240, 240),
}
"""Caption -> colour of the four pictures."""
SHORT = {"total_batch_size": 4, "sample_every": 0, "checkpoint_every": 0}
ADAM = {"type": "adamw", "learning_rate": 3.0e-3, "max_grad_norm": 1.0}
TOKENIZER = {"type": "PreTrainedTokenizerFast", "vocab_size": 64, "max_length": 8}
UNET = {
    "type": "UNet2DConditionModel",
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
SCHEDULER = {
    "type": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "steps_offset": 1,
}


def train(root: Path, pictures: Path, name: str, steps: int, **parts) -> Path:
    """Train a recipe made of ``parts``; the run's folder."""
    values = {
        "name": name,
        "family": "text",
        "data": {"path": str(pictures), "validation_split": "train"},
        "optimizer": ADAM,
        "training": {**SHORT, "max_steps": steps},
        "ema": {"half_lives": []},
        "output_dir": str(root / name),
        **parts,
    }
    file = root / f"recipe-{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return hfgen.train(str(file)).output_dir


def stable_parts(root: Path, clip: Path) -> dict:
    return {
        "pipeline": "StableDiffusionPipeline",
        "objective": {"type": "text-diffusion"},
        "model": {
            "vae": {"pretrained": str(root / "vae"), "scaling_factor": scale(root)},
            "text_encoder": str(clip),
            "tokenizer": str(clip),
            "unet": UNET,
            "scheduler": SCHEDULER,
        },
    }


def scale(root: Path) -> float:
    """One over the standard deviation of the latents, roughly: what the recipe has to name."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(root / "vae")
    with torch.no_grad():
        spread = vae.encode(torch.rand(4, 3, 16, 16) * 2 - 1).latent_dist.sample().std()
    return round(1 / float(spread), 3)


def loaded(run: Path) -> Any:
    """The exported pipeline of a run, without progress bars."""
    pipeline = hfgen.load(run)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
