"""The processes of this evaluation, as Accelerate sees them."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from hfgen.errors import HfgenError


def world() -> PartialState:
    """This process among all; joins them at the first call.

    Raises:
        HfgenError: a launcher started several processes that Accelerate does not join: each would
            measure everything alone and write over the others.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # unlike Accelerator, PartialState reads no environment to decide for the CPU
    without_gpu = launched > 1 and not torch.cuda.is_available()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or without_gpu)
    if state.num_processes != launched:
        raise HfgenError(
            f"environment: WORLD_SIZE is {launched} but Accelerate runs {state.num_processes} "
            "process(es); start with accelerate launch, or unset WORLD_SIZE"
        )
    return state
