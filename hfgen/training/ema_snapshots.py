"""Power-function averages of a run on disk, and any other width made of them.

``RUN/ema/<images seen>/<sigma_rel>-<role>.safetensors``, in half precision as in EDM2. Each
folder is written aside and renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hfgen.errors import HfgenError
from hfgen.training.ema import PowerEMA
from hfgen.training.posthoc_ema import Profile, combination, gamma_of, reconstruct


def save_averages(folder: Path, images_seen: int, averages: Sequence[PowerEMA]) -> None:
    """Write all ``averages`` as they are after ``images_seen`` images."""
    target = folder / f"{images_seen:012d}"
    aside = folder / f".writing-{target.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for average in averages:
        for role, model in average.models.items():
            file = aside / f"{average.sigma_rel!r}-{role}.safetensors"
            save_file({name: _half(value) for name, value in model.state_dict().items()}, file)
    shutil.rmtree(target, ignore_errors=True)  # the same moment, reached again after a resume
    os.replace(aside, target)


def _half(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous().clone()
    return value.half() if value.is_floating_point() else value


def reconstruct_width(folder: Path, role: str, sigma_rel: float) -> dict[str, Tensor]:
    """Weights of ``role``, float32, averaged with the relative width ``sigma_rel`` over the run.

    Raises:
        HfgenError: no averages are stored there; a width outside (0, 0.2886].
    """
    stored: list[tuple[Profile, Path]] = []
    for file in sorted(folder.glob(f"[0-9]*/*-{role}.safetensors")):
        width = float(file.name.removesuffix(f"-{role}.safetensors"))
        stored.append((Profile(int(file.parent.name), gamma_of(width)), file))
    if not stored:
        raise HfgenError(
            f"{folder}: no averages of {role} are stored; train with "
            "ema.sigma_rels, e.g. [0.05, 0.1]"
        )
    last = max(profile.images_seen for profile, _ in stored)
    try:
        target = Profile(last, gamma_of(sigma_rel))
    except ValueError as error:
        raise HfgenError(f"--sigma-rel: {error}") from None
    weights = combination([profile for profile, _ in stored], target)
    states = [_single(load_file(file)) for _, file in stored]
    return reconstruct(states, weights)


def _single(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in state.items()}
