"""What the recipe that lies beside a trained model says of its data and its sampling."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError


def recipe_data(model: Any) -> dict[str, Any]:
    """The ``data`` section of the recipe beside ``model``; empty where there is none."""
    return _recipe(model).get("data") or {}


def recipe_call(model: Any, pipeline: Any) -> dict[str, Any]:
    """The arguments with which the recipe draws its samples: ``num_inference_steps`` and
    ``sample_call`` of its ``logging`` section, where ``pipeline`` takes them.

    A model of one step is ruined by fifty, and a solver of 25 needs no more.

    Args:
        model: folder of a run or a pipeline, or a Hub id; of a loaded pipeline nothing is known.
        pipeline: what was loaded from it.
    """
    logging = _recipe(model).get("logging") or {}
    call = {"num_inference_steps": logging.get("num_inference_steps")}
    call.update(logging.get("sample_call") or {})
    accepted = inspect.signature(pipeline.__call__).parameters
    return {k: v for k, v in call.items() if k in accepted and v is not None}


def _recipe(model: Any) -> dict[str, Any]:
    """The recipe in a folder or a repository; empty where there is none."""
    if not isinstance(model, str | Path):
        return {}
    file = Path(model) / "recipe.yaml" if Path(model).is_dir() else _of_the_hub(str(model))
    if file is None or not file.is_file():
        return {}
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}


def _of_the_hub(repo_id: str) -> Path | None:
    """The recipe of a repository; None where it cannot be had, since stock models have none."""
    try:
        return Path(hf_hub_download(repo_id, "recipe.yaml"))
    except (HfHubHTTPError, HFValidationError, OSError):
        return None
