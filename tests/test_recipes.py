"""Every bundled recipe trains two steps through the command line, exports, and loads back as its
pipeline.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

import hfgen
from hfgen import recipe as recipes
from hfgen.cli import main
from hfgen.samples import accepted, draws_images, takes_prompt

QUICK = {
    "training.max_steps": "2",
    "training.total_batch_size": "8",
    "training.sample_every": "0",
    "training.evaluate_every": "0",
    "data.max_images": "64",
}
STANDS_IN = {
    "ylecun/mnist": {"data.path": "mnist"},
    "./data/emoji-64": {"data.path": "emoji", "data.resolution": "64"},
}
"""Bundled data in place of what has to be fetched."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a recipe two steps, once; before it the runs that its roles are loaded from."""
    root, done = tmp_path_factory.mktemp("runs"), {}

    def train(name: str) -> Path:
        if name not in done:
            recipe = recipes.load(name)
            changed = QUICK | STANDS_IN.get(recipe.data.path, {})
            for role, value in recipe.model.items():
                source = value if isinstance(value, str) else value.get("pretrained", "")
                if source.startswith("runs/"):
                    changed[f"model.{role}"] = str(train(source.removeprefix("runs/")))
            words = [word for key, value in changed.items() for word in (f"--{key}", value)]
            assert main(["train", name, *words, "--output_dir", str(root / name)]) == 0
            done[name] = root / name
        return done[name]

    return train


@pytest.mark.parametrize("name", recipes.bundled())
def test_two_steps_saved_and_loaded(name, trained):
    folder = trained(name)
    assert (folder / "recipe.yaml").is_file() and (folder / "metrics.jsonl").is_file()
    pipeline = hfgen.load(folder)
    assert type(pipeline).__name__ == recipes.load(name).pipeline
    assert isinstance(pipeline, DiffusionPipeline)
    pipeline.set_progress_bar_config(disable=True)
    if not draws_images(pipeline):
        return
    labels = [0, 1] if getattr(pipeline, "num_classes", None) else None
    prompt = ["red heart", "grinning face"] if takes_prompt(pipeline) else None
    options = {"num_inference_steps": 2, "class_labels": labels, "prompt": prompt, "batch_size": 2}
    images = pipeline(output_type="np", **accepted(pipeline, **options)).images
    assert images.shape[0] == 2 and images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize("name", recipes.bundled())
def test_a_recipe_says_what_it_is(name):
    recipe = recipes.load(name)
    assert recipe.name == name, "the run's folder is named by the recipe"
    assert recipe.description
    assert Path(recipes.RECIPES / f"{name}.yaml").read_text().startswith("#"), (
        "a comment says where it comes from"
    )


def test_the_hash_of_a_recipe_follows_what_is_trained():
    plain = recipes.load("mnist-vae")
    said = recipes.load("mnist-vae", {"objective": {"free_bits": plain.objective.free_bits}})
    shown = recipes.load("mnist-vae", {"description": "other words", "output_dir": "elsewhere"})
    assert recipes.digest(plain) == recipes.digest(said) == recipes.digest(shown)
    changed = [
        {"objective": {"free_bits": 0.5}},
        {"training": {"total_images": 7}},
        {"model": {"vae": {"latent_dim": 3}}},
        {"data": {"binarize": "dynamic"}},
    ]
    found = {recipes.digest(recipes.load("mnist-vae", change)) for change in changed}
    assert len(found | {recipes.digest(plain)}) == 5
