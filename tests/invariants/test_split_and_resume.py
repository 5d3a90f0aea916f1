"""The laws of the trainer, on the shipped recipes, each with a broken variant that must fail.

One batch of 16 = 2 micro-batches of 8 = 2 processes x 8 = 2 processes x 2 micro-batches; a resumed
run = an uninterrupted one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hfgen.rng import Rng
from hfgen.training.trainer import Trainer
from tests.invariants.runs import (
    FAMILIES,
    distance,
    optimizers,
    run,
    run_in_processes,
    weights,
    words,
)

STEPS = 4
TOLERANCE = 1e-5
LENGTH = {"training__max_steps": str(STEPS), "training__checkpoint_every": "32"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Reference runs of all families, and the same in two processes."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = []
    for recipe in FAMILIES:
        run(recipe, folder / recipe / "1x16", **LENGTH)
        split = {"training__gradient_accumulation_steps": "2"}
        jobs.append(words(recipe, folder / recipe / "2p", **LENGTH))
        jobs.append(words(recipe, folder / recipe / "2p2", **LENGTH, **split))
        half = folder / recipe / "2p" / "checkpoints" / "checkpoint-2"
        jobs.append(
            words(
                recipe,
                folder / recipe / "2p-resumed",
                **LENGTH,
                training__resume_from_checkpoint=str(half),
            )
        )
    run_in_processes(2, jobs)
    return folder


@pytest.mark.parametrize("recipe", FAMILIES)
def test_processes_do_not_change_the_result(runs, recipe):
    whole = runs / recipe / "1x16"
    assert distance(whole, runs / recipe / "2p", STEPS) <= TOLERANCE
    assert distance(whole, runs / recipe / "2p2", STEPS) <= TOLERANCE


@pytest.mark.parametrize("recipe", FAMILIES)
def test_micro_batches_do_not_change_the_result(runs, recipe, tmp_path):
    split = run(recipe, tmp_path / "a", **LENGTH, training__gradient_accumulation_steps="2")
    assert distance(runs / recipe / "1x16", split, STEPS) <= TOLERANCE


@pytest.mark.parametrize("recipe", FAMILIES)
def test_the_gate_sees_draws_that_ignore_the_row(runs, recipe, tmp_path, monkeypatch):
    """Broken on purpose: every micro-batch draws the same noise."""
    original = Rng.__init__
    monkeypatch.setattr(
        Rng,
        "__init__",
        lambda self, *key, start=0, device="cpu": original(self, *key, device=device),
    )
    broken = run(recipe, tmp_path / "a", **LENGTH, training__gradient_accumulation_steps="2")
    assert distance(runs / recipe / "1x16", broken, STEPS) > 10 * TOLERANCE


@pytest.mark.parametrize("recipe", FAMILIES)
@pytest.mark.parametrize("processes", [1, 2])
def test_resume_is_the_uninterrupted_run(runs, recipe, processes, tmp_path):
    if processes == 1:
        whole = runs / recipe / "1x16"
        half = str(whole / "checkpoints" / "checkpoint-2")
        resumed = run(recipe, tmp_path / "a", **LENGTH, training__resume_from_checkpoint=half)
    else:
        whole, resumed = runs / recipe / "2p", runs / recipe / "2p-resumed"
    assert_identical(whole, resumed)


def assert_identical(whole: Path, resumed: Path) -> None:
    expected, actual = weights(whole, STEPS), weights(resumed, STEPS)
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    assert_equal(optimizers(whole, STEPS), optimizers(resumed, STEPS))


def assert_equal(a, b) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    else:
        assert a == b


@pytest.mark.parametrize("forgotten", ["optimizer", "stream", "clock", "average"])
def test_the_gate_sees_a_resume_that_forgets(runs, forgotten, tmp_path, monkeypatch):
    """Broken on purpose: one thing is not restored."""
    original = Trainer.restore

    def restore(self, checkpoint):
        kept = {
            "optimizer": {role: o.state_dict() for role, o in self._optimizers.items()},
            "stream": self._stream.state_dict(),
            "average": {
                r: {k: v.clone() for k, v in m.state_dict().items()}
                for r, m in self._emas[0].models.items()
            },
        }
        original(self, checkpoint)
        if forgotten == "optimizer":
            for role, state in kept["optimizer"].items():
                self._optimizers[role].load_state_dict(state)
        elif forgotten == "stream":
            self._stream.load_state_dict(kept["stream"])
        elif forgotten == "clock":
            self.now.images_seen = 0
        else:
            for role, model in self._emas[0].models.items():
                model.load_state_dict(kept["average"][role])

    monkeypatch.setattr(Trainer, "restore", restore)
    whole = runs / "mnist-vae" / "1x16"
    half = str(whole / "checkpoints" / "checkpoint-2")
    broken = run("mnist-vae", tmp_path / "a", **LENGTH, training__resume_from_checkpoint=half)
    with pytest.raises(AssertionError):
        assert_identical(whole, broken)
