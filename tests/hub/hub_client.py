"""Client processes that talk to the loopback Hub with the real `huggingface_hub`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

MAIN = """
import contextlib, io, os
from hfgen.cli import main
os.environ["HF_TOKEN"] = "hf_user"
said = io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    code = main(words)
del os.environ["HF_TOKEN"]
result = [code, said.getvalue()]
"""
QUICK = "from hfgen.hub.client import Retry\nretry = Retry(attempts=4, first_wait=0.01)\n"


class ClientError(AssertionError):
    """What a snippet raised in the client process."""

    def __init__(self, answer: dict):
        super().__init__(answer["traceback"])
        self.name, self.bases, self.text = answer["error"], answer["bases"], answer["message"]


class Client:
    """A worker process with `HF_ENDPOINT` set to the loopback Hub."""

    def __init__(self, url: str, home: Path, *flags: str):
        worker = Path(__file__).with_name("worker.py")
        self.errors = (home / "stderr.txt").open("w")
        self.process = subprocess.Popen(
            [sys.executable, str(worker), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=client_environment(url, home),
            cwd=home,
            text=True,
        )

    def run(self, code: str, **values):
        """The value that `code` leaves in `result`; ClientError when it raises."""
        asked = {"code": textwrap.dedent(code), "values": values}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise ClientError(answer)
        return answer["result"]

    def fails(self, code: str, **values) -> str:
        """The message of the HfgenError that `code` raises: always one line."""
        with pytest.raises(ClientError) as caught:
            self.run(code, **values)
        error = caught.value
        assert "HfgenError" in error.bases, error
        assert "\n" not in error.text, error.text
        return error.text

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=120)
        self.process.stdout.close()
        self.errors.close()


def client_environment(url: str, home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b and type(a) is type(b)
