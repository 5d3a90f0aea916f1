"""Where numbers go: ``metrics.jsonl`` always, trackers by name, a progress bar on a terminal."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from hfgen.errors import HfgenError
from hfgen.training.config import LoggingConfig


def check_trackers(config: LoggingConfig) -> None:
    """HfgenError at start where a tracker's package is missing: Accelerate itself would only warn
    and log nothing.
    """
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise HfgenError(
                f"logging.report_to: {name} is not installed; pip install {name}, or "
                f"report_to: none"
            )


SILENCE = 60.0
"""Seconds without a line after which a run that is written to a file speaks up."""


class Log:
    """Writes numbers on the main process."""

    def __init__(self, accelerator: Accelerator, config: LoggingConfig, folder: Path):
        self._accelerator = accelerator
        self._config = config
        self._file = folder / "metrics.jsonl"
        self.every = config.logging_steps

    def start(self, recipe: dict[str, Any]) -> None:
        """Let the trackers know the recipe, once the run's folder is there."""
        if self._config.trackers:
            self._accelerator.init_trackers(self._config.project_name, config=_flat(recipe))

    def rewind(self, step: int) -> None:
        """Drop lines after ``step``: a resumed run writes them again."""
        if not self._accelerator.is_main_process or not self._file.exists():
            return
        lines = [
            line for line in self._file.read_text().splitlines() if json.loads(line)["step"] <= step
        ]
        self._file.write_text("".join(f"{line}\n" for line in lines))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line, and send it to the trackers."""
        if self._accelerator.is_main_process:
            with self._file.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self._accelerator.log(values, step=step)

    def close(self) -> None:
        """Let the trackers finish; the processes stay connected, for a program that trains
        again.
        """
        for tracker in self._accelerator.trackers:
            tracker.finish()


class Progress:
    """A bar with loss terms and images/s on a terminal; elsewhere one plain line for each
    tenth of the run, and one a minute where a tenth takes longer.
    """

    def __init__(self, total_steps: int, step: int, *, show: bool):
        self._show = show
        self._total = total_steps
        terminal = show and sys.stderr.isatty()
        self._bar = (
            tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True)
            if terminal
            else None
        )
        self._tenth = step * 10 // total_steps
        self._shown = time.monotonic()

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, values: dict[str, float]) -> None:
        """Show the latest means."""
        if not self._show:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif self._due(step):
            self._tenth, self._shown = step * 10 // self._total, time.monotonic()
            print(f"step {step}/{self._total}  {text}", file=sys.stderr, flush=True)

    def _due(self, step: int) -> bool:
        new_tenth = step * 10 // self._total > self._tenth
        return new_tenth or step == self._total or time.monotonic() - self._shown >= SILENCE

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = (
                value if isinstance(value, str | int | float | bool) else str(value)
            )
    return flat
