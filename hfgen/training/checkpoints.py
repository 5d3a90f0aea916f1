"""Checkpoints on disk: written aside and then renamed, so that the latest one is whole whatever
happens.

A checkpoint is a folder ``checkpoint-<step>``: ``<model>.safetensors`` for every model and average,
``optimizers.pt`` (read with ``weights_only``), ``state.json`` (counters) and the run's
``recipe.yaml``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hfgen.errors import HfgenError

FORMAT = "hfgen-checkpoint-1"
_NAME = re.compile(r"checkpoint-(\d+)$")


@dataclass(frozen=True)
class Snapshot:
    """Everything that must survive: modules by file name, what only torch can pickle safely, and
    plain counters.
    """

    modules: Mapping[str, nn.Module]
    optimizers: dict[str, Any]
    state: dict[str, Any]
    recipe: str


class Checkpoints:
    """The ``checkpoints`` folder of one run."""

    def __init__(self, folder: Path, total_limit: int | None):
        self.folder = folder
        self._total_limit = total_limit

    def save(self, snapshot: Snapshot) -> Path:
        """Write ``checkpoint-<step>`` atomically and drop the oldest beyond the limit (never the
        best).

        Raises HfgenError when the disk refuses; the earlier checkpoints stay as they were.
        """
        target = self.folder / f"checkpoint-{snapshot.state['step']}"
        aside = self.folder / f".writing-{target.name}"
        try:
            self._clear_aside()
            aside.mkdir(parents=True)
            _write(aside, snapshot)
            if target.exists():  # the same step, saved again after a resume
                shutil.rmtree(target)
            os.replace(aside, target)
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            last = self.latest()
            kept = f"the last whole one is {last}" if last else "there is no earlier one"
            raise HfgenError(
                f"{target}: checkpoint not written ({error.strerror or error}); {kept}"
            ) from None
        self._retain()
        return target

    def latest(self) -> Path | None:
        """The checkpoint with the highest step."""
        found = self._all()
        return found[-1] if found else None

    def best(self) -> dict[str, Any] | None:
        """``{"checkpoint": name, "metric": name, "value": number}`` of the best so far."""
        file = self.folder / "best.json"
        return json.loads(file.read_text()) if file.exists() else None

    def mark_best(self, checkpoint: Path, metric: str, value: float) -> None:
        """Remember ``checkpoint`` as the one with the lowest ``metric``."""
        write_text(
            self.folder / "best.json",
            json.dumps({"checkpoint": checkpoint.name, "metric": metric, "value": value}),
        )

    def resolve(self, name: str) -> Path:
        """The folder that ``resume_from_checkpoint`` means: "latest" or a path."""
        if name == "latest":
            latest = self.latest()
            if latest is None:
                raise HfgenError(
                    f"resume_from_checkpoint: no whole checkpoint in {self.folder}; start "
                    f"without --resume"
                )
            return latest
        path = Path(name)
        if not path.is_dir():
            raise HfgenError(
                f"resume_from_checkpoint: {name} is not a folder; give 'latest' or a "
                f"checkpoint-<step> folder"
            )
        return path

    def _all(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        found = [p for p in self.folder.iterdir() if _NAME.match(p.name) and p.is_dir()]
        return sorted(found, key=lambda p: int(_NAME.match(p.name)[1]))  # type: ignore[index]

    def _clear_aside(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".writing-*"):
            shutil.rmtree(left)

    def _retain(self) -> None:
        best = self.best()
        kept = [p for p in self._all() if not best or p.name != best["checkpoint"]]
        for old in kept[: -self._total_limit] if self._total_limit else []:
            shutil.rmtree(old)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Counters of a checkpoint; HfgenError when the folder is half-written or not one of ours."""
    file = checkpoint / "state.json"
    try:
        state = json.loads(file.read_text())
    except (OSError, ValueError):
        raise HfgenError(
            f"resume_from_checkpoint: {checkpoint} is not a whole checkpoint (no readable "
            f"state.json)"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise HfgenError(
            f"resume_from_checkpoint: {checkpoint} is not an hfgen checkpoint of format {FORMAT}"
        )
    return state


def load_into(checkpoint: Path, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Fill ``modules`` from a checkpoint and return the optimizers' states."""
    for name, module in modules.items():
        load_module(checkpoint / f"{name}.safetensors", module)
    try:
        return torch.load(checkpoint / "optimizers.pt", map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise HfgenError(
            f"resume_from_checkpoint: {checkpoint}/optimizers.pt cannot be read: "
            f"{_first_line(error)}"
        ) from None


def load_module(file: Path, module: nn.Module) -> None:
    """Load one module's weights; HfgenError names the file where they are missing, broken or of
    another shape.
    """
    try:
        module.load_state_dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise HfgenError(f"{file}: cannot be read as safetensors: {_first_line(error)}") from None
    except RuntimeError as error:
        raise HfgenError(
            f"{file}: does not fit {type(module).__name__}: {_first_line(error)}"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never half."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _write(folder: Path, snapshot: Snapshot) -> None:
    for name, module in snapshot.modules.items():
        save_file(_own_tensors(module), folder / f"{name}.safetensors")
    torch.save(snapshot.optimizers, folder / "optimizers.pt")
    (folder / "recipe.yaml").write_text(snapshot.recipe, encoding="utf-8")
    state = {"format": FORMAT, **snapshot.state}
    (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    for file in folder.iterdir():
        _sync(file)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    return {
        key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
