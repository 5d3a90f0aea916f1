"""A trained pair goes on with other images: from a run or a repository, with frozen layers."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file

from hfgen.errors import HfgenError
from hfgen.run import train

TINY = {
    "training.max_steps": 2,
    "training.total_batch_size": 8,
    "training.sample_every": 0,
    "data.max_images": 32,
    "ema.half_lives": [],
}

STILL = {"optimizer.learning_rate": 1e-12}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan") / "first"
    small = {"model.generator.channels": 4, "model.discriminator.channels": 4}
    train("mnist-dcgan", output_dir=str(folder), **TINY, **small)
    return folder


def weights(folder, role):
    (file,) = (folder / "pipeline" / role).glob("*.safetensors")
    return load_file(file)


def changed(before, after):
    """Parts of a model, to the second dot, that learned something; buffers do not count."""
    assert before.keys() == after.keys()
    learned = [name for name in before if "running" not in name and "num_batches" not in name]
    moved = [name for name in learned if (before[name] - after[name]).abs().max() > 1e-9]
    return {".".join(name.split(".")[:2]) for name in moved}


def test_the_lower_layers_stay(trained, tmp_path):
    more = {"objective.freeze": ["blocks.0"]}
    run = train(str(trained), output_dir=str(tmp_path / "next"), **TINY, **more)
    moved = {
        role: changed(weights(trained, role), weights(run.output_dir, role))
        for role in ("generator", "discriminator")
    }
    assert moved["discriminator"] == {"blocks.3", "head.weight", "head.bias"}
    assert "project.0" in moved["generator"]


def test_both_networks_are_taken_over(trained, tmp_path):
    run = train(str(trained), output_dir=str(tmp_path / "next"), **TINY, **STILL)
    for role in ("generator", "discriminator"):
        assert not changed(weights(trained, role), weights(run.output_dir, role))


def test_a_repository_without_its_discriminator(trained, tmp_path):
    shared = tmp_path / "shared"
    shutil.copytree(trained / "pipeline", shared)
    shutil.rmtree(shared / "discriminator")
    index = shared / "model_index.json"
    parts = json.loads(index.read_text())
    parts["discriminator"] = [None, None]
    index.write_text(json.dumps(parts))
    run = train(str(shared), output_dir=str(tmp_path / "next"), **TINY, **STILL)
    assert not changed(weights(trained, "generator"), weights(run.output_dir, "generator"))
    fresh = changed(weights(trained, "discriminator"), weights(run.output_dir, "discriminator"))
    assert "head.weight" in fresh


def test_a_part_to_freeze_must_exist(trained, tmp_path):
    with pytest.raises(HfgenError, match="discriminator.block.0.*discriminator.blocks.0"):
        train(
            str(trained),
            output_dir=str(tmp_path / "x"),
            **TINY,
            **{"objective.freeze": ["block.0"]},
        )
    assert not (tmp_path / "x").exists()
