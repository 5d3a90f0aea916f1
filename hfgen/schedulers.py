"""Which schedulers sample a trained network: those with its path and its prediction."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import torch

from hfgen.config import resolve
from hfgen.denoising import DiscretePath, Flow, LinearPath, Parameterisation, parameterisation
from hfgen.errors import HfgenError, one_of
from hfgen.pipelines.diffusion_pipeline import DenoisingPipeline  # pyright: ignore[reportMissingImports]
from hfgen.recipe import MODELS

_ON_FLOWS = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)
"""Stock schedulers for the linear path that name no flow scheduler among their compatibles."""
_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


def fitting(current: Any) -> dict[str, Any]:
    """Schedulers by name, ready, that sample what ``current`` samples.

    Compatible in diffusers means only that a config can be read: a DDPM's noise prediction loads
    into EDMEulerScheduler, which takes it for something else, and HeunDiscreteScheduler takes its
    own noise table where the config's has its default. So all settings are handed on, and path and
    prediction compared.
    """
    wanted = parameterisation(current)
    config, found = dict(current.config), {}
    for name, options in sorted(_candidates(current, wanted).items()):
        cls = resolve(MODELS[name]) if name in MODELS else getattr(diffusers, name)
        taken = inspect.signature(cls.__init__).parameters
        try:
            scheduler = cls.from_config(
                {k: v for k, v in {**config, **options}.items() if k in taken}
            )
            if same(parameterisation(scheduler), wanted):
                found[name] = scheduler
        except (ValueError, ImportError, NotImplementedError):
            continue  # a prediction that it does not take, or a library that is not installed
    return found


def _candidates(current: Any, wanted: Parameterisation) -> dict[str, dict[str, Any]]:
    """Names, and the settings to add to the config of ``current``."""
    names: dict[str, dict[str, Any]] = {cls.__name__: {} for cls in current.compatibles}
    names[type(current).__name__] = {}
    for name, path in MODELS.items():
        if name.endswith("Scheduler") and type(current).__name__ in resolve(path)._compatibles:
            names[name] = {}
    if isinstance(wanted.path, LinearPath):
        is_flow = isinstance(wanted.prediction, Flow)
        settings = {"use_flow_sigmas": True, "flow_shift": current.config.get("shift", 1.0)}
        kind = "flow_prediction" if is_flow else current.config.prediction_type
        names |= {name: {**settings, "prediction_type": kind} for name in _ON_FLOWS}
        names |= {name: {} for name in _FLOWS if is_flow}
        names[type(current).__name__] = {}
    return names


def same(a: Parameterisation, b: Parameterisation) -> bool:
    """Whether a network for one is a network for the other."""
    if isinstance(a.path, DiscretePath) and isinstance(b.path, DiscretePath):
        tables = a.path.alphas_cumprod, b.path.alphas_cumprod
        paths = tables[0].shape == tables[1].shape and torch.allclose(*tables, atol=1e-6)
    else:
        paths = a.path == b.path
    return paths and a.prediction == b.prediction


def swapped(pipeline: Any, name: str) -> Any:
    """The pipeline with the scheduler ``name``, with the settings of its own.

    Stock unconditional pipelines scale no inputs, which half of the schedulers need: ours takes
    their place.

    Raises:
        HfgenError: a pipeline without one, an unknown name, one for another path or prediction.
    """
    current = getattr(pipeline, "scheduler", None)
    if current is None:
        raise HfgenError(f"--scheduler: {type(pipeline).__name__} has no scheduler")
    valid = fitting(current)
    if name not in valid:
        raise one_of("--scheduler", name, list(valid))
    return with_scheduler(pipeline, valid[name])


def with_scheduler(pipeline: Any, scheduler: Any) -> Any:
    """The pipeline with another scheduler, or ours over the networks of a stock one."""
    parts = pipeline.components
    if type(pipeline).__name__ in ("DDPMPipeline", "DDIMPipeline", "LDMPipeline"):
        return DenoisingPipeline(
            unet=parts["unet"], scheduler=scheduler, vae=parts.get("vqvae", parts.get("vae"))
        )
    pipeline.scheduler = scheduler
    return pipeline
