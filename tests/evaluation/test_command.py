"""The command lines of evaluate and compare, on real folders."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from hfgen.errors import HfgenError
from hfgen.evaluation import command
from hfgen.models.vae_mlp import MLPVAE
from hfgen.pipelines.vae_pipeline import VAEPipeline
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
        (["--images", "/nowhere", "--reference", "/else"], "/else: no such folder of images"),
        (["/nowhere/run"], "/nowhere/run: no such folder .and no Hub id"),
        (["runs/nowhere", "--metrics", "fd"], "runs/nowhere: no such folder .and no Hub id"),
        (["no/folder/and/no/id"], "no/folder/and/no/id: no such folder .and no Hub id"),
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


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A small saved autoencoder."""
    folder = tmp_path_factory.mktemp("model") / "pipeline"
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=28, hidden_size=8, latent_dim=2)
    VAEPipeline(vae, likelihood={"type": "bernoulli"}).save_pretrained(folder)
    return str(folder)


def test_every_option_reaches_the_evaluation(model, tmp_path, capsys):
    """Then a second call adds to the first, and a report of it has its title."""
    out = str(tmp_path / "out")
    where = ["--data.path", "mnist", "--output", out, "--cache-dir", str(tmp_path / "cache")]
    words = ["--num-images", "70", "--reference-images", "80", "--reference-split", "validation"]
    words += ["--backbone", "efficientnet-lite0", "--batch-size", "16", "--seed", "5"]
    call = ["--call", "temperature=0.5", "--trust-remote-code"]
    assert run(model, "--metrics", "fd", *words, *call, *where) == 0
    saved = json.loads((tmp_path / "out" / "metrics.json").read_text())
    (protocol,) = saved["protocols"].values()
    samples, reference = protocol["samples"], protocol["reference"]
    assert (samples["count"], samples["seed"]) == (70, 5)
    assert samples["call"] == {"temperature": 0.5}
    assert (reference["count"], reference["split"]) == (80, "validation")
    assert protocol["backbone"]["name"] == "efficientnet-lite0"
    assert any((tmp_path / "cache").rglob("*efficientnet-lite0*"))
    again = ["--metrics", "likelihood", "--evaluations", "1100", "--add"]
    assert run(model, *again, *where) == 0
    scores = {
        s["name"]: s for s in json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"]
    }
    assert {"fd", "elbo_nats", "iw_nats"} <= set(scores)
    assert "17 images" in scores["iw_nats"]["settings"]  # 1100 // 64
    parser = argparse.ArgumentParser()
    command.add_compare_arguments(parser)
    options, rest = parser.parse_known_args([out, "--output", out, "--title", "One of them"])
    assert command.run_compare(options, rest) == 0
    assert "One of them" in (tmp_path / "out" / "report.html").read_text()
    assert capsys.readouterr().out.strip().endswith("report.html")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--num-inference-steps", "0"], "--num-inference-steps 0: must be at least 1"),
        (["--num-inference-steps", "5"], "num_inference_steps: VAEPipeline takes no such argument"),
        (["--guidance-scale", "2"], "guidance_scale: VAEPipeline takes no such argument"),
        (["--call", "eta=1"], "eta: VAEPipeline takes no such argument"),
        (["--num-images", "1"], "num_images: 1"),
        (["--batch-size", "0"], "batch_size: 0"),
        (["--reference-images", "9999999"], "9999999"),
        (["--backbone", "efficientnet"], "did you mean 'efficientnet-lite0'"),
        (["--reference", "elsewhere"], "give either data or reference"),
        (["--metrics", "lpips"], "lpips"),
        (["--metrics", "lpips", "--weights", "lpips=/nowhere.pth"], "/nowhere.pth"),
    ],
)
def test_mistakes_in_options_of_a_model(model, words, says):
    with pytest.raises(HfgenError, match=says) as error:
        run(model, "--data.path", "mnist", "--trust-remote-code", *words)
    assert "\n" not in str(error.value)
