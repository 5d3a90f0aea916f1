"""What a run's files say about it: the facts that a card shows. Nothing is computed here, and no
weights are read.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from hfgen.errors import HfgenError
from hfgen.hub.folder import (
    Shared,
    check_pipeline,
    collect,
    components,
    metrics_file,
    parse_mapping,
    pictures,
)

TASK = "unconditional-image-generation"
FROM_TEXT = "text-to-image"
SCORING = "zero-shot-image-classification"
"""Tasks as the Hub names them; the last is that of a dual encoder, which draws nothing."""
CAPTIONS = {
    "grid": "Samples, not selected",
    "interpolation": "Walks between two latents",
    "reconstructions": "Images of the data (upper rows) and their reconstructions (lower rows)",
    "denoising": "From noise to images, left to right",
    "similarity": "Cosine similarity of held-out images (columns) and captions (rows)",
}
FAMILIES = {"clip": "clip", "codes": "codes", "tokenizer": "text", "scheduler": "diffusion"} | {
    "generator": "gan",
    "vae": "vae",
}
"""What the card is about, by the first of these roles that the pipeline has."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number of ``metrics.json``.

    ``standard_error`` is None when unknown; ``settings`` are the metric's own constants and
    ``protocol`` says on what and how it was measured, both in words.
    """

    metric: str
    value: float
    standard_error: float | None = None
    better: str = "lower"
    settings: str = ""
    protocol: str = ""

    @property
    def text(self) -> str:
        """The value, with as many digits as its error bar supports."""
        if not self.standard_error or not math.isfinite(self.standard_error):
            return f"{self.value:.4g}"
        error = Decimal(f"{self.standard_error:.2g}")
        digits = max(0, -int(error.as_tuple().exponent))
        return f"{self.value:.{digits}f} ± {error:.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run or a bare pipeline, as its files describe it."""

    shared: Shared
    index: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.recipe.get("name") or (self.shared.run or self.shared.pipeline).name)

    @property
    def code(self) -> list[str]:
        """Files that ``trust_remote_code`` runs; none when diffusers has all classes itself."""
        return [name for name in sorted(self.shared.files) if name.endswith(".py")]

    @property
    def family(self) -> str:
        """clip, codes, text, diffusion, gan or vae; "" for a pipeline of none of these."""
        roles = components(self.index)
        own = str(self.recipe.get("family", ""))
        found = next((family for role, family in FAMILIES.items() if role in roles), "")
        return own if own not in ("", "text") else found

    @property
    def task(self) -> str:
        roles = components(self.index)
        if "clip" in roles:
            return SCORING
        return FROM_TEXT if "tokenizer" in roles else TASK

    @property
    def prompts(self) -> list[str]:
        """The texts that the recipe names as samples."""
        return list(self.recipe.get("logging", {}).get("sample_prompts") or [])

    @property
    def dataset(self) -> str:
        """What the recipe names as its data; "" for a bare pipeline."""
        return str(self.recipe.get("data", {}).get("path", ""))

    def config_value(self, key: str) -> Any:
        """The value of ``key`` in the first component config that sets it; None without one."""
        for name in components(self.index):
            for path in sorted((self.shared.pipeline / name).glob("*config.json")):
                value = _read_json(path).get(key)
                if value is not None:
                    return value
        return None

    def picture_files(self) -> list[Path]:
        return pictures(self.shared.run or self.shared.pipeline)


def read_facts(folder: str | Path) -> Facts:
    """The facts of a run or a pipeline folder. Raises HfgenError, as ``collect`` does, and for
    unreadable JSON.
    """
    shared = collect(folder)
    base = shared.run or shared.pipeline
    recipe = base / "recipe.yaml"
    index = check_pipeline(shared.pipeline)
    return Facts(
        shared=shared,
        index=index,
        recipe=parse_mapping(recipe.read_text(encoding="utf-8"), str(recipe))
        if recipe.is_file()
        else {},
        results=read_results(metrics_file(base)),
        last=_last_line(base / "metrics.jsonl"),
        environment=_read_json(base / "environment.json"),
        parameters={name: count_parameters(shared.pipeline / name) for name in components(index)},
    )


def read_results(path: Path) -> list[Result]:
    """The numbers of a ``metrics.json``; none when there is no such file."""
    values = _read_json(path)
    try:
        protocols = {key: about["summary"] for key, about in values.get("protocols", {}).items()}
        return [_result(score, protocols) for score in values.get("scores", [])]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HfgenError(
            f"{path}: not written by hfgen evaluate ({error!r}); measure again"
        ) from None


def _result(score: dict[str, Any], protocols: dict[str, str]) -> Result:
    return Result(
        metric=str(score["name"]),
        value=float(score["value"]),
        standard_error=score.get("standard_error"),
        better=str(score.get("better", "lower")),
        settings=str(score.get("settings", "")),
        protocol=protocols[score["protocol"]] if score.get("protocol") else "",
    )


def count_parameters(folder: Path) -> int:
    """Elements of all tensors in a component's safetensors files, from their headers. 0 for a
    component without weights.
    """
    files = [
        path
        for path in folder.glob("*.safetensors")
        if not re.search(r"\.(fp16|bf16)[.-]", path.name)
    ]
    return sum(_elements(shape) for path in files for shape in tensor_shapes(path).values())


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Tensor -> shape, from the header of a safetensors file (8 bytes of length, then JSON);
    HfgenError if broken.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        end = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"),
            default=0,
        )
        if 8 + length + end != path.stat().st_size:
            raise ValueError(
                f"it has {path.stat().st_size} bytes where its header says {8 + length + end}"
            )
        return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise HfgenError(f"{path}: not a whole safetensors file ({error})") from None


def _elements(shape: list[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HfgenError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise HfgenError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _last_line(path: Path) -> dict[str, Any]:
    """The last line of ``metrics.jsonl`` that carries the time of training."""
    if not path.is_file():
        return {}
    lines = [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    timed = [line for line in lines if "seconds" in line]
    return timed[-1] if timed else {}
