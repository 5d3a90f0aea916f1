"""What diffusers' SchedulerCommonTest checks of its schedulers holds for ours."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tiny_models import SCHEDULER_CASES, normal

from hfgen.config import resolve
from hfgen.recipe import MODELS


@pytest.fixture(params=SCHEDULER_CASES)
def scheduler(request):
    name, options = SCHEDULER_CASES[request.param]
    return resolve(MODELS[name])(**options)


def sample(scheduler, steps: int = 3, return_dict: bool = True) -> torch.Tensor:
    """The whole loop with a linear network."""
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps)
    x = normal(2, 1, 4, 4) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = 0.1 * scheduler.scale_model_input(x, t)
        step = scheduler.step(output, t, x, generator=generator, return_dict=return_dict)
        x = step.prev_sample if return_dict else step[0]
    return x


def test_the_loop_ends_in_a_sample_of_the_same_shape(scheduler):
    x = sample(scheduler)
    assert x.shape == (2, 1, 4, 4) and x.dtype == torch.float32 and x.isfinite().all()
    torch.testing.assert_close(sample(scheduler), x, rtol=0, atol=0)
    assert not torch.equal(sample(scheduler, steps=4), x)


def test_save_and_load(scheduler, tmp_path):
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    assert {**loaded.config, "_use_default_values": 0} == {
        **scheduler.config,
        "_use_default_values": 0,
    }
    torch.testing.assert_close(sample(loaded), sample(scheduler), rtol=0, atol=0)


def test_tuples_and_dicts_are_equivalent(scheduler):
    torch.testing.assert_close(
        sample(scheduler, return_dict=False), sample(scheduler), rtol=0, atol=0
    )


def test_its_config_makes_the_compatible_ones_and_comes_back(scheduler):
    for name in scheduler._compatibles:
        other = getattr(diffusers, name).from_config(scheduler.config)
        again = type(scheduler).from_config(other.config)
        torch.testing.assert_close(sample(again), sample(scheduler), rtol=0, atol=0)
