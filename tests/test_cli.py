"""The command line as a user meets it: one clear line for every mistake, and what the README
promises.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image

import hfgen
from hfgen.cli import main
from hfgen.errors import HfgenError
from tests.tiny_unet import tiny_unet

TINY = [
    "--training.max_steps",
    "2",
    "--training.total_batch_size",
    "4",
    "--training.sample_every",
    "0",
]


def fails(capsys, *words: str) -> str:
    """The one line that a failing command says."""
    assert main(list(words)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    said = [line for line in lines if line.startswith("hfgen: error: ")]
    assert len(said) == 1 and lines[-1] == said[0]
    return said[0]


def pictures(
    folder: Path, count: int = 8, size: tuple[int, int] = (40, 30), mode: str = "RGB"
) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.effect_noise(size, 60 + i).convert(mode).save(folder / f"{i}.png")
    return folder


def test_own_folder_of_pictures(tmp_path):
    folder = pictures(tmp_path / "my_images")
    words = [
        "--data.path",
        str(folder),
        "--data.resolution",
        "32",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert main(["train", "mnist-vae", *words, *TINY]) == 0
    image = hfgen.load(tmp_path / "run")(batch_size=1).images[0]
    assert image.size == (32, 32) and image.mode == "RGB"


def test_train_from_python_and_sample(tmp_path):
    settings = {
        "training.max_steps": 2,
        "training.sample_every": 0,
        "output_dir": str(tmp_path / "run"),
    }
    run = hfgen.train("mnist-vae", **settings)
    assert run.finished and len(run.pipeline(batch_size=4).images) == 4
    output = tmp_path / "grid.png"
    assert (
        main(["sample", str(tmp_path / "run"), "--num-images", "9", "--output", str(output)]) == 0
    )
    with Image.open(output) as grid:
        assert grid.size == (3 * 30 + 2, 3 * 30 + 2)


@pytest.mark.parametrize("steps", ["0", "-3"])
def test_a_stock_pipeline_takes_a_step_at_least(steps, capsys, tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path / "stock")
    words = ["--num-inference-steps", steps, "--output", str(tmp_path / "grid.png")]
    said = fails(capsys, "sample", str(tmp_path / "stock"), *words)
    assert f"--num-inference-steps {steps}: must be at least 1" in said


def test_a_grid_does_not_depend_on_the_batch_size(tmp_path):
    hfgen.train(
        "mnist-vae",
        **{
            "training.max_steps": 1,
            "training.sample_every": 0,
            "output_dir": str(tmp_path / "run"),
        },
    )
    for size in ("2", "5"):
        words = [
            "--num-images",
            "5",
            "--batch-size",
            size,
            "--output",
            str(tmp_path / f"{size}.png"),
        ]
        assert main(["sample", str(tmp_path / "run"), *words]) == 0
    assert (tmp_path / "2.png").read_bytes() == (tmp_path / "5.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "mnist-vea"], "did you mean 'mnist-vae'"),
        (["train", "nothing.yaml"], "no file nothing.yaml"),
        (["train", "mnist-vae", "--model.vae.type", "MLPVEA"], "model.vae.type: unknown model 'MLPVEA'; did you mean 'MLPVAE'"),  # noqa: E501
        (["train", "mnist-vae", "--model.vae.hidden", "3"], "did you mean 'hidden_size'"),
        (["train", "mnist-vae", "--model.vae.hidden_size", "wide"], "model.vae.hidden_size: expected a whole number"),  # noqa: E501
        (["train", "mnist-vae", "--model.vae.latent_dim", "0"], "latent_dim must be at least 1, got 0"),  # noqa: E501
        (["train", "mnist-vae", "--pipeline", "VAEPipe"], "unknown pipeline 'VAEPipe'"),
        (["train", "mnist-vae", "--model.vae", "nowhere/at/all"], "nowhere/at/all"),
        (["train", "mnist-vae", "--data.path", "./nowhere"], "nowhere"),
        (["train", "mnist-vae", "--data.split", "trian"], "trian"),
        (["train", "mnist-vae", "--data.image_column", "picture"], "picture"),
        (["train", "mnist-vae", "--training.total_batch_size", "20000"], "20000"),
        (["train", "mnist-vae", "--training.gradient_accumulation_steps", "3"], "128 is not divisible by 1 process(es) x 3"),  # noqa: E501
        (["train", "mnist-vae", "--optimizer.lr_scheduler", "cosin"], "did you mean 'cosine'"),
        (["train", "mnist-vae", "--optimizer.roles", "{vae: {lr: 1}}"], "optimizer.roles.vae"),
        (["train", "mnist-vae", "--training.gradient_checkpointing", "true"], "does not support it"),  # noqa: E501
        (["train", "mnist-vae", "--num-processes", "0"], "must be at least 1, got 0"),
        (["train", "mnist-vae", "--logging.report_to", "wandb"], "pip install wandb"),
        (["train", "mnist-ddpm", "--model.unet.block_out_channels", "[30, 60, 60]"], "model.unet"),
        (["train", "mnist-dcgan", "--data.resolution", "27"], "27"),
        (["train", "mnist-vae", "--data.path", "emoji", "--data.class_conditional", "true", "--data.label_column", "x"], "x"),  # noqa: E501
        (["sample", "nowhere"], "nowhere"),
        (["sample", "runs/nowhere", "--num-images", "0"], "must be positive"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said in fails(capsys, *words)
    assert not (tmp_path / "runs").exists(), "a mistake leaves no half-made run behind"


def test_a_run_that_exists_is_not_touched(tmp_path, capsys):
    words = ["train", "mnist-vae", *TINY, "--output_dir", str(tmp_path / "run")]
    assert main(words) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert "already holds a run; use --resume latest, --overwrite" in fails(capsys, *words)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert main([*words, "--overwrite"]) == 0


def test_overwrite_never_deletes_what_is_no_run(tmp_path, capsys):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years of work")
    said = fails(capsys, "train", "mnist-vae", *TINY, "--output_dir", str(folder), "--overwrite")
    assert "is not a run" in said and (folder / "chapter1.tex").exists()


def test_a_resume_under_another_recipe_names_the_keys(tmp_path, capsys):
    words = ["train", "mnist-vae", *TINY, "--output_dir", str(tmp_path / "run")]
    assert main(words) == 0
    said = fails(capsys, *words, "--resume", "latest", "--optimizer.learning_rate", "0.5")
    assert "optimizer.learning_rate (0.001 -> 0.5)" in said and "allow_recipe_change" in said


@pytest.mark.parametrize("target", ["latest", "foreign"])
def test_a_resume_from_nothing(tmp_path, capsys, target):
    (tmp_path / "foreign").mkdir()
    resume = target if target == "latest" else str(tmp_path / "foreign")
    said = fails(
        capsys, "train", "mnist-vae", "--output_dir", str(tmp_path / "run"), "--resume", resume
    )
    assert "no whole checkpoint" in said or "is not a whole checkpoint" in said


def test_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    said = fails(
        capsys, "train", "mnist-vae", *TINY, "--output_dir", str(tmp_path / "file" / "run")
    )
    assert "cannot be written" in said


def test_a_world_that_accelerate_does_not_see(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert "WORLD_SIZE is 'many'" in fails(
        capsys, "train", "mnist-vae", *TINY, "--output_dir", str(tmp_path / "r")
    )


def test_a_launch_with_a_mistake_is_one_line(tmp_path):
    words = [
        "train",
        "mnist-vae",
        *TINY,
        "--num-processes",
        "2",
        "--training.total_batch_size",
        "5",
    ]
    command = [sys.executable, "-m", "hfgen", *words, "--output_dir", str(tmp_path / "run")]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines() == [
        "hfgen: error: training.total_batch_size: 5 is not divisible by 2 process(es) x 1 gradient_accumulation_steps"  # noqa: E501
    ]


def test_a_loss_that_is_not_finite_stops_with_the_term_and_a_checkpoint(tmp_path, capsys):
    words = [
        "--optimizer.learning_rate",
        "1e30",
        "--training.max_steps",
        "50",
        "--training.checkpoint_every",
        "128",
    ]
    said = fails(capsys, "train", "mnist-vae", *words, "--output_dir", str(tmp_path / "run"))
    assert "not finite at step" in said and "last finite state" in said
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))


def test_import_is_instant_and_without_torch():
    code = "import sys, hfgen; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_needs_nothing_heavy():
    code = "import sys\nfrom hfgen.cli import build_parser\nbuild_parser().format_help()\nassert 'torch' not in sys.modules"  # noqa: E501
    subprocess.run([sys.executable, "-c", code], check=True)


def test_recipes_are_listed(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("mnist-vae", "mnist-dcgan", "emoji-ddpm"))


def test_print_config_is_a_recipe(capsys, tmp_path):
    assert main(["train", "mnist-vae", "--training.max_steps", "7", "--print-config"]) == 0
    file = tmp_path / "copy.yaml"
    file.write_text(capsys.readouterr().out)
    from hfgen import recipe as recipes

    assert recipes.load(str(file)) == recipes.load("mnist-vae", ["--training.max_steps", "7"])


def test_an_exported_checkpoint_is_the_pipeline(tmp_path):
    words = ["train", "mnist-vae", *TINY, "--output_dir", str(tmp_path / "run")]
    assert main(words) == 0
    weights = tmp_path / "run" / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    assert main(["export", str(tmp_path / "run")]) == 0
    assert weights.read_bytes() == before


def test_fine_tuning_starts_from_the_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = hfgen.train("mnist-vae", **{"training.max_steps": 3, "training.sample_every": 0})
    again = hfgen.train(
        str(first.output_dir), **{"optimizer.learning_rate": 1e-12, "ema.half_lives": []}
    )
    assert again.output_dir.name == "mnist-vae-2", (
        "what was read from a run goes into a fresh folder"
    )
    a, b = (run.pipeline.vae.fc1.weight for run in (first, again))
    assert (a - b).abs().max() < 1e-6


def test_pretrained_of_another_size_is_one_line(tmp_path):
    hfgen.train(
        "mnist-vae",
        **{
            "training.max_steps": 1,
            "training.sample_every": 0,
            "output_dir": str(tmp_path / "run"),
        },
    )
    with pytest.raises(
        HfgenError, match=r"sample_size 28, the data has 32; set data\.resolution to 28"
    ):
        hfgen.train(
            str(tmp_path / "run"), **{"data.path": "emoji", "output_dir": str(tmp_path / "b")}
        )


def test_a_tracker_by_name(tmp_path):
    words = ["--logging.report_to", "tensorboard", "--logging.logging_steps", "1"]
    assert main(["train", "mnist-vae", *TINY, *words, "--output_dir", str(tmp_path / "run")]) == 0
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2


def test_bf16_channels_last_and_gradient_checkpointing(tmp_path):
    words = ["--training.mixed_precision", "bf16", "--training.channels_last", "true"]
    words += ["--training.gradient_checkpointing", "true", "--optimizer.max_grad_norm", "1.0"]
    run = ["--output_dir", str(tmp_path / "run")]
    assert main(["train", "mnist-conv-vae", *TINY, *words, *run]) == 0
    assert hfgen.load(tmp_path / "run")(batch_size=1).images[0].size == (28, 28)


def test_the_best_checkpoint_is_kept_and_exported(tmp_path):
    words = ["--training.evaluate_every", "4", "--training.evaluate_num_images", "8"]
    words += ["--training.checkpoints_total_limit", "1", "--data.max_images", "64"]
    assert main(["train", "mnist-vae", *TINY, *words, "--output_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "checkpoints" / "best.json").is_file()
    assert main(["export", str(tmp_path / "run"), "--checkpoint", "best"]) == 0
