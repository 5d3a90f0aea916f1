"""The command lines of evaluate and compare, on real folders."""

from __future__ import annotations

import argparse
import json

import pytest

from hfgen.errors import HfgenError
from hfgen.evaluation import command
from tests.evaluation.test_evaluate import save, source


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_evaluate_arguments(parser)
    return command.run_evaluate(*parser.parse_known_args(list(words)))


@pytest.mark.slow
def test_folders_on_the_command_line(tmp_path, capsys):
    """With the default backbone, weights and all; then the report."""
    pixels = source(40).uint8(range(40))
    one, two = save(tmp_path / "one", pixels[:20]), save(tmp_path / "two", pixels[20:])
    words = ["--images", str(one), "--reference", str(two), "--metrics", "fd,precision_recall"]
    where = ["--output", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache")]
    assert run(*words, *where) == 0
    assert "precision" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [s["name"] for s in saved["scores"]] == ["fd", "precision", "recall"]
    parser = argparse.ArgumentParser()
    command.add_compare_arguments(parser)
    report = ["--output", str(tmp_path / "report")]
    options, rest = parser.parse_known_args([str(tmp_path / "out"), *report])
    assert command.run_compare(options, rest) == 0
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give either a model or images"),
        (["--images", "x", "--metrics", "fdd"], "did you mean 'fd'"),
        (["--images", "x", "--weights", "inception"], "--weights inception: expected NAME=VALUE"),
        (["--images", "x", "--datta", "y"], "unknown argument --datta"),
        (["--images", "x", "--data.pth", "mnist"], "did you mean 'path'"),
        (["--images", "/nowhere", "--data.path", "mnist"], "/nowhere: no such folder"),
    ],
)
def test_mistakes_on_the_command_line(words, says):
    with pytest.raises(HfgenError, match=says):
        run(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["runs/x", "--data.path", "mnist", "--data.channels=1", "--data.center_crop", "false"],
        ["--seed", "1", "runs/x", "--data.path", "mnist", "--data.channels=1"]
        + ["--data.center_crop", "false"],
        ["--data.channels=1", "--data.center_crop=false", "--data.path=mnist", "runs/x"],
    ],
)
def test_model_and_settings_in_any_order(words):
    parser = argparse.ArgumentParser()
    command.add_evaluate_arguments(parser)
    options, rest = parser.parse_known_args(words)
    model, changes = command._untangle(options.model, rest)
    assert model == "runs/x"
    assert changes == {"path": "mnist", "channels": 1, "center_crop": False}


def test_values_keep_their_types():
    pairs = command._pairs("--call", ["eta=0.5", "name=x=y"], literal=True)
    assert pairs == {"eta": 0.5, "name": "x=y"}
