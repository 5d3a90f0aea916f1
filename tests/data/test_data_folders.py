"""A user's own pictures, in every form that is accepted, each read from real files."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_pictures import picture, save_pictures
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from PIL import Image as Pillow

from hfgen.data import BatchStream, load_source


def pixels_of(seed: int, **options) -> torch.Tensor:
    pixels = np.asarray(picture(seed, **options))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy())


def seeds(source, among: int) -> list[int]:
    """Which pictures a source holds, found by their pixels."""
    known = {pixels_of(seed).numpy().tobytes(): seed for seed in range(among)}
    return [known[image.numpy().tobytes()] for image in source.uint8(range(len(source)))]


def test_a_plain_folder_holds_out_a_seeded_tenth(pictures, config):
    train, validation = (load_source(config(pictures), role) for role in ("train", "validation"))
    assert (len(train), len(validation)) == (18, 2)
    assert sorted(seeds(train, 20) + seeds(validation, 20)) == list(range(20))
    assert train.spec.class_names is None and "labels" not in train.batch([0])
    assert (train.spec.channels, train.spec.height, train.spec.width) == (3, 16, 16)
    other = load_source(config(pictures, seed=1), "validation")
    assert seeds(other, 20) != seeds(validation, 20)


def test_class_folders_become_labels(tmp_path, config):
    for name in ("cat", "dog"):
        save_pictures(tmp_path / "pets" / name, 10)
    labels = []
    for role, count in (("train", 18), ("validation", 2)):
        source = load_source(config(tmp_path / "pets"), role)
        assert source.spec.class_names == ("cat", "dog")
        labels += source.batch(range(count))["labels"].tolist()
    assert sorted(labels) == [0] * 10 + [1] * 10


def test_split_folders_are_found(tmp_path, config):
    for split, count in (("train", 6), ("val", 3), ("Test", 2)):
        save_pictures(tmp_path / "sets" / split, count)
    train = load_source(config(tmp_path / "sets"))
    assert len(train) == 6 and train.spec.class_names is None
    assert len(load_source(config(tmp_path / "sets"), "validation")) == 3
    assert len(load_source(config(tmp_path / "sets", validation_split="test"), "validation")) == 2
    assert len(load_source(config(tmp_path / "sets", split="test"))) == 2


def test_names_of_files_are_no_splits(tmp_path, config):
    """`datasets` alone would see one test picture here and no others; and brackets as a pattern."""
    folder = tmp_path / "my [test] pictures *"
    save_pictures(folder / "cat", 10)
    save_pictures(folder / "dog", 9)
    (folder / "notes on training.txt").write_text("none")
    picture(19).save(folder / "dog" / "my test.png")
    train, validation = (load_source(config(folder), role) for role in ("train", "validation"))
    assert len(train) + len(validation) == 20
    assert train.spec.class_names == ("cat", "dog")


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore:Exception ignored in")  # datasets'
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_gives_captions(pictures, config, kind):
    rows = [{"file_name": f"{i:04d}.png", "text": f"Größe {i}", "mood": i % 2} for i in range(20)]
    with (pictures / f"metadata.{kind}").open("w", encoding="utf-8", newline="") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    source = load_source(config(pictures, label_column="mood"))
    assert source.spec.has_captions and source.spec.class_names == ("0", "1")
    found = seeds(source, 20)
    assert source.captions(range(18)) == [f"Größe {seed}" for seed in found]
    assert source.batch(range(18))["labels"].tolist() == [seed % 2 for seed in found]


def rows_of(count: int) -> dict:
    return {
        "picture": [picture(i) for i in range(count)],
        "kind": [i % 3 for i in range(count)],
        "prompt": [f"number {i}" for i in range(count)],
    }


FEATURES = Features(
    {"picture": Image(), "kind": ClassLabel(names=["a", "b", "c"]), "prompt": Value("string")}
)


def save_parquet(folder: Path) -> None:
    folder.mkdir()
    Dataset.from_dict(rows_of(30), features=FEATURES).to_parquet(folder / "train.parquet")


def save_dict(folder: Path) -> None:
    rows = Dataset.from_dict(rows_of(30), features=FEATURES)
    DatasetDict({"train": rows}).save_to_disk(folder)


def save_rows(folder: Path) -> None:
    Dataset.from_dict(rows_of(30), features=FEATURES).save_to_disk(folder)


@pytest.mark.parametrize("save", [save_parquet, save_dict, save_rows])
def test_columns_of_saved_sets_are_found_by_their_types(tmp_path, config, save):
    save(tmp_path / "set")
    source = load_source(config(tmp_path / "set"))
    found = seeds(source, 30)
    assert len(found) == 27
    assert source.spec.class_names == ("a", "b", "c")
    assert source.batch(range(27))["labels"].tolist() == [seed % 3 for seed in found]
    assert source.captions(range(27)) == [f"number {seed}" for seed in found]


def test_a_parquet_file_with_plain_bytes_and_text_labels(tmp_path, config):
    """Parquet that `datasets` did not write: name the columns; text makes classes."""
    rows = {"data": [], "colour": []}
    for i in range(20):
        buffer = io.BytesIO()
        picture(i).save(buffer, format="PNG")
        rows["data"].append(buffer.getvalue())
        rows["colour"].append(["red", "blue"][i % 2])
    Dataset.from_dict(rows).to_parquet(tmp_path / "plain.parquet")
    source = load_source(
        config(tmp_path / "plain.parquet", image_column="data", label_column="colour")
    )
    assert source.spec.class_names == ("blue", "red")
    labels = source.batch(range(18))["labels"].tolist()
    assert labels == [1 - seed % 2 for seed in seeds(source, 20)]


def test_webdataset_shards(tmp_path, config):
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"train-{shard}.tar", "w") as tar:
            for i in range(10 * shard, 10 * shard + 10):
                buffer = io.BytesIO()
                picture(i).save(buffer, format="PNG")
                parts = {"png": buffer.getvalue(), "cls": b"%d" % (i % 2), "txt": b"hi %d" % i}
                for suffix, data in parts.items():
                    info = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    source = load_source(config(tmp_path / "shards"))
    found = seeds(source, 20)
    assert len(found) == 18 and source.spec.class_names == ("0", "1")
    assert source.batch(range(18))["labels"].tolist() == [seed % 2 for seed in found]
    assert source.captions(range(18)) == [f"hi {seed}" for seed in found]


def test_labels_and_captions_can_be_left_out(tmp_path, config):
    save_parquet(tmp_path / "set")
    source = load_source(config(tmp_path / "set", label_column="none", caption_column="none"))
    assert source.spec.class_names is None and not source.spec.has_captions
    assert list(source.batch([0])) == ["images"]


@pytest.mark.parametrize(("channels", "found"), [(None, 3), (1, 1), (3, 3)])
def test_one_coloured_picture_makes_a_coloured_set(tmp_path, config, channels, found):
    save_pictures(tmp_path / "mixed", 12, channels=1)
    picture(99).save(tmp_path / "mixed" / "colour.png")
    for role in ("train", "validation"):
        source = load_source(config(tmp_path / "mixed", channels=channels), role)
        assert source.spec.channels == found


def test_grey_pictures_stay_grey(tmp_path, config):
    save_pictures(tmp_path / "grey", 12, channels=1)
    source = load_source(config(tmp_path / "grey"))
    assert source.spec.channels == 1
    assert any(torch.equal(source.uint8([0])[0], pixels_of(i, channels=1)) for i in range(12))


def test_resolution_resizes_as_pil_does(tmp_path, config):
    save_pictures(tmp_path / "wide", 10, size=(20, 12))
    source = load_source(config(tmp_path / "wide", resolution=8, interpolation="lanczos"))
    assert source.batch([0])["images"].shape == (1, 3, 8, 8)
    native = load_source(config(tmp_path / "wide"))
    assert (native.spec.height, native.spec.width) == (12, 20)


def test_max_images_is_a_seeded_choice(pictures, config):
    few = load_source(config(pictures, max_images=5))
    assert len(few) == 5
    assert seeds(few, 20) == seeds(load_source(config(pictures, max_images=5)), 20)
    assert set(seeds(few, 20)) <= set(seeds(load_source(config(pictures)), 20))
    assert seeds(few, 20) != seeds(load_source(config(pictures)), 20)[:5]


def test_a_bundled_name_wins_over_a_folder_and_says_so(
    tmp_path, config, monkeypatch, caplog, shared_cache
):
    save_pictures(tmp_path / "emoji", 10)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        named = load_source(config("emoji", max_images=20))
    assert named.spec.has_captions
    assert "write './emoji' for the folder" in caplog.text
    assert len(load_source(config("./emoji"))) == 9


@pytest.mark.parametrize("role", ["train", "validation"])
def test_static_binarisation_is_fixed_and_follows_the_grey_values(tmp_path, config, role):
    """4000 pixels of the same grey 51: a share of 0.2 is white, within 4.5 standard errors."""
    for i in range(20):
        path = tmp_path / "grey" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        flat = np.full((40, 50), 51, np.uint8)
        flat[0, 0] = i  # so that files differ
        Pillow.fromarray(flat).save(path)
    source = load_source(config(tmp_path / "grey", binarize="static"), role)
    pixels = source.uint8(range(2))
    assert source.spec.binarize == "static" and set(pixels.unique().tolist()) == {0, 255}
    share = (pixels == 255).float().mean().item()
    assert abs(share - 0.2) < 4.5 * (0.2 * 0.8 / 4000) ** 0.5
    again = load_source(config(tmp_path / "grey", binarize="static"), role)
    assert torch.equal(again.uint8(range(2)), pixels)
    other = load_source(config(tmp_path / "grey", binarize="static", seed=1), role)
    assert not torch.equal(other.uint8(range(2)), pixels)
    assert not torch.equal(pixels[0], pixels[1])


def test_dynamic_binarisation_leaves_training_grey_and_fixes_validation(pictures, config):
    settings = config(pictures, binarize="dynamic")
    train, validation = load_source(settings), load_source(settings, "validation")
    assert train.spec.binarize == "dynamic" and len(train.uint8([0]).unique()) > 2
    assert validation.spec.binarize == "static"
    assert set(validation.uint8([0]).unique().tolist()) == {0, 255}
    rows = BatchStream(train, 4, seed=0).rows(0, 4)["images"]
    assert set(rows.unique().tolist()) == {-1.0, 1.0}


def test_a_link_to_a_folder_is_followed(pictures, tmp_path, config):
    os.symlink(pictures, tmp_path / "link")
    assert len(load_source(config(tmp_path / "link"))) == 18


def test_it_is_what_datasets_decodes(pictures, config, tmp_path):
    cache = str(tmp_path / "peer")
    rows = load_dataset("imagefolder", data_dir=str(pictures), split="train", cache_dir=cache)
    source = load_source(config(pictures))
    theirs = {np.asarray(row["image"]).tobytes() for row in rows}
    ours = {image.permute(1, 2, 0).numpy().tobytes() for image in source.uint8(range(18))}
    assert len(ours) == 18 and ours < theirs
