"""SIGTERM saves and stops; after kill -9 the latest checkpoint is whole; both go on with
--resume.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfgen.training.checkpoints import read_state

SETTINGS = [
    "--training.max_steps=1000000",
    "--training.checkpoint_every=640",
    "--training.sample_every=0",
]


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "hfgen",
        "train",
        "mnist-vae",
        *SETTINGS,
        f"--output_dir={folder}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *more], env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list((folder / "checkpoints").glob("checkpoint-*")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.05)


def latest(folder: Path) -> Path:
    found = (folder / "checkpoints").glob("checkpoint-*")
    return max(found, key=lambda path: int(path.name.split("-")[1]))


def goes_on(folder: Path) -> None:
    """Five more steps from the latest checkpoint."""
    step = read_state(latest(folder))["step"]
    settings = [f"--training.max_steps={step + 5}", "--training.allow_recipe_change=true"]
    process = start(folder, "--resume", "latest", *settings)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert read_state(latest(folder))["step"] == step + 5
    steps = [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(set(steps)), "a resumed log repeats or reorders steps"


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, processes):
    more = ["--num-processes", "2"] if processes == 2 else []
    process = start(tmp_path / "run", *more)
    wait_for_checkpoint(process, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "stopped; saved" in said and "--resume latest" in said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()
    if processes == 1:
        goes_on(tmp_path / "run")


def test_kill_9_leaves_a_whole_checkpoint(tmp_path):
    process = start(tmp_path / "run")
    wait_for_checkpoint(process, tmp_path / "run")
    time.sleep(0.4)
    process.kill()
    process.communicate(timeout=60)
    read_state(latest(tmp_path / "run"))
    goes_on(tmp_path / "run")
