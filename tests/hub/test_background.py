"""Pushing while training goes on: a step never waits, failures are told, the newest wins."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from hub_client import same

from hfgen.errors import HfgenError
from hfgen.hub.background import BackgroundPusher, RunPusher, Snapshot
from hfgen.hub.checkpoint import newest_checkpoint, pack_states, unpack_states
from hfgen.hub.client import HubUnavailable
from hfgen.hub.config import HubConfig

UNAVAILABLE = HubUnavailable("user/x: no connection")


class Sender:
    """Stands where `push` is called; waits while `gate` is closed, raises what `failures` holds."""

    def __init__(self, *failures: Exception, open_gate: bool = True):
        self.failures, self.sent, self.gate = list(failures), [], threading.Event()
        if open_gate:
            self.gate.set()

    def __call__(self, snapshot: Snapshot):
        assert self.gate.wait(10)
        self.sent.append(snapshot.message)
        if self.failures:
            raise self.failures.pop(0)
        return snapshot.message


def snapshot(tmp_path: Path, name: str) -> Snapshot:
    folder = tmp_path / name
    folder.mkdir()
    return Snapshot(folder, name)


def pusher(sender: Sender, **how) -> tuple[BackgroundPusher, list[str]]:
    said: list[str] = []
    return BackgroundPusher(sender, report=said.append, first_wait=0.01, **how), said


def test_submit_returns_at_once_and_the_newest_wins(tmp_path):
    sender = Sender(open_gate=False)
    background, said = pusher(sender)
    start = time.monotonic()
    first = snapshot(tmp_path, "first")
    background.submit(first)
    while background._next is not None:  # until the thread holds it
        time.sleep(0.001)
    others = [snapshot(tmp_path, name) for name in ("second", "third")]
    for other in others:
        background.submit(other)
    assert time.monotonic() - start < 1
    assert not background.wait(0.05)
    sender.gate.set()
    assert background.wait(10)
    assert background.done == ["first", "third"] and said == []
    assert not any(s.folder.exists() for s in (first, *others))


def test_an_unavailable_hub_is_tried_again(tmp_path):
    sender = Sender(UNAVAILABLE, UNAVAILABLE)
    background, said = pusher(sender)
    background.submit(snapshot(tmp_path, "one"))
    assert background.wait(10)
    assert background.done == ["one"] and len(sender.sent) == 3
    assert len(said) == 2 and all("trying again" in line for line in said)


def test_it_gives_up_after_the_last_attempt_and_goes_on(tmp_path):
    sender = Sender(UNAVAILABLE, UNAVAILABLE)
    background, said = pusher(sender, attempts=2)
    lost = snapshot(tmp_path, "lost")
    background.submit(lost)
    assert background.wait(10)
    assert background.done == [] and "given up" in said[-1] and not lost.folder.exists()
    background.submit(snapshot(tmp_path, "next"))
    assert background.wait(10)
    assert background.done == ["next"]


def test_another_refusal_is_told_and_not_repeated(tmp_path):
    sender = Sender(HfgenError("user/x: the token is refused (401)"))
    background, said = pusher(sender)
    background.submit(snapshot(tmp_path, "refused"))
    assert background.wait(10)
    assert sender.sent == ["refused"] and "token is refused" in said[0]


def test_an_error_that_nobody_foresaw_is_told_and_waits_for_no_one(tmp_path):
    sender = Sender(KeyError("x"))
    background, said = pusher(sender)
    background.submit(snapshot(tmp_path, "odd"))
    assert background.wait(10)
    assert "KeyError('x')" in said[0]
    background.submit(snapshot(tmp_path, "next"))
    assert background.wait(10) and background.done == ["next"]


def test_a_newer_snapshot_replaces_one_that_failed(tmp_path):
    sender = Sender(UNAVAILABLE)
    background, _ = pusher(sender)
    background.first_wait = 30.0
    background.submit(snapshot(tmp_path, "old"))
    while not sender.sent:
        time.sleep(0.001)
    background.submit(snapshot(tmp_path, "new"))
    assert background.wait(10)
    assert background.done == ["new"]


# ----------------------------------------------------------------------------- a run's rhythm


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step, "images_seen": 10 * step}))
    return folder


def export(folder: Path) -> None:
    folder.mkdir(parents=True)


@pytest.mark.parametrize(
    ("strategy", "every", "expected"),
    [
        ("end", None, []),
        ("every_save", None, [100, 200, 300, 400]),
        ("every_save", 150, [200, 400]),
        ("checkpoint", 300, [300]),
    ],
)
def test_when_a_run_pushes(tmp_path, strategy, every, expected):
    config = HubConfig(
        push_to_hub=True, hub_model_id="user/x", strategy=strategy, push_every_images=every
    )
    background, _ = pusher(Sender())
    run = RunPusher(tmp_path, config, pusher=background)
    pushed = []
    for step in (10, 20, 30, 40):
        if run.saved(checkpoint(tmp_path, step), export):
            pushed.append(10 * step)
    assert pushed == expected
    assert background.wait(10)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"push_to_hub": True}, "hub_model_id"),
        ({"push_every_images": 0, "strategy": "every_save"}, "positive"),
        ({"push_every_images": 10}, "no effect"),
    ],
)
def test_a_hub_section_that_makes_no_sense(values, said):
    with pytest.raises(ValueError, match=said):
        HubConfig(**values)


# ------------------------------------------------------------------ optimizer states as safetensors


def test_optimizer_states_travel_without_a_pickle(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    states = {"step": optimizer.state_dict(), "scheduler": {"last": (1, 2.5, None, True, "x")}}
    torch.save(states, tmp_path / "optimizers.pt")
    pack_states(tmp_path / "optimizers.pt", tmp_path)
    (tmp_path / "optimizers.pt").unlink()
    unpack_states(tmp_path)
    read = torch.load(tmp_path / "optimizers.pt", weights_only=True)
    assert same(read, states)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["optimizers.pt"]


def test_newest_checkpoint_by_number(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for step in (90, 100, 1000):
        checkpoint(tmp_path, step)
    assert newest_checkpoint(tmp_path).name == "checkpoint-1000"


# --------------------------------------------------------------------------- against the Hub


def test_a_slow_hub_does_not_hold_a_step(hub, client, run_folder):
    """Steps go on while an upload hangs for two seconds; the failure before it is told."""
    hub.fail("POST .*/commit/main", "status", status=401)
    hub.fail("POST .*/commit/main", "wait", seconds=2)
    steps, said, left = client.run(
        """
        import json, os, shutil, time
        from pathlib import Path
        from hfgen.hub.background import RunPusher
        from hfgen.hub.config import HubConfig
        os.environ["HF_TOKEN"] = "hf_user"
        run, said, steps = Path(folder), [], []
        config = HubConfig(
            push_to_hub=True, hub_model_id="user/slow", strategy="checkpoint", private=True
        )
        pusher = RunPusher(run, config)
        pusher._background.report = said.append
        def export(target):
            shutil.copytree(run / "pipeline", target)
        import torch
        for step in range(1, 4):
            start = time.monotonic()
            checkpoint = run / "checkpoints" / f"checkpoint-{step}"
            checkpoint.mkdir(parents=True)
            state = {"format": "x", "step": step, "images_seen": step}
            (checkpoint / "state.json").write_text(json.dumps(state))
            torch.save({"lr": torch.ones(2)}, checkpoint / "optimizers.pt")
            pusher.saved(checkpoint, export)
            steps.append(time.monotonic() - start)
            if step == 1:
                pusher._background.wait()
        pusher.finish()
        del os.environ["HF_TOKEN"]
        result = [steps, said, len(list(run.glob(".push-*")))]
        """,
        folder=str(run_folder),
    )
    assert max(steps) < 1
    assert len(said) == 1 and "token is refused" in said[0]
    assert left == 0 and hub.repos["models/user/slow"].private is True
    # The first was refused, the second or third waited; the end had only the pictures to add.
    titles = ["tiny-ddpm: training finished", "tiny-ddpm at 3 images"]
    assert hub.history("user/slow")[:2] == titles
    files = hub.files("user/slow")
    assert "checkpoints/checkpoint-3/optimizers.safetensors" in files
    assert not [name for name in files if name.endswith(".pt") or "checkpoint-1" in name]


def test_a_run_goes_on_from_the_hub(hub, client, run_folder, tmp_path):
    folder = run_folder / "checkpoints" / "checkpoint-7"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"step": 7}')
    torch.save({"exp_avg": torch.arange(5.0)}, folder / "optimizers.pt")
    client.run(
        """
        from hfgen.hub.push import push
        push(folder, "user/resume", token="hf_user", checkpoint=True)
        from pathlib import Path
        from hfgen.hub.fetch import fetch_run
        fetch_run("user/resume", Path(target), token="hf_user")
        """,
        folder=str(run_folder),
        target=str(tmp_path / "elsewhere"),
    )
    run = tmp_path / "elsewhere"
    numbers = (run_folder / "evaluation" / "metrics.json").read_bytes()
    assert (run / "metrics.json").read_bytes() == numbers
    for name in ("recipe.yaml", "metrics.jsonl", "environment.json", "pipeline/model_index.json"):
        assert (run / name).read_bytes() == (run_folder / name).read_bytes()
    states = torch.load(run / "checkpoints/checkpoint-7/optimizers.pt", weights_only=True)
    assert torch.equal(states["exp_avg"], torch.arange(5.0))
    assert not list(run.rglob("optimizers.json"))
