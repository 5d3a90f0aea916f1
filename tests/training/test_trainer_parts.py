"""Pieces of the trainer against closed forms: averages, meters, schedules, phases."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from diffusers import EDMEulerScheduler
from torch import nn

from hfgen.errors import HfgenError
from hfgen.objectives.base import Clock, Objective, Phase
from hfgen.objectives.diffusion import Diffusion
from hfgen.rng import BLOCK, Rng
from hfgen.training.config import EMAConfig, OptimizerConfig
from hfgen.training.ema import EMA
from hfgen.training.log import Progress
from hfgen.training.meter import Meter
from hfgen.training.optimizers import (
    beta2,
    build_optimizer,
    build_schedule,
    config_for_role,
    halve_rates,
    set_beta2,
)
from hfgen.training.phase import PhaseModule, learned
from tests.tiny_unet import tiny_unet


def test_an_average_halves_its_distance_in_a_half_life():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = EMA({"m": model}, half_life=1000, rampup_ratio=None)
    nn.init.ones_(model.weight)
    for step in range(10):
        ema.update((step + 1) * 100, 100)
    assert ema.models["m"].weight.item() == pytest.approx(0.5, rel=1e-5)


def test_an_average_means_the_same_at_any_batch_size():
    decays = [
        EMA({}, 5000, 0.05).decay(10**6, batch) ** (600 // batch) for batch in (100, 200, 300)
    ]
    assert decays == pytest.approx([decays[0]] * 3)


def test_the_ramp_bounds_the_half_life():
    ema = EMA({}, half_life=1e9, rampup_ratio=0.05)
    assert ema.decay(images_seen=2000, batch=100) == pytest.approx(0.5)


def test_buffers_are_copied_and_averages_see_new_storage():
    model = nn.BatchNorm1d(2)
    ema = EMA({"m": model}, half_life=1.0, rampup_ratio=None)
    model.weight.data = torch.full((2,), 7.0)  # as DDP does when it wraps
    model.running_mean.fill_(3.0)
    for _ in range(60):
        ema.update(100, 100)
    assert ema.models["m"].weight.tolist() == pytest.approx([7.0, 7.0])
    assert ema.models["m"].running_mean.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("start", [0, 3, BLOCK, 5 * BLOCK + 7])
@pytest.mark.parametrize("kind", ["randn", "rand"])
def test_rows_of_a_draw_do_not_depend_on_the_split(start, kind):
    whole = getattr(Rng(1, 2, "phase"), kind)("eps", (8 * BLOCK, 3))
    part = getattr(Rng(1, 2, "phase", start=start), kind)("eps", (BLOCK + 5, 3))
    assert torch.equal(part, whole[start : start + BLOCK + 5])


def test_draws_differ_by_seed_step_phase_and_name():
    draws = [
        Rng(*key).randn(name, (4, 4))
        for key in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"))
        for name in ("eps", "t")
    ]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 8


def test_a_draw_is_standard_normal():
    draw = Rng(0).randn("eps", (4096, 16))
    assert abs(draw.mean()) < 0.02 and abs(draw.std() - 1) < 0.02
    assert abs(torch.corrcoef(draw.T) - torch.eye(16)).max() < 0.08


def test_a_lazy_term_is_averaged_over_its_own_steps():
    meter = Meter()
    for step in range(4):
        meter.add(
            {"loss": torch.tensor(float(step)), **({"r1": torch.tensor(8.0)} if step % 2 else {})}
        )
    assert meter.reduce(Accelerator()) == {"loss": 1.5, "r1": 8.0}
    assert meter.reduce(Accelerator()) == {}


def test_warm_up_is_in_training_steps():
    config = OptimizerConfig(
        learning_rate=1.0, lr_scheduler="constant_with_warmup", lr_warmup_steps=8
    )
    optimizer = build_optimizer(config, nn.Linear(1, 1))
    schedule = build_schedule(config, optimizer, steps=100)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([i / 8 for i in range(8)] + [1.0, 1.0])


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "rmsprop", "adafactor"])
def test_every_optimizer_descends(kind):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(OptimizerConfig(type=kind, learning_rate=0.05), model)
    x = torch.randn(64, 4)
    y = x.sum(1, keepdim=True)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_role_overrides_the_common_settings():
    config = OptimizerConfig(learning_rate=1e-3, roles={"discriminator": {"learning_rate": 4e-3}})
    assert config_for_role(config, "discriminator").learning_rate == 4e-3
    assert config_for_role(config, "generator").learning_rate == 1e-3
    with pytest.raises(HfgenError, match="did you mean 'learning_rate'"):
        config_for_role(OptimizerConfig(roles={"g": {"learning_rat": 1}}), "g")


class TwoModels(Objective):
    """a + b, of which a phase trains one."""

    @property
    def phases(self):
        return Phase(name="a", trains=("a",)), Phase(name="b", trains=("b",))

    def loss(self, phase, models, batch, rng, clock):
        total = models["a"](batch["images"]).sum() + models["b"](batch["images"]).sum()
        return total, {}


def test_a_phase_gives_gradients_to_its_own_models_only():
    models = {"a": nn.Linear(2, 1), "b": nn.Linear(2, 1), "scheduler": object()}
    learns = {role: learned(models[role]) for role in ("a", "b")}
    for phase in TwoModels().phases:
        module = PhaseModule(phase, TwoModels(), models, learns)
        module.unfreeze()
        module({"images": torch.ones(3, 2)}, Rng(0), None)[0].backward()
        other = "b" if phase.name == "a" else "a"
        assert models[phase.name].weight.grad is not None
        assert models[other].weight.grad is None
        models[phase.name].zero_grad(set_to_none=True)
        assert set(module.trained) == {phase.name}


class KeepsTheFirst(TwoModels):
    @property
    def phases(self):
        return (Phase(name="a", trains=("a",), keeps=("a.0",)),)


def test_a_phase_keeps_what_it_names():
    models = {"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), "b": nn.Linear(2, 1)}
    learns = {"a": learned(models["a"])}
    module = PhaseModule(KeepsTheFirst().phases[0], KeepsTheFirst(), models, learns)
    module.unfreeze()
    module({"images": torch.ones(3, 2)}, Rng(0), None)[0].backward()
    assert models["a"][0].weight.grad is None and models["a"][1].weight.grad is not None
    before = [p.clone() for p in models["a"].parameters()]
    build_optimizer(OptimizerConfig(adam_weight_decay=0.1), models["a"]).step()
    changed = [
        not torch.equal(p, old) for p, old in zip(models["a"].parameters(), before, strict=True)
    ]
    assert changed == [False, False, True, True]


def test_a_part_to_keep_must_exist():
    phase = Phase(name="a", trains=("a",), keeps=("a.2",))
    models = {"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))}
    with pytest.raises(HfgenError, match="unknown value 'a.2'.*a.0, a.1"):
        PhaseModule(phase, TwoModels(), models, {"a": learned(models["a"])})


@pytest.mark.parametrize("type_", ["fourier", "positional"])
def test_what_a_model_freezes_itself_is_not_learned(type_):
    """diffusers freezes the frequencies of a UNet's Fourier embedding when it is built."""
    unet = tiny_unet(time_embedding_type=type_)
    free = {name for name, p in unet.named_parameters() if p.requires_grad}
    frozen = dict(unet.named_parameters()).keys() - free
    assert frozen == ({"time_proj.weight"} if type_ == "fourier" else set())
    objective = Diffusion()
    models = {"unet": unet, "scheduler": EDMEulerScheduler()}
    optimizer = build_optimizer(OptimizerConfig(adam_weight_decay=0.1), unet)
    learns = {"unet": learned(unet)}
    for _ in range(2):  # a second module over the same models knows as much as the first
        module = PhaseModule(objective.phases[0], objective, models, learns)
    before = {name: p.clone() for name, p in unet.named_parameters()}
    module.unfreeze()
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    for _ in range(3):  # some gradients are zero until the last layer has moved
        module({"images": images}, Rng(0), Clock(0, 0, 10, 2))[0].backward()
        optimizer.step()
    moved = {n for n, p in unet.named_parameters() if not torch.equal(p, before[n])}
    assert moved == free


def test_a_schedule_may_end_above_zero():
    config = OptimizerConfig(learning_rate=2e-4, lr_scheduler="cosine", lr_final_ratio=0.25)
    optimizer = build_optimizer(config, nn.Linear(1, 1))
    schedule = build_schedule(config, optimizer, steps=100)
    rates = []
    for _ in range(101):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(2e-4) and rates[100] == pytest.approx(5e-5)
    assert rates[50] == pytest.approx((2e-4 + 5e-5) / 2)  # the middle of half a cosine


def test_beta2_moves_along_half_a_cosine():
    config = OptimizerConfig(type="adam", adam_beta2=0.9, final_adam_beta2=0.99)
    assert [beta2(config, x) for x in (0, 0.5, 1)] == pytest.approx([0.9, 0.945, 0.99])
    assert beta2(OptimizerConfig(adam_beta2=0.9), 0.5) == 0.9
    model = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(config, model)
    second = 0.0
    for step in range(5):
        value = beta2(config, step / 4)
        set_beta2(optimizer, value)
        model.weight.grad = torch.full((1, 1), float(step + 1))
        optimizer.step()
        second = value * second + (1 - value) * (step + 1) ** 2
    assert optimizer.state[model.weight]["exp_avg_sq"].item() == pytest.approx(second, rel=1e-5)
    with pytest.raises(ValueError, match="sgd has no beta2"):
        OptimizerConfig(type="sgd", final_adam_beta2=0.9)


def test_the_half_life_grows_along_half_a_cosine():
    ema = EMA({}, half_life=1000, rampup_ratio=None, ramp_images=8000)
    for seen, half_life in ((4000, 500), (8000, 1000), (9000, 1000)):
        assert ema.decay(seen, 100) == pytest.approx(0.5 ** (100 / half_life))
    assert ema.decay(0, 100) == 0  # the first step: the average is the model
    with pytest.raises(ValueError, match="ramp_images wants rampup_ratio: null"):
        EMAConfig(ramp_images=10)


def test_halved_rates_stay_halved():
    config = OptimizerConfig(learning_rate=1.0, lr_scheduler="linear")
    optimizer = build_optimizer(config, nn.Linear(1, 1))
    schedule = build_schedule(config, optimizer, steps=10)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    halve_rates(schedule)
    assert optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] == pytest.approx(0.3)
    again = build_schedule(config, build_optimizer(config, nn.Linear(1, 1)), steps=10)
    again.load_state_dict(schedule.state_dict())
    for one in (schedule, again):
        one.optimizer.step()
        one.step()
        assert one.get_last_lr()[0] == pytest.approx(0.25)


def test_a_run_written_to_a_file_shows_each_tenth_and_is_never_silent_for_long(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("hfgen.training.log.time.monotonic", lambda: now[0])
    progress = Progress(100, 0, show=True)
    for step in range(5, 101, 5):
        now[0] += 30 if step <= 20 else 100  # tenths of one minute, then of three
        progress.report(step, {"loss": 0.5})
    shown = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().err.splitlines()]
    assert shown == [10, 20, *range(25, 101, 5)]
