"""A run goes on from the Hub on another machine, and a repository is a place to train on from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_client import MAIN, client_environment, same, wait_for
from safetensors.torch import load_file

TRAIN = [
    *("train", "mnist-vae", "--training.max_steps", "40", "--training.total_batch_size", "8"),
    *("--data.max_images", "64", "--logging.num_sample_images", "4"),
    *("--training.checkpoint_every", "10", "--model.vae.hidden_size", "8"),
]


def hub_settings(repo: str) -> list[str]:
    values = {"push_to_hub": "true", "hub_model_id": repo, "strategy": "checkpoint"}
    return [word for key, value in values.items() for word in (f"--hub.{key}", value)]


def run(client, *words: str) -> str:
    code, said = client.run(MAIN, words=list(words))
    assert code == 0, said
    return said


def fails(client, *words: str) -> str:
    code, said = client.run(MAIN, words=list(words))
    assert code == 2 and said.count("\n") == 1, said
    return said


def test_a_run_that_was_killed_goes_on_elsewhere_and_ends_the_same(hub, client, tmp_path):
    """Killed before its second push arrives: the Hub holds the state of the first alone."""
    whole, lost, found = (str(tmp_path / name) for name in ("whole", "lost", "found"))
    run(client, *TRAIN, "--output_dir", whole)

    hub.fail("POST .*/commit/main", "wait")  # the first push arrives, no other one does
    hub.fail("POST .*/commit/main", "cut", times=99)
    command = [sys.executable, "-m", "hfgen", *TRAIN, *hub_settings("user/lost")]
    environment = client_environment(hub.url, tmp_path) | {"HF_TOKEN": "hf_user"}
    with subprocess.Popen([*command, "--output_dir", lost], env=environment) as process:
        wait_for(lambda: hub.count("POST .*/user/lost/commit/main") > 1, 120)
        process.kill()
    hub.forget()

    pushed = {name.split("/")[1] for name in hub.files("user/lost") if "checkpoints/" in name}
    (checkpoint,) = pushed
    assert checkpoint != "checkpoint-40"
    said = run(client, "train", "user/lost", "--resume", "latest", "--output_dir", found)
    assert "pushed:" in said and "not pushed" not in said
    last = "checkpoints/checkpoint-40"
    for name in ("vae.safetensors", "ema0-vae.safetensors", "optimizers.pt"):
        assert same(*(load_states(Path(run, last, name)) for run in (whole, found))), name
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert Path(found, "pipeline", weights).read_bytes() == hub.files("user/lost")[weights]


def load_states(path: Path) -> dict:
    safe = path.suffix == ".safetensors"
    return load_file(path) if safe else torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def shared(server, client, tmp_path_factory) -> Path:
    """A GAN's run, pushed without its training state."""
    folder = tmp_path_factory.mktemp("shared") / "tiny-gan"
    small = ["--model.generator.channels", "4", "--model.discriminator.channels", "4"]
    quick = ["--data.max_images", "16", "--logging.num_sample_images", "4"]
    steps = ["--training.max_steps", "2", "--training.total_batch_size", "8"]
    run(client, "train", "mnist-dcgan", *small, *quick, *steps, "--output_dir", str(folder))
    run(client, "push", str(folder), "user/tiny-gan")
    return folder


def test_recipe_and_weights_travel_the_discriminator_too(hub, client, shared, tmp_path):
    """With a learning rate of nothing, what is trained on is what was pushed."""
    still = ["--optimizer.learning_rate", "1e-30", "--ema.half_lives", "[]"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    run(client, "train", "user/tiny-gan", *still, "--output_dir", first)
    for role in ("generator", "discriminator"):
        old = load_file(shared / "pipeline" / role / "diffusion_pytorch_model.safetensors")
        new = load_file(f"{first}/pipeline/{role}/diffusion_pytorch_model.safetensors")
        learned = [name for name in old if "running" not in name and "num_batches" not in name]
        assert all(old[name].equal(new[name]) for name in learned), role
    recipe = yaml.safe_load(Path(first, "recipe.yaml").read_text())
    assert recipe["model"]["pretrained"] == "user/tiny-gan"  # no folder of this machine

    # Trained on once more: from that second repository, not from the one it was made from.
    run(client, "push", first, "user/second-gan")
    run(client, "train", "user/second-gan", *still, "--output_dir", second)
    recipe = yaml.safe_load(Path(second, "recipe.yaml").read_text())
    assert recipe["model"]["pretrained"] == "user/second-gan"


def test_a_run_that_was_moved_goes_on_where_it_is(client, shared, tmp_path):
    moved = tmp_path / "moved"
    shared.rename(moved)
    more = ["--training.max_steps", "3", "--training.allow_recipe_change", "true"]
    said = run(client, "train", str(moved), "--resume", "latest", *more)
    assert f"pipeline: {moved}/pipeline" in said
    assert (moved / "checkpoints" / "checkpoint-3").is_dir()
    moved.rename(shared)


@pytest.mark.slow
def test_two_ranks_train_on_from_the_hub_rank_0_first(hub, client, shared, tmp_path):
    """Both have the weights; only the first asks for them, the other finds them in the cache."""
    environment = client_environment(hub.url, tmp_path)
    words = ["user/tiny-gan", "--num-processes", "2", "--output_dir", str(tmp_path / "two")]
    command = [sys.executable, "-m", "hfgen", "train", *words, "--optimizer.learning_rate", "1e-30"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=300)
    for role in ("generator", "discriminator"):
        weights = f"/resolve/[^/]+/{role}/diffusion_pytorch_model.safetensors"
        assert hub.count("GET .*" + weights) == 1
        old = load_file(shared / "pipeline" / role / "diffusion_pytorch_model.safetensors")
        new = load_file(tmp_path / "two" / "checkpoints/checkpoint-2" / f"{role}.safetensors")
        learned = [name for name in old if "running" not in name and "num_batches" not in name]
        assert all(old[name].equal(new[name]) for name in learned), role


def test_nothing_to_resume_is_one_line_and_leaves_nothing(hub, client, shared, tmp_path):
    target = tmp_path / "target"
    words = ["train", "user/tiny-gan", "--resume", "latest", "--output_dir", str(target)]
    assert "holds no training checkpoint" in fails(client, *words)
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    assert "is not empty" in fails(client, *words)
    assert [path.name for path in target.iterdir()] == ["notes.txt"]
    hub.put("user/no-run", {"model_index.json": b"{}"})
    assert "holds no recipe.yaml" in fails(client, "train", "user/no-run")
    assert "no such repository" in fails(client, "train", "user/nowhere", "--resume", "latest")
