"""``hfgen train --num-processes N``: Accelerate's own launcher, with its noise taken out.

The launcher prints a traceback when a worker stops for any reason, exits 1 on SIGTERM and kills
workers after 30 s. So signals go straight to the workers, which save and leave with 0, and its
tracebacks are filtered away.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import psutil

from hfgen.config import read_yaml
from hfgen.errors import HfgenError
from hfgen.recipe import Recipe

_NOISE = re.compile(
    r"^[EWI]\d{4} "
    r".*(elastic|distributed)|ChildFailedError|SignalException|^\*{10,}|torch/distributed/run\.py"
)

SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""Ways of Accelerate to spread one model over processes, by its names for them."""


def check_environment() -> None:
    """HfgenError where the environment asks Accelerate for what several models cannot have."""
    for strategy in SHARDING:
        name = f"ACCELERATE_USE_{strategy}"
        if os.environ.get(name, "false").lower() == "true":
            refuse_sharding(strategy, f"environment: {name} is true")


def refuse_sharding(strategy: str, source: str) -> None:
    """HfgenError if ``strategy`` spreads a model over processes; ``source`` says who asked."""
    if strategy in SHARDING:
        raise HfgenError(
            f"{source}: {strategy} is not supported, since several models are trained at once and "
            "one pass goes through all of them; valid: distributed_type MULTI_GPU (DDP) or NO"
        )


def launch(
    num_processes: int | None, config_file: str | None, arguments: list[str], recipe: Recipe
) -> int:
    """Run ``hfgen <arguments>`` in several processes; the exit status of the run."""
    if num_processes is not None and num_processes < 1:
        raise HfgenError(f"--num-processes: must be at least 1, got {num_processes}")
    if config_file is not None and not os.path.isfile(config_file):
        raise HfgenError(f"--config_file: no file {config_file}")
    if config_file is not None:
        strategy = str(read_yaml(Path(config_file)).get("distributed_type"))
        refuse_sharding(strategy, f"--config_file {config_file}: distributed_type")
    command, environment = _command(num_processes, config_file, recipe)
    process = subprocess.Popen(
        [*command, "-m", "hfgen", *arguments],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C reaches this process alone, which passes it on
    )
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for worker in _workers(process.pid):
            worker.send_signal(signal.SIGTERM)

    old = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        said_error = _copy_stderr(process)
        status = process.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if received and status == 0:
        return 128 + received[0]
    if status != 0 and said_error:
        return 2
    if status != 0:
        print(
            f"hfgen: error: a process of the run ended with status {status}; its last lines "
            f"are above",
            file=sys.stderr,
        )
    return status


def _command(
    num_processes: int | None, config_file: str | None, recipe: Recipe
) -> tuple[list[str], dict[str, str]]:
    import torch

    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if config_file is not None:
        count = ["--num_processes", str(num_processes)] if num_processes else []
        return [*command, "--config_file", config_file, *count], {}
    precision = recipe.training.mixed_precision
    command += [
        "--num_processes",
        str(num_processes),
        "--num_machines",
        "1",
        "--dynamo_backend",
        "no",
    ]
    command += ["--mixed_precision", precision, "--main_process_port", "0"]
    if num_processes and num_processes > 1:
        command.append("--multi_gpu")  # on CPU too: `--cpu` would silently run one process
    if torch.cuda.is_available():
        return command, {}
    threads = max(1, (os.cpu_count() or 1) // (num_processes or 1))
    return command, {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def _workers(launcher: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(launcher).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if "hfgen" in _words(child)]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _copy_stderr(process: subprocess.Popen[str]) -> bool:
    """Pass the workers' lines on, each error once; drop the launcher's own tracebacks. Whether an
    error was said.
    """
    said: set[str] = set()
    block: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        if block or line.startswith("Traceback (most recent call last)"):
            block.append(line)
            if len(block) > 1 and not line.startswith((" ", "\t")):
                if not any(_NOISE.search(text) for text in block):
                    sys.stderr.write("".join(block))
                block = []
        elif line.startswith("hfgen: error:"):
            if line not in said:
                sys.stderr.write(line)
            said.add(line)
        elif not _NOISE.search(line) and not _is_report(line):
            sys.stderr.write(line)
        sys.stderr.flush()
    sys.stderr.write("".join(block))
    return bool(said)


def _is_report(line: str) -> bool:
    """A line of torchrun's table about a failed worker."""
    return bool(
        re.match(
            r"^(=+|-+|Root Cause|Failures:|\S* ?FAILED|  <NO_OTHER|\[\d+\]:|  "
            r"(time|host|rank|exitcode|error_file|traceback)\s*:)",
            line,
        )
    )
