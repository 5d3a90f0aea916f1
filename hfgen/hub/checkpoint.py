"""Training checkpoints on the Hub: optimizer states as safetensors and JSON, so that no pickle is
ever shared.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hfgen.errors import HfgenError

STATES = "optimizers.pt"
_PACKED = ("optimizers.safetensors", "optimizers.json")


@contextmanager
def packed_checkpoint(run: Path, wanted: bool) -> Iterator[dict[str, Path]]:
    """Path in the repository -> file of the run's newest checkpoint, for the time of the block; {}
    if not ``wanted``.

    Raises HfgenError when it is wanted and the run has none.
    """
    if not wanted:
        yield {}
        return
    newest = newest_checkpoint(run)
    if newest is None:
        raise HfgenError(
            f"{run}/checkpoints: no checkpoint to push; train first, or push without the checkpoint"
        )
    with tempfile.TemporaryDirectory() as scratch:
        pack_states(newest / STATES, Path(scratch))
        files = {
            path.name: path for path in newest.iterdir() if path.is_file() and path.name != STATES
        }
        files |= {name: Path(scratch) / name for name in _PACKED}
        yield {f"checkpoints/{newest.name}/{name}": path for name, path in files.items()}


def newest_checkpoint(run: Path) -> Path | None:
    """The run's ``checkpoints/checkpoint-<step>`` with the highest step."""
    found = [
        path
        for path in (run / "checkpoints").glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", path.name)
    ]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


def pack_states(states: Path, folder: Path) -> None:
    """Write a ``weights_only`` file as ``optimizers.safetensors`` (tensors) and ``optimizers.json``
    (everything else).
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten(torch.load(states, map_location="cpu", weights_only=True), tensors)
    save_file(tensors, folder / _PACKED[0])
    (folder / _PACKED[1]).write_text(json.dumps(tree), encoding="utf-8")


def unpack_states(folder: Path) -> None:
    """The inverse of ``pack_states``: the checkpoint folder is again as the trainer wrote it."""
    tensors_file, tree_file = (folder / name for name in _PACKED)
    try:
        states = _build(json.loads(tree_file.read_text(encoding="utf-8")), load_file(tensors_file))
    except (OSError, ValueError, KeyError) as error:
        raise HfgenError(f"{folder}: its optimizer states cannot be read ({error})") from None
    torch.save(states, folder / STATES)
    tensors_file.unlink()
    tree_file.unlink()


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.contiguous().clone()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[key, _flatten(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_flatten(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise HfgenError(
        f"optimizer state: a {type(value).__name__} cannot be shared; valid: tensors, numbers, "
        "text, lists"
    )


def _build(tree: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    kind, value = next(iter(tree.items()))
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _build(item, tensors) for key, item in value}
    if kind in ("list", "tuple"):
        items = [_build(item, tensors) for item in value]
        return items if kind == "list" else tuple(items)
    return value
