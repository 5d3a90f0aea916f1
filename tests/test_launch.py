"""Accelerate configurations that several models cannot be trained under: refused before anything
starts, whoever asked for them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfgen.cli import main
from hfgen.launch import SHARDING

ROOT = Path(__file__).parents[1]
WORDS = ["mnist-dcgan", "--training.max_steps", "2", "--training.sample_every", "0"]
PLUGIN = """
import sys
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from hfgen.cli import main
Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin())
sys.exit(main(["train", *sys.argv[1:]]))
"""


def config(folder: Path, strategy: str, processes: int = 1) -> Path:
    """What ``accelerate config`` writes."""
    lines = [
        "compute_environment: LOCAL_MACHINE",
        f"distributed_type: {strategy}",
        "mixed_precision: 'no'",
        "num_machines: 1",
        f"num_processes: {processes}",
        "use_cpu: true",
        "fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: NO_WRAP}",
    ]
    path = folder / "accelerate.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def refusals(stderr: str) -> list[str]:
    lines = [line for line in stderr.splitlines() if line.startswith("hfgen: error: ")]
    assert all("is not supported, since several models" in line for line in lines)
    return lines


@pytest.mark.parametrize("strategy", SHARDING)
def test_a_strategy_of_the_environment(strategy, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(f"ACCELERATE_USE_{strategy}", "true")
    run = tmp_path / "run"
    assert main(["train", *WORDS, "--output_dir", str(run)]) == 2
    (line,) = refusals(capsys.readouterr().err)
    assert f"ACCELERATE_USE_{strategy} is true" in line and not run.exists()


@pytest.mark.parametrize("strategy", SHARDING)
def test_a_strategy_of_a_config_file(strategy, capsys, tmp_path):
    path, run = config(tmp_path, strategy, 2), tmp_path / "run"
    arguments = ["train", *WORDS, "--output_dir", str(run), "--config_file", str(path)]
    assert main(arguments) == 2
    (line,) = refusals(capsys.readouterr().err)
    assert f"{path}: distributed_type: {strategy}" in line and not run.exists()


def test_accelerate_launch_itself(tmp_path):
    """The real launcher under an FSDP configuration: its worker says why it stops."""
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    script = [str(config(tmp_path, "FSDP")), str(ROOT / "scripts" / "train.py")]
    result = finished([*launcher, *script, *WORDS, "--output_dir", str(run)])
    assert refusals(result.stderr) and result.returncode != 0 and not run.exists()


def test_a_plugin_of_the_process(tmp_path):
    run = tmp_path / "run"
    result = finished([sys.executable, "-c", PLUGIN, *WORDS, "--output_dir", str(run)])
    (line,) = refusals(result.stderr)
    assert result.stderr.strip().splitlines()[-1] == line
    assert result.returncode == 2 and not run.exists()


def finished(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)
