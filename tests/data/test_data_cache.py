"""The cache is whole or absent, made once, and follows the files that it was made of."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from data_pictures import picture, save_pictures

from hfgen.data import DataConfig, load_source
from hfgen.data import load as load_module
from hfgen.errors import HfgenError

LOAD = (
    "import sys; from hfgen.data import DataConfig, load_source\n"
    "source = load_source(DataConfig(path=sys.argv[1], cache_dir=sys.argv[2]))\n"
    "print(len(source), source.spec.fingerprint)\n"
)


def start(path: Path, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", LOAD, str(path), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def folders(cache: Path) -> list[Path]:
    return [path for path in (cache / "images").iterdir() if path.is_dir()]


def test_the_second_call_decodes_nothing(pictures, config, monkeypatch):
    first = load_source(config(pictures))
    monkeypatch.setattr(load_module, "_decode", lambda *_: pytest.fail("decoded again"))
    second = load_source(config(pictures, random_flip=True, max_corrupt=3, class_conditional=True))
    assert torch.equal(first.uint8(range(18)), second.uint8(range(18)))


def test_a_warm_start_does_not_import_datasets(pictures, tmp_path):
    code = LOAD + "print('datasets' in sys.modules, 'PIL' in sys.modules)\n"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, str(pictures), str(tmp_path / "cache")],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()
        for _ in range(2)
    ]  # fmt: skip
    assert runs[0][0] == runs[1][0]
    assert runs[0][1] == "True True" and runs[1][1] == "False False"


@pytest.mark.parametrize("change", ["pixels", "added", "removed", "renamed"])
def test_a_changed_folder_is_decoded_again(pictures, config, change):
    before = fingerprints(config(pictures))
    file = pictures / "0005.png"
    if change == "pixels":
        picture(777).save(file)
    elif change == "added":
        picture(777).save(pictures / "new.png")
    elif change == "removed":
        file.unlink()
    else:
        file.rename(pictures / "zzzz.png")  # comes last now
    assert fingerprints(config(pictures)) != before


def fingerprints(config: DataConfig) -> list[str]:
    return [load_source(config, role).spec.fingerprint for role in ("train", "validation")]


def test_the_fingerprint_is_of_the_content_not_of_the_place(pictures, tmp_path, config):
    save_pictures(tmp_path / "elsewhere", 20)
    here, there = (load_source(config(path)) for path in (pictures, tmp_path / "elsewhere"))
    assert here.spec.fingerprint == there.spec.fingerprint


SETTINGS = {"resolution": 8, "channels": 1, "seed": 3, "max_images": 7, "binarize": "static"}


@pytest.mark.parametrize("setting", [{name: value} for name, value in SETTINGS.items()], ids=str)
def test_other_settings_have_a_cache_of_their_own(pictures, config, setting):
    plain, other = load_source(config(pictures)), load_source(config(pictures, **setting))
    assert plain.spec.fingerprint != other.spec.fingerprint


def test_several_processes_at_once_make_one_cache(pictures, tmp_path):
    processes = [start(pictures, tmp_path / "cache") for _ in range(3)]
    outcomes = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), outcomes
    assert len({out for out, _ in outcomes}) == 1
    assert len(folders(tmp_path / "cache")) == 1


def test_a_killed_build_leaves_no_half_cache(tmp_path):
    """kill -9 while images are being written; the next run starts afresh and cleans up."""
    save_pictures(tmp_path / "many", 1000, size=(48, 48))
    cache = tmp_path / "cache"
    process = start(tmp_path / "many", cache)
    deadline = time.monotonic() + 60
    while not list(cache.glob("images/*.part/images.u8")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert [path.suffix for path in folders(cache)] == [".part"]
    source = load_source(DataConfig(path=str(tmp_path / "many"), cache_dir=str(cache)))
    assert len(source) == 900
    assert [path.suffix for path in folders(cache)] == [""]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the full disk: the same write fails with OSError."""
    save_pictures(tmp_path / "large", 40, size=(64, 64))
    code = (
        "import sys, signal; from hfgen.data import DataConfig, load_source\n"
        "import datasets, resource\n"
        "from hfgen.data import build\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, {resource.RLIM_INFINITY}))\n"
        "load_source(DataConfig(path=sys.argv[1], cache_dir=sys.argv[2], resolution=64))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large"), str(tmp_path / "cache")]
    ended = subprocess.run(command, capture_output=True, text=True)
    last = ended.stderr.strip().splitlines()[-1]
    assert "HfgenError: data.cache_dir: decoded images cannot be kept" in last, ended.stderr
    assert "File too large" in last and "free some space or choose another folder" in last
    assert folders(tmp_path / "cache") == []


def test_a_cache_folder_that_cannot_be_made(pictures, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HfgenError, match="data.cache_dir: decoded images cannot be kept in"):
        load_source(DataConfig(path=str(pictures), cache_dir=str(tmp_path / "file" / "cache")))


def test_the_default_place_is_the_hugging_face_home(pictures, tmp_path):
    env = dict(os.environ, HF_HOME=str(tmp_path / "home"))
    code = "import sys; from hfgen.data import *; load_source(DataConfig(path=sys.argv[1]))"
    command = [sys.executable, "-c", code, str(pictures)]
    subprocess.run(command, env=env, check=True, capture_output=True)
    assert len(list((tmp_path / "home" / "hfgen" / "images").glob("*/meta.json"))) == 1


def test_imports_are_late():
    """A recipe is read without torch, a warm start goes without `datasets` and PIL."""
    code = (
        "import sys\n"
        "there = lambda *names: [name for name in names if name in sys.modules]\n"
        "import hfgen.data, hfgen.data.config\n"
        "print(there('torch', 'numpy', 'datasets', 'PIL'))\n"
        "from hfgen.data import BatchStream, CachedSource, TensorSource, load_source\n"
        "print(there('datasets', 'PIL'), there('torch'))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["[]", "[] ['torch']"]
