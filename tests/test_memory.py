"""Freed memory stays with a process that trains: counted page faults, in a process of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from hfgen.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import torch
before = 0
for turn in range(30):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
    words = [sys.executable, "-c", FAULTS, mode]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_steps_reuse_their_memory():
    """20 turns of a block of 64 MiB, 16,384 pages, of which the kernel takes back each."""
    assert _faults("keep") < 1000
    assert _faults("default") > 100_000
