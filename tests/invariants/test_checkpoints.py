"""Checkpoints: atomic, retained, and refused with one line when they are not whole."""

from __future__ import annotations

import errno
import shutil

import pytest
import torch
from torch import nn

from hfgen.errors import HfgenError
from hfgen.training import checkpoints as module
from hfgen.training.checkpoints import Checkpoints, Snapshot, load_into, read_state


def snapshot(step: int) -> Snapshot:
    torch.manual_seed(step)
    return Snapshot(
        {"vae": nn.Linear(2, 2)},
        {"optimizers": {"vae": {"step": step}}},
        {"step": step},
        "name: x\n",
    )


def test_what_is_saved_is_loaded(tmp_path):
    saved = snapshot(3)
    path = Checkpoints(tmp_path, None).save(saved)
    fresh = nn.Linear(2, 2)
    assert load_into(path, {"vae": fresh}) == saved.optimizers
    assert torch.equal(fresh.weight, saved.modules["vae"].weight)
    assert read_state(path)["step"] == 3


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    folder = Checkpoints(tmp_path, 2)
    folder.mark_best(folder.save(snapshot(1)), "fd", 5.0)
    for step in (2, 3, 10):
        folder.save(snapshot(step))
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-10",
        "checkpoint-3",
    ]
    assert folder.latest() == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("fails", ["save_file", "replace"])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch, fails):
    folder = Checkpoints(tmp_path, 3)
    folder.save(snapshot(1))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module if fails == "save_file" else module.os, fails, full)
    with pytest.raises(
        HfgenError, match=r"checkpoint-2: .*No space left.*last whole one is .*checkpoint-1"
    ):
        folder.save(snapshot(2))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    load_into(folder.latest(), {"vae": nn.Linear(2, 2)})


@pytest.mark.parametrize("missing", ["state.json", "optimizers.pt", "vae.safetensors"])
def test_a_half_written_checkpoint_is_refused(tmp_path, missing):
    path = Checkpoints(tmp_path, None).save(snapshot(1))
    (path / missing).unlink()
    with pytest.raises(HfgenError, match=missing.replace(".", r"\.")):
        read_state(path)
        load_into(path, {"vae": nn.Linear(2, 2)})


def test_truncated_weights_are_named(tmp_path):
    path = Checkpoints(tmp_path, None).save(snapshot(1))
    file = path / "vae.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(HfgenError, match=r"vae\.safetensors: cannot be read as safetensors"):
        load_into(path, {"vae": nn.Linear(2, 2)})


def test_a_foreign_folder_is_refused(tmp_path):
    with pytest.raises(HfgenError, match="not a whole checkpoint"):
        read_state(tmp_path)
    (tmp_path / "state.json").write_text('{"format": "other"}')
    with pytest.raises(HfgenError, match="not an hfgen checkpoint"):
        read_state(tmp_path)


def test_latest_without_any_is_one_line(tmp_path):
    with pytest.raises(HfgenError, match="no whole checkpoint"):
        Checkpoints(tmp_path / "none", 1).resolve("latest")


def test_what_a_killed_save_left_behind_is_cleared(tmp_path):
    folder = Checkpoints(tmp_path, None)
    (tmp_path / ".writing-checkpoint-7").mkdir(parents=True)
    folder.save(snapshot(8))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-8"]
    shutil.rmtree(tmp_path)
