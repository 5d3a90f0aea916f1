"""When the objective sees a run go wrong, the run returns to its best checkpoint."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from hfgen.data import BatchStream
from hfgen.data.source import TensorSource
from hfgen.objectives.base import Objective, Phase
from hfgen.training.checkpoints import Checkpoints, read_state
from hfgen.training.config import EMAConfig, LoggingConfig, OptimizerConfig, TrainingConfig
from hfgen.training.log import Log
from hfgen.training.trainer import Hooks, Trainer


class Drift(Objective):
    """Walks off; says that it is lost once the weight has passed 3."""

    @property
    def phases(self):
        return (Phase(name="walk", trains=("model",)),)

    def loss(self, phase, models, batch, rng, clock):
        weight = models["model"].weight.sum()
        return -weight + 0 * batch["images"].sum(), {"weight": weight.detach()}

    def symptoms(self, terms, clock):
        return {"lost": "weight above 3"} if terms["weight"] > 3 else {}


def trainer(folder, roll_backs):
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    def evaluate(models):
        return {"fd": abs(models["model"].weight.item() - 2)}  # the best weight is 2

    return Trainer(
        accelerator=accelerator,
        objective=Drift(),
        models={"model": model},
        exported=("model",),
        stream=BatchStream(TensorSource(torch.zeros(8, 1, 1, 1)), 1, seed=0),
        training=TrainingConfig(
            total_batch_size=1,
            max_steps=10,
            evaluate_every=1,
            sample_every=0,
            checkpoint_every=1,
            roll_backs=roll_backs,
        ),
        optimizer=OptimizerConfig(type="sgd", learning_rate=1.0),
        ema=EMAConfig(half_lives=()),
        log=Log(accelerator, LoggingConfig(logging_steps=1), folder),
        checkpoints=Checkpoints(folder / "checkpoints", 3),
        recipe="name: x\n",
        hooks=Hooks(evaluate=evaluate),
    )


def walk(folder, roll_backs):
    folder.mkdir(exist_ok=True)
    made = trainer(folder, roll_backs)
    made.run()
    return made, made.models["model"].weight.item()


def test_back_to_the_best_at_half_the_rate(tmp_path, capsys):
    free, weight = walk(tmp_path / "free", 0)
    assert weight == 10 and free.now.roll_backs == 0
    once, weight = walk(tmp_path / "once", 1)
    # logged at step 5: 4 > 3; back to the weight 2 of step 2, and 5 more steps of a half
    assert weight == 2 + 5 * 0.5 and once.now.step == 10
    said = capsys.readouterr().err
    assert "rolled back to checkpoint-2 (fd 0) at step 5 for lost" in said
    last = Checkpoints(tmp_path / "once" / "checkpoints", None).latest()
    assert read_state(last)["roll_backs"] == 1


def test_the_number_of_times_is_a_limit_that_a_resume_keeps(tmp_path):
    twice, weight = walk(tmp_path, 2)
    assert twice.now.roll_backs == 2
    assert weight == 2.25  # 3.5 seen at step 9, back to 2, one step of a quarter
    again = trainer(tmp_path, 2)
    again.restore(Checkpoints(tmp_path / "checkpoints", None).latest())
    assert again.now == twice.now
    assert again._schedules["model"].get_last_lr() == [0.25]
    assert again.models["model"].weight.item() == weight


def test_it_needs_evaluations():
    with pytest.raises(ValueError, match="roll_backs needs evaluate_every"):
        TrainingConfig(roll_backs=1)
