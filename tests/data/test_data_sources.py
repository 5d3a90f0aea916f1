"""Tensors as sources, the scale of images, the bundled sets against `datasets`' own decoding."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset

from hfgen.data import DataConfig, TensorSource, load_source
from hfgen.data import bundled as bundled_data
from hfgen.data.source import normalize, quantize
from hfgen.errors import HfgenError


def test_every_grey_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    images = normalize(levels)
    assert images[0] == -1 and images[255] == 1
    assert torch.equal(quantize(images), levels)


def test_a_tensor_source_gives_back_its_tensors():
    images = torch.linspace(-1, 1, 5 * 2 * 3 * 4).view(5, 2, 3, 4)
    source = TensorSource(images, torch.tensor([0, 2, 1, 2, 0]), captions=list("abcde"))
    batch = source.batch([4, 1])
    assert torch.equal(batch["images"], images[[4, 1]])
    assert batch["labels"].tolist() == [0, 2]
    assert source.captions([4, 1]) == ["e", "b"]
    spec = source.spec
    assert (len(source), spec.channels, spec.height, spec.width) == (5, 2, 3, 4)
    assert spec.class_names == ("0", "1", "2") and spec.num_classes == 3
    assert source.uint8([0]).dtype == torch.uint8


@pytest.mark.parametrize("part", ["images", "labels", "captions"])
def test_the_fingerprint_is_of_the_content(part):
    content = {
        "images": torch.zeros(3, 1, 2, 2),
        "labels": torch.tensor([0, 1, 2]),
        "captions": ["a", "b", "c"],
    }
    other = dict(content)
    other[part] = list("abd") if part == "captions" else content[part].clone()
    if part != "captions":
        other[part].view(-1)[0] += 1
    same = TensorSource(**content, name="another name").spec.fingerprint
    assert TensorSource(**content).spec.fingerprint == same
    assert TensorSource(**other).spec.fingerprint != same


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(3, 4), None, r"must be \[N, C, H, W\] with N > 0, got shape \[3, 4\]"),
        (torch.zeros(0, 1, 2, 2), None, "N > 0"),
        (torch.zeros(3, 1, 2, 2, dtype=torch.int64), None, "must be uint8 or floats"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(2), "3 images, but 2 labels"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, -1]), "labels count from 0, got -1"),
    ],
)
def test_tensors_that_are_no_images(images, labels, message):
    with pytest.raises(HfgenError, match=message):
        TensorSource(images, labels)


def test_no_captions_is_said():
    with pytest.raises(HfgenError, match="data.caption_column"):
        TensorSource(torch.zeros(1, 1, 2, 2)).captions([0])


@pytest.mark.parametrize("name", bundled_data.NAMES)
@pytest.mark.parametrize(("role", "split"), [("train", "train"), ("validation", "test")])
def test_bundled_sets_are_what_datasets_reads(name, role, split, shared_cache, tmp_path):
    source = load_source(DataConfig(path=name, cache_dir=shared_cache), role)
    files = {split: str(bundled_data.files(name)[split])}
    rows = load_dataset("parquet", data_files=files, split=split, cache_dir=str(tmp_path))
    assert len(source) == len(rows) == source.spec.num_images
    indices = range(0, len(rows), 97)
    expected = np.stack([np.asarray(rows[i]["image"]) for i in indices])
    expected = expected.reshape(*expected.shape[:3], source.spec.channels).transpose(0, 3, 1, 2)
    assert torch.equal(source.uint8(indices), torch.from_numpy(expected))
    assert torch.equal(source.batch(indices)["images"], normalize(torch.from_numpy(expected)))
    assert source.batch(indices)["labels"].tolist() == [rows[i]["label"] for i in indices]
    assert source.spec.class_names == tuple(rows.features["label"].names)
    if name == "emoji":
        assert source.captions(indices) == [rows[i]["caption"] for i in indices]


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "classes"),
    [("mnist", (10_000, 2_000), (1, 28, 28), 10), ("emoji", (3_378, 408), (3, 32, 32), 10)],
)
def test_bundled_sets_are_whole_and_credited(name, sizes, shape, classes, shared_cache):
    config = DataConfig(path=name, cache_dir=shared_cache)
    for role, size in zip(("train", "validation"), sizes, strict=True):
        source = load_source(config, role)
        spec = source.spec
        assert (len(source), spec.channels, spec.height, spec.width) == (size, *shape)
        assert spec.num_classes == classes
        assert "CC BY" in (spec.credit or "") and f"{size:,}" in (spec.credit or "")
        counts = torch.bincount(source.batch(range(size))["labels"], minlength=classes)
        assert (counts > 0).sum() == (9 if size == 408 else 10)  # no test emoji is a "Component"


def test_the_bundled_files_fit_the_wheel():
    assert (
        sum(file.stat().st_size for file in bundled_data.FOLDER.iterdir() if file.is_file()) < 6e6
    )


def test_the_code_in_the_docs_runs():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) == 1
    names: dict = {}
    exec(blocks[0], names)
    assert names["batch"]["images"].shape == (16, 3, 32, 32)
