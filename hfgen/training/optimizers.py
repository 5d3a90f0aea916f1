"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from diffusers.optimization import SchedulerType, get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hfgen.errors import HfgenError, one_of
from hfgen.training.config import OptimizerConfig
from hfgen.training.phase import learned


def config_for_role(config: OptimizerConfig, role: str) -> OptimizerConfig:
    """The settings for one role: the common ones with that role's overrides."""
    valid = [f.name for f in dataclasses.fields(config) if f.name not in ("roles", "max_grad_norm")]
    overrides = config.roles.get(role, {})
    for key in overrides:
        if key not in valid:
            raise one_of(f"optimizer.roles.{role}", key, valid)
    try:
        return dataclasses.replace(config, roles={}, **overrides)
    except ValueError as error:
        raise HfgenError(f"optimizer.roles.{role}: {error}") from None


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer over what ``model`` learns; the fused kernel where torch has one for the
    device.
    """
    parameters = learned(model)
    adam: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.adam_weight_decay,
        "fused": all(
            p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parameters
        ),
    }
    plain: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.adam_weight_decay}
    match config.type:
        case "adamw":
            return torch.optim.AdamW(parameters, **adam)
        case "adam":
            return torch.optim.Adam(parameters, **adam)
        case "sgd":
            return torch.optim.SGD(parameters, momentum=config.momentum, **plain)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, momentum=config.momentum, **plain)
        case "adafactor":
            return torch.optim.Adafactor(parameters, **plain)
    raise one_of("optimizer.type", config.type, ["adamw", "adam", "sgd", "rmsprop", "adafactor"])


def build_schedule(
    config: OptimizerConfig, optimizer: torch.optim.Optimizer, steps: int
) -> LambdaLR:
    """A diffusers learning-rate schedule over ``steps`` training steps; stepped once per training
    step.
    """
    names = [kind.value for kind in SchedulerType if kind.value != "piecewise_constant"]
    if config.lr_scheduler not in names:
        raise one_of("optimizer.lr_scheduler", config.lr_scheduler, names)
    schedule = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )
    if config.lr_final_ratio:
        share, falling = config.lr_final_ratio, schedule.lr_lambdas
        schedule.lr_lambdas = [lambda step, f=f: share + (1 - share) * f(step) for f in falling]
    return schedule


def beta2(config: OptimizerConfig, progress: float) -> float:
    """Adam's second decay at a share ``progress`` of the run, in [0, 1]."""
    first, last = config.adam_beta2, config.final_adam_beta2
    if last is None:
        return first
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def set_beta2(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Adam's second decay from the next step on."""
    for group in optimizer.param_groups:
        group["betas"] = (group["betas"][0], value)


def halve_rates(schedule: LambdaLR) -> None:
    """From now on half of the learning rates that ``schedule`` would have set; its state dict
    remembers.
    """
    schedule.base_lrs = [0.5 * rate for rate in schedule.base_lrs]
    rates = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    schedule._last_lr = [rate * share(schedule.last_epoch) for rate, share in rates]
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate
