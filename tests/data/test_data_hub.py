"""Sets on the Hub: by id, gated, absent, streamed, and no Hub to be reached."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_hub import SHA, DataHub
from data_pictures import picture
from datasets import ClassLabel, Dataset, Features, Image

from hfgen.data import DataConfig, load_source

TOKEN = "hf_" + "a" * 34
LOAD = (
    "import sys, json\n"
    "from hfgen.data import BatchStream, DataConfig, load_source\n"
    "from hfgen.errors import HfgenError\n"
    "for settings in json.loads(sys.argv[1]):\n"
    "    try:\n"
    "        source = load_source(DataConfig(**settings))\n"
    "        rows = BatchStream(source, 8, seed=0).rows(0, 8)\n"
    "        spec = source.spec\n"
    "        print(spec.num_images, spec.fingerprint, spec.credit, rows['images'].shape)\n"
    "    except HfgenError as error:\n"
    "        print('HfgenError:', error)\n"
)
GATED = {"path": "user/gated"}


@pytest.fixture
def parquet(tmp_path: Path) -> bytes:
    rows = {"image": [picture(i) for i in range(30)], "label": [i % 2 for i in range(30)]}
    features = Features({"image": Image(), "label": ClassLabel(names=["x", "y"])})
    buffer = io.BytesIO()
    Dataset.from_dict(rows, features=features).to_parquet(buffer)
    return buffer.getvalue()


def run(tmp_path: Path, endpoint: str, *settings: dict, **env: str) -> list[str]:
    """One line for each of the ``settings``: what was loaded, or the error."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    clean |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(settings)],
        env=clean | env, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip().splitlines()


def test_open_gated_streamed_and_absent(tmp_path, parquet):
    files = {f"{split}-00000-of-00001.parquet": parquet for split in ("train", "test")}
    for name, data in files.items():
        (tmp_path / "local").mkdir(exist_ok=True)
        (tmp_path / "local" / name).write_bytes(data)
    local = load_source(DataConfig(path=str(tmp_path / "local"), cache_dir=str(tmp_path / "cache")))
    page = "https://huggingface.co/datasets/user"
    with DataHub(files, TOKEN) as hub:
        cached, streamed, gated, absent = run(
            tmp_path,
            hub.url,
            {"path": "user/open"},
            {"path": "user/open", "streaming": True},
            GATED,
            {"path": "user/none", "revision": "v2"},
        )
        (allowed,) = run(tmp_path, hub.url, GATED, HF_TOKEN=TOKEN)
    assert cached.startswith(f"30 {local.spec.fingerprint} {page}/open torch.Size([8, 3, 16, 16])")
    assert streamed.startswith(f"None {SHA} {page}/open torch.Size([8, 3, 16, 16])")
    assert gated.startswith("HfgenError: data.path: 'user/gated' is not here on the disk")
    assert "accept its terms" in gated and "hf auth login" in gated
    assert allowed.startswith(f"30 {local.spec.fingerprint} {page}/gated")
    assert absent.startswith("HfgenError: data.path: 'user/none' (revision 'v2') is not here")


@pytest.mark.parametrize("offline", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_no_hub_to_be_reached(tmp_path, offline):
    settings = {"path": "user/open"}
    (out,) = run(tmp_path, "http://127.0.0.1:9", settings, HF_HUB_OFFLINE=offline)
    assert out.startswith("HfgenError: data.path: 'user/open' is not here on the disk")
    assert "check the spelling and the network" in out
