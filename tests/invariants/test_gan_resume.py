"""A resumed GAN is the uninterrupted one, with ADA's p, running means and schedules in motion."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from hfgen.cli import main
from tests.invariants.runs import distance, optimizers, weights

TINY = {
    "training.max_steps": "4",
    "training.total_batch_size": "8",
    "training.checkpoint_every": "16",
    "training.sample_every": "0",
    "training.mixed_precision": "no",
    "data.max_images": "32",
    "model.generator.channels": "8",
    "model.discriminator.channels": "8",
    "objective.r1_every": "2",
    "objective.r2_gamma": "0.1",
    "objective.gamma_decay": "0.1",
    "objective.augmentation.interval": "8",
    "objective.augmentation.speed": "40",
    "objective.augmentation.target": "-2.0",  # below every sign: p rises whatever the logits are
    "objective.regularizers": "[{type: path_length, every: 2}, {type: lecam}]",
    "optimizer.lr_scheduler": "cosine",
    "optimizer.lr_final_ratio": "0.25",
    "optimizer.adam_beta2": "0.9",
    "optimizer.final_adam_beta2": "0.99",
    "ema.rampup_ratio": "null",
    "ema.ramp_images": "24",
}


def run(folder, **more):
    values = {**TINY, "output_dir": str(folder), **more}
    words = [word for key, value in values.items() for word in (f"--{key}", value)]
    assert main(["train", "emoji-stylegan2-ada", *words]) == 0
    return folder


def test_resume_with_adaptive_augmentation_and_schedules(tmp_path):
    whole = run(tmp_path / "whole")
    half = whole / "checkpoints" / "checkpoint-2"
    p = [
        float(load_file(whole / "checkpoints" / f"checkpoint-{n}" / "augment.safetensors")["p"])
        for n in (2, 4)
    ]
    assert 0 < p[0] < p[1]
    resumed = run(tmp_path / "again", **{"training.resume_from_checkpoint": str(half)})
    assert distance(whole, resumed, 4) == 0
    assert {"augment.p", "lecam.value", "path_length.value"} <= weights(resumed, 4).keys()
    for key in ("schedules", "optimizers"):
        for role, state in optimizers(whole, 4)[key].items():
            assert_equal(state, optimizers(resumed, 4)[key][role])


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    else:
        assert a == b
