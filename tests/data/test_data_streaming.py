"""A stream reads every image once an epoch, splits anyhow, and resumes bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from data_pictures import picture, save_pictures
from datasets import ClassLabel, Dataset, Features, Image, Value

from hfgen.data import BatchStream, StreamingSource, load_source
from hfgen.errors import HfgenError

SHARD = 300


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four parquet files of 300 pictures each, with a test split: more than are held out."""
    features = Features(
        {"image": Image(), "label": ClassLabel(names=["x", "y"]), "n": Value("int64")}
    )
    (tmp_path / "shards").mkdir()
    for shard in range(4):
        numbers = range(SHARD * shard, SHARD * (shard + 1))
        rows = {
            "image": [picture(n, size=(4, 4)) for n in numbers],
            "label": [n % 2 for n in numbers],
            "n": list(numbers),
        }
        name = f"train-{shard:05d}-of-00004.parquet"
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "shards" / name)
    rows = {"image": [picture(n, size=(4, 4)) for n in range(5)], "label": [0] * 5, "n": [0] * 5}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "shards" / "test.parquet")
    return tmp_path / "shards"


def draw(stream: BatchStream, draws: int) -> list[dict[str, torch.Tensor]]:
    batches = []
    for _ in range(draws):
        batches.append(stream.rows(0, stream.total_batch_size))
        stream.advance()
    return batches


def keys(batches: list[dict[str, torch.Tensor]]) -> list[bytes]:
    return [image.numpy().tobytes() for batch in batches for image in batch["images"]]


@pytest.mark.parametrize("buffer", [7, 500, 10_000])
def test_each_epoch_holds_each_image_once_in_another_order(shards, config, buffer):
    source = load_source(config(shards, streaming=True, shuffle_buffer=buffer))
    assert isinstance(source, StreamingSource) and source.spec.num_images is None
    drawn = keys(draw(BatchStream(source, 48, seed=0), 50))  # two epochs of 1200
    first, second = drawn[:1200], drawn[1200:]
    assert len(set(first)) == 1200 and set(first) == set(second)
    assert first != second
    assert first != keys(draw(BatchStream(source, 48, seed=1), 25))


def test_pixels_and_labels_belong_together(shards, config):
    cached = load_source(config(shards))
    labels = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(*cached.batch(range(1200)).values(), strict=True)
    }
    stream = BatchStream(load_source(config(shards, streaming=True)), 64, seed=0)
    for batch in draw(stream, 10):
        found = [labels[image.numpy().tobytes()] for image in batch["images"]]
        assert batch["labels"].tolist() == found


@pytest.mark.parametrize("draws", [0, 1, 3, 24, 25, 26, 31])
def test_it_resumes_bit_for_bit(shards, config, draws):
    """Before, within and after blocks, at and across the end of an epoch (25 draws)."""
    settings = config(shards, streaming=True, shuffle_buffer=90)
    whole = BatchStream(load_source(settings), 48, seed=0, random_flip=True)
    draw(whole, draws)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = BatchStream(load_source(settings), 48, seed=0, random_flip=True)
    resumed.load_state_dict(state)
    for ours, theirs in zip(draw(resumed, 28), draw(whole, 28), strict=True):
        assert torch.equal(ours["images"], theirs["images"])
        assert torch.equal(ours["labels"], theirs["labels"])
    assert resumed.state_dict() == whole.state_dict()


def test_two_streams_of_one_source_do_not_disturb_each_other(shards, config):
    source = load_source(config(shards, streaming=True, shuffle_buffer=90))
    alone = draw(BatchStream(source, 48, seed=0), 12)
    first, second = BatchStream(source, 48, seed=0), BatchStream(source, 30, seed=1)
    for batch in alone:
        assert torch.equal(draw(first, 1)[0]["images"], batch["images"])
        draw(second, 2)


def test_any_split_gives_the_same_rows(shards, config):
    source = load_source(config(shards, streaming=True, shuffle_buffer=100))
    stream = BatchStream(source, 48, seed=0, random_flip=True)
    for _ in range(3):
        whole = stream.rows(0, 48)["images"]
        parts = [stream.rows(a, b)["images"] for a, b in ((0, 5), (5, 32), (32, 48))]
        assert torch.equal(torch.cat(parts), whole)
        stream.advance()


def test_validation_images_are_cached(shards, config):
    source = load_source(config(shards, streaming=True), "validation")
    assert len(source) == 5
    assert source.spec.fingerprint == load_source(config(shards), "validation").spec.fingerprint


def test_without_a_split_the_first_thousand_are_held_out(tmp_path, config):
    save_pictures(tmp_path / "many", 1020, size=(4, 4))
    settings = config(tmp_path / "many", streaming=True)
    validation = load_source(settings, "validation")
    train = draw(BatchStream(load_source(settings), 20, seed=0), 1)
    assert len(validation) == 1000
    held_out = {image.numpy().tobytes() for image in validation.batch(range(1000))["images"]}
    assert len(held_out) == 1000 and held_out.isdisjoint(keys(train))


def test_an_unreadable_image_gives_way_to_the_next_in_every_split(tmp_path, config):
    for split in ("train", "test"):
        save_pictures(tmp_path / "set" / split, 12)
    broken = tmp_path / "set" / "train" / "0004.png"
    broken.write_bytes(broken.read_bytes()[:-300])
    stream = BatchStream(
        load_source(config(tmp_path / "set", streaming=True, max_corrupt=1)), 12, 0
    )
    whole = stream.rows(0, 12)["images"]
    assert len(set(keys([{"images": whole}]))) == 11
    parts = [stream.rows(i, i + 1)["images"] for i in range(12)]
    assert torch.equal(torch.cat(parts), whole)
    strict = BatchStream(load_source(config(tmp_path / "set", streaming=True)), 12, 0)
    with pytest.raises(HfgenError, match="max_corrupt is 0.*0004.png"):
        strict.rows(0, 12)


def test_a_stream_says_what_it_cannot_do(shards, config):
    settings = config(shards, streaming=True)
    source = load_source(settings)
    for ask in (lambda: len(source), lambda: source.pixels([0]), lambda: source.labels([0]),
                lambda: source.captions([0])):  # fmt: skip
        with pytest.raises(HfgenError, match="set data.streaming: false"):
            ask()
    with pytest.raises(HfgenError, match="data.binarize: static.*data.streaming: false"):
        load_source(config(shards, streaming=True, binarize="static"))
    with pytest.raises(HfgenError, match="total_batch_size is 1300.*only 1200 images"):
        BatchStream(source, 1300, seed=0).rows(0, 1)
    save_pictures(shards.parent / "few", 20)
    with pytest.raises(HfgenError, match="no images to train on.*first 1,000 are held out"):
        load_source(config(shards.parent / "few", streaming=True))
    with pytest.raises(HfgenError, match="data.label_column: 'n' is no ClassLabel column"):
        load_source(config(shards, streaming=True, label_column="n"))


def test_an_image_of_another_size(tmp_path, config):
    for split in ("train", "test"):
        save_pictures(tmp_path / "set" / split, 300)
    picture(0, size=(9, 9)).save(tmp_path / "set" / "train" / "zz.png")
    stream = BatchStream(load_source(config(tmp_path / "set", streaming=True)), 301, seed=0)
    with pytest.raises(HfgenError, match="data.resolution: image .*zz.png is 9x9.*16x16"):
        stream.rows(0, 301)
