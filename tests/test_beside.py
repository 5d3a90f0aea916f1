"""A model is sampled and measured as its recipe says, unless one is told otherwise."""

from __future__ import annotations

import pytest

import hfgen
from hfgen.beside import recipe_call, recipe_data
from hfgen.cli import main
from hfgen.errors import HfgenError
from hfgen.evaluation import evaluate

SHORT = {
    "training.max_steps": 1,
    "training.total_batch_size": 4,
    "training.sample_every": 0,
    "data.max_images": 32,
}


@pytest.fixture(scope="module")
def consistency(tmp_path_factory):
    """A consistency model, whose scheduler refuses the fifty steps of a call that names none."""
    folder = tmp_path_factory.mktemp("runs") / "consistency"
    return hfgen.train("mnist-consistency", output_dir=str(folder), **SHORT).output_dir


def test_the_recipe_beside_a_run_and_a_pipeline(consistency):
    pipeline = hfgen.load(consistency)
    for folder in (consistency, str(consistency / "pipeline")):
        assert recipe_call(folder, pipeline) == {"num_inference_steps": 1}
        assert recipe_data(folder)["path"] == "mnist"
    assert recipe_call(pipeline, pipeline) == {} and recipe_call("no/model", pipeline) == {}


def test_samples_and_numbers_are_the_recipes(consistency, tmp_path, capsys):
    grid = ["sample", str(consistency), "--num-images", "2", "--output", str(tmp_path / "a.png")]
    assert main(grid) == 0
    assert main([*grid, "--num-inference-steps", "41"]) == 2
    assert "41 cannot be larger than" in capsys.readouterr().err
    settings = {"metrics": ("fd",), "num_images": 4, "progress": False}
    assert "1 steps" in evaluate(consistency, **settings).table()
    assert "3 steps" in evaluate(consistency, call={"num_inference_steps": 3}, **settings).table()


def test_steps_that_a_scheduler_cannot_take_are_one_line(consistency):
    call = {"num_inference_steps": 41}
    with pytest.raises(HfgenError, match="num_inference_steps.*41 cannot be larger"):
        evaluate(consistency, call=call, metrics=("fd",), num_images=4, progress=False)
