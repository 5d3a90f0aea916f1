"""What a run ran on: stands in the run's ``environment.json``, in the card and beside every
measured number.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def describe(num_processes: int = 1) -> dict[str, Any]:
    """Hardware, versions, and the commit of hfgen where it runs from a repository."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "hardware": ", ".join(names) or f"{_cpu_name()}, {os.cpu_count()} cores",
        "num_processes": num_processes,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "hfgen": version("hfgen"),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "accelerate": version("accelerate"),
        "commit": commit(),
    }


def commit() -> str | None:
    """The short commit of hfgen's own repository, with "+" when files were changed; None outside
    one.
    """
    root = Path(__file__).parents[1]

    def git(*words: str) -> str:
        result = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else ""

    head = git("rev-parse", "--short=10", "HEAD") if (root / ".git").exists() else ""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "hfgen", "pipelines")
    return f"{head}{'+' if changed else ''}" if head else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()
