"""Runs of shipped recipes through the command line, in this process or in several, and what they
leave behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from hfgen.cli import main

# Tiny, but with all that could break the laws switched on: EMA, flips, dynamic pixels, lazy
# phases, label draws.
COMMON = {
    "training.total_batch_size": "16",
    "data.random_flip": "true",
    "training.sample_every": "0",
    "training.checkpoints_total_limit": "null",
    "ema.half_lives": "[100, 1000]",
    "logging.logging_steps": "1",
}
# Batch norm couples the rows of a batch, so the laws hold for DCGAN with group norm.
FAMILIES = {
    "mnist-vae": {"data.binarize": "dynamic"},
    "mnist-dcgan": {
        "model.generator.norm": "group",
        "model.discriminator.norm": "group",
        "model.generator.channels": "8",
        "model.discriminator.channels": "8",
        "objective.r1_every": "2",
    },
    "mnist-ddpm": {
        "model.unet.block_out_channels": "[8, 8, 8]",
        "model.unet.norm_num_groups": "4",
        "objective.time": "{type: log_normal, stratified: true}",
        "objective.weighting": "learned",
        "objective.importance": "true",
        "ema.sigma_rels": "[0.05, 0.1]",
        "training.mixed_precision": "no",
    },
}


def words(recipe: str, output_dir: Path, **settings: str) -> list[str]:
    """Arguments of ``hfgen`` for one tiny run; in keyword names ``__`` stands for the dot."""
    given = {name.replace("__", "."): value for name, value in settings.items()}
    values = {**COMMON, **FAMILIES[recipe], "output_dir": str(output_dir), **given}
    return [
        "train",
        recipe,
        *(word for key, value in values.items() for word in (f"--{key}", value)),
    ]


def run(recipe: str, output_dir: Path, **settings: str) -> Path:
    """One run in this process."""
    assert main(words(recipe, output_dir, **settings)) == 0
    return output_dir


def run_in_processes(count: int, argument_lists: list[list[str]]) -> None:
    """Several runs, one after the other, in the same ``count`` processes (importing diffusers is
    what takes the time).
    """
    command = [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(count),
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    script = [str(Path(__file__).with_name("driver.py")), json.dumps(argument_lists)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", *command, *script], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's models and averages."""
    folder = run_dir / "checkpoints" / f"checkpoint-{step}"
    files = sorted(folder.glob("*.safetensors"))
    assert files, f"no models in {folder}"
    return {f"{f.stem}.{key}": value for f in files for key, value in load_file(f).items()}


def distance(a: Path, b: Path, step: int) -> float:
    """Largest difference between two runs' tensors."""
    left, right = weights(a, step), weights(b, step)
    assert left.keys() == right.keys()
    return max(float((left[key].double() - right[key].double()).abs().max()) for key in left)


def optimizers(run_dir: Path, step: int) -> dict:
    """The optimizers' states of a checkpoint."""
    return torch.load(
        run_dir / "checkpoints" / f"checkpoint-{step}" / "optimizers.pt", weights_only=True
    )
