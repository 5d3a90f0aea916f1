"""Every command of the README that is marked as tested runs, in the order of the page, in a fresh
folder.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from hfgen.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"<!-- tested: (\w+) -->\n```(\w+)\n(.*?)```", README, re.DOTALL)
# The page trains for real; here the same commands run for a few steps.
SHORTER = {"max_steps 500": "max_steps 3", '"training.max_steps": 500': '"training.max_steps": 3'}
QUICK = ["--training.max_steps", "3", "--training.total_batch_size", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_images").mkdir()
    for i in range(10):
        Image.effect_noise((90, 70), 50 + i).convert("RGB").save(folder / "my_images" / f"{i}.jpg")
    return folder


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in text.strip().splitlines() if line.strip()]


@pytest.mark.parametrize(("name", "language", "text"), BLOCKS, ids=[name for name, *_ in BLOCKS])
def test_a_block_of_the_readme(folder, monkeypatch, name, language, text):
    monkeypatch.chdir(folder)
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    if language == "python":
        exec(compile(text, "README.md", "exec"), {})
        return
    for program, *words in commands(text):
        assert program == "hfgen"
        assert main([*words, *(QUICK if words[0] == "train" else [])]) == 0


def test_the_page_names_only_what_exists():
    for target in re.findall(r"\]\((docs/[^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
    assert len(BLOCKS) >= 5
    assert os.environ.get("HF_HUB_OFFLINE") == "1"
