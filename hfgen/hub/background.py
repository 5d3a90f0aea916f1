"""Pushing while training goes on: snapshots are handed to a thread, the newest one wins."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hfgen.errors import HfgenError
from hfgen.hub.client import HubUnavailable
from hfgen.hub.config import HubConfig
from hfgen.hub.folder import record
from hfgen.hub.pictures import refresh_pictures
from hfgen.hub.push import Pushed, push


@dataclass
class Snapshot:
    """A folder that belongs to the pusher, which deletes it when it is pushed or given up."""

    folder: Path
    message: str
    failures: int = 0

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _say(line: str) -> None:
    print(f"hfgen: {line}", file=sys.stderr, flush=True)


@dataclass
class BackgroundPusher:
    """One thread that pushes one snapshot after the other.

    A failure is reported and never reaches the training: where the Hub is unavailable the same
    snapshot is tried again later, unless a newer one has come; any other refusal (a token that was
    revoked, say) gives this snapshot up and the next one is tried as usual.

    Attributes:
        send: pushes one snapshot; called on the thread.
        report: told each failure, in one line.
        attempts: how often one snapshot is tried.
        first_wait: seconds before the second try; doubled for each one after.
        done: what was pushed, in order.
    """

    send: Callable[[Snapshot], Pushed]
    report: Callable[[str], None] = _say
    attempts: int = 6
    first_wait: float = 30.0
    done: list[Pushed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._change = threading.Condition()
        self._next: Snapshot | None = None
        self._busy = False
        threading.Thread(target=self._work, name="hub-push", daemon=True).start()

    def submit(self, snapshot: Snapshot) -> None:
        """Hand a snapshot over and return at once; one that still waits is dropped for it."""
        with self._change:
            waiting, self._next = self._next, snapshot
            self._change.notify_all()
        if waiting is not None:
            waiting.discard()

    def wait(self, timeout: float | None = None) -> bool:
        """Until all is pushed or given up; False when ``timeout`` seconds went by before."""
        with self._change:
            return self._change.wait_for(lambda: self._next is None and not self._busy, timeout)

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._next is not None)
                snapshot, self._next, self._busy = self._next, None, True
            assert snapshot is not None
            again = self._try(snapshot)
            with self._change:
                if again and self._next is None:
                    wait = self.first_wait * 2 ** (snapshot.failures - 1)
                    self._change.wait_for(lambda: self._next is not None, wait)
                if again and self._next is None:
                    self._next = snapshot
                else:
                    snapshot.discard()
                self._busy = False
                self._change.notify_all()

    def _try(self, snapshot: Snapshot) -> bool:
        """Push; whether to try the same one again."""
        try:
            self.done.append(self.send(snapshot))
            return False
        except HubUnavailable as error:
            snapshot.failures += 1
            again = snapshot.failures < self.attempts
            self.report(f"{error}; {'trying again' if again else 'given up'}: {snapshot.message}")
            return again
        except (
            Exception
        ) as error:  # of whatever kind: the training, which waits at its end, goes on
            said = str(error) if isinstance(error, HfgenError) else repr(error)
            self.report(f"not pushed: {snapshot.message}: {' '.join(said.split())}")
            return False


class RunPusher:
    """What the ``hub`` section of a recipe asks for, over one run; on the main process only.

    Use: ``saved`` after each checkpoint, ``finish`` after the last export.
    """

    def __init__(self, run: Path, config: HubConfig, *, pusher: BackgroundPusher | None = None):
        self.run = run
        self.config = config
        self.pushed_at = 0
        for left in run.glob(".push-*"):  # of a run that was killed
            shutil.rmtree(left)
        self._background = pusher or BackgroundPusher(self._send)

    def saved(self, checkpoint: Path, export: Callable[[Path], None]) -> bool:
        """Share the state of this checkpoint, in the background, if it is time to.

        Args:
            checkpoint: the folder that was just written.
            export: writes the averaged models' pipeline into the folder it is given.
        Returns:
            Whether a snapshot was handed over.
        """
        seen = int(json.loads((checkpoint / "state.json").read_text())["images_seen"])
        if self.config.strategy == "end" or seen - self.pushed_at < self._every():
            return False
        self.pushed_at = seen
        folder = self.run / f".push-{seen}-{time.monotonic_ns()}"
        export(folder / "pipeline")
        self._copy(folder, checkpoint)
        self._background.submit(Snapshot(folder, f"{self.run.name} at {seen:,} images"))
        return True

    def finish(self) -> Pushed:
        """Push the finished run with the pictures of its card, and wait for it. Raises HfgenError
        where that fails."""
        self._background.wait()
        refresh_pictures(self.run)
        return self._push(self.run, f"{self.run.name}: training finished")

    def _every(self) -> int:
        return self.config.push_every_images or 1

    def _copy(self, folder: Path, checkpoint: Path) -> None:
        for path in record(self.run):
            shutil.copy2(path, folder / path.name)
        if (self.run / "samples").is_dir():
            shutil.copytree(self.run / "samples", folder / "samples")
        if self.config.strategy == "checkpoint":
            shutil.copytree(checkpoint, folder / "checkpoints" / checkpoint.name)

    def _send(self, snapshot: Snapshot) -> Pushed:
        return self._push(snapshot.folder, snapshot.message)

    def _push(self, folder: Path, message: str) -> Pushed:
        return push(
            folder,
            str(self.config.hub_model_id),
            private=self.config.private,
            checkpoint=self.config.strategy == "checkpoint",
            message=message,
        )
