"""Bad input gets one line that names the value, where it came from and what would be valid."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from data_pictures import picture, save_pictures
from datasets import ClassLabel, Dataset, Features, Image, Value

from hfgen.data import DataConfig, load_source
from hfgen.errors import HfgenError


def fails(config: DataConfig, *parts: str, role: str = "train") -> str:
    """The one line, which must hold all ``parts`` in this order."""
    with pytest.raises(HfgenError) as caught:
        load_source(config, role)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(".*".join(re.escape(part) for part in parts), message), message
    return message


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_an_empty_folder(tmp_path, config):
    (tmp_path / "nothing").mkdir()
    fails(config(tmp_path / "nothing"), "data.path", "nothing", "is empty")


def test_a_folder_of_non_images(tmp_path, config):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "c.doc"):
        (folder / name).write_text("no picture")
    fails(config(folder), "data.path: no images", "2 .txt, 1 .doc", "valid: a folder of images")


def test_non_images_that_are_called_images(tmp_path, config):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.png").write_text("no picture")
    fails(config(folder), "data.path: no image of", "can be read")
    message = fails(config(folder, resolution=8, channels=3), "data.max_corrupt is 0", "0.png")
    assert "cannot identify image file" in message


def test_a_truncated_png_is_named_and_skipped_only_when_allowed(pictures, config, caplog):
    for name in ("0003.png", "0007.png"):
        truncate(pictures / name)
    held_out = len(load_source(config(pictures, max_corrupt=2), "validation"))
    caplog.clear()
    message = fails(config(pictures), "data.max_corrupt is 0", "0003.png", "0007.png")
    assert message.endswith("set data.max_corrupt: 2")
    fails(config(pictures, max_corrupt=1), "data.max_corrupt is 1", "2 unreadable", "0007.png")
    with caplog.at_level(logging.WARNING):
        source = load_source(config(pictures, max_corrupt=2))
    assert len(source) + held_out == 18
    assert "skipped 2 unreadable" in caplog.text and "0003.png" in caplog.text


def test_a_mended_file_is_read_again(pictures, config):
    truncate(pictures / "0003.png")
    fails(config(pictures), "0003.png")
    picture(3).save(pictures / "0003.png")
    assert len(load_source(config(pictures))) == 18


def test_many_corrupt_files_are_counted_and_the_first_named(tmp_path, config):
    for path in save_pictures(tmp_path / "broken", 30)[:20]:
        truncate(path)
    message = fails(config(tmp_path / "broken"), "unreadable", "; and", "more")
    assert message.count(".png") == 10


def test_different_sizes_want_a_resolution(tmp_path, config):
    save_pictures(tmp_path / "mixed", 8, size=(40, 50))
    picture(9, size=(17, 300)).save(tmp_path / "mixed" / "tall.png")
    message = fails(config(tmp_path / "mixed"), "data.resolution", "2 sizes", "17x300", "40x50")
    assert message.endswith("e.g. data.resolution: 32")
    assert load_source(config(tmp_path / "mixed", resolution=32)).spec.height == 32


def test_a_validation_image_of_another_size(tmp_path, config):
    save_pictures(tmp_path / "sets" / "train", 4)
    save_pictures(tmp_path / "sets" / "test", 2, size=(20, 20))
    assert len(load_source(config(tmp_path / "sets"))) == 4
    sizes = ("20x20", "others are 16x16")
    fails(config(tmp_path / "sets"), "data.resolution", *sizes, role="validation")


@pytest.fixture
def table(tmp_path) -> Path:
    """Parquet with two image columns, a label and a caption."""
    rows = {
        "left": [picture(i) for i in range(10)],
        "right": [picture(i) for i in range(10)],
        "label": [0, 1] * 5,
        "caption": ["a"] * 10,
        "weight": [0.5] * 10,
    }
    types = {"label": ClassLabel(names=["x", "y"]), "caption": Value("string")}
    features = Features({"left": Image(), "right": Image(), **types, "weight": Value("float32")})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


def test_several_image_columns(table, config):
    fails(config(table), "2 image columns (left, right)", "data.image_column")
    assert len(load_source(config(table, image_column="left"))) == 9


@pytest.mark.parametrize("field", ["image_column", "label_column", "caption_column"])
def test_an_unknown_column_lists_what_there_is(table, config, field):
    settings = {"image_column": "left"} | {field: "colour"}
    message = fails(config(table, **settings), f"data.{field}", "no column 'colour'", "columns:")
    for column in ("left (Image)", "label (ClassLabel)", "caption (string)", "weight (float32)"):
        assert column in message


@pytest.mark.parametrize(
    ("field", "column", "wanted"),
    [
        ("image_column", "label", "images"),
        ("label_column", "weight", "class labels"),
        ("caption_column", "label", "text"),
    ],
)
def test_a_column_of_another_type(table, config, field, column, wanted):
    settings = {"image_column": "left"} | {field: column}
    fails(config(table, **settings), f"data.{field}", repr(column), "does not hold", wanted)


def test_no_image_column(tmp_path, config):
    Dataset.from_dict({"number": [1, 2]}).to_parquet(tmp_path / "numbers.parquet")
    fails(config(tmp_path / "numbers.parquet"), "no image column", "columns: number (int64)")


def test_no_label_column_where_one_is_asked_for(pictures, config):
    fails(config(pictures, label_column="label"), "data.label_column", "no column 'label'")


def test_missing_labels(tmp_path, config):
    rows = {"image": [picture(i) for i in range(10)], "label": [-1] * 10}
    features = Features({"image": Image(), "label": ClassLabel(names=["x", "y"])})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test.parquet")
    path = tmp_path / "test.parquet"
    fails(config(path), "data.label_column", "-1", "(x, y)", "data.label_column: none")
    assert load_source(config(path, label_column="none")).spec.class_names is None


@pytest.mark.parametrize("field", ["split", "validation_split"])
def test_an_unknown_split_lists_what_there_is(config, field):
    settings = config("mnist", **{field: "tset"})
    fails(settings, f"data.{field}", "unknown value 'tset'", "did you mean 'test'", "test, train")


def test_a_missing_folder_gives_near_names(pictures, config, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    fails(config("./picturs"), "there is no './picturs'", "did you mean 'pictures'")
    fails(config(pictures.parent / "pcitures"), "did you mean", str(pictures))
    fails(config("/no/such/place/at/all"), "there is no '/no/such/place/at/all'")


def test_one_image_leaves_none_to_validate_on(tmp_path, config):
    save_pictures(tmp_path / "one", 1)
    assert len(load_source(config(tmp_path / "one"))) == 1
    fails(config(tmp_path / "one"), "one image only", role="validation")


def test_no_rows(tmp_path, config):
    features = Features({"image": Image()})
    Dataset.from_dict({"image": []}, features=features).save_to_disk(tmp_path / "none")
    fails(config(tmp_path / "none"), "data.path", "cannot be opened as saved")


def test_a_broken_parquet_file(tmp_path, config):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    fails(config(tmp_path / "broken.parquet"), "data.path", "cannot be opened as parquet")


def test_an_unknown_role():
    with pytest.raises(HfgenError, match="valid: train, validation"):
        load_source(DataConfig(), "test")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"path": " "}, "data.path: must be a name, a folder or a Hub id"),
        ({"resolution": 0}, "data.resolution: must be > 0, got 0"),
        ({"resolution": -8}, "data.resolution: must be > 0, got -8"),
        ({"channels": 2}, r"data.channels: must be 1 \(grey\) or 3 \(RGB\), got 2"),
        ({"interpolation": "nearest"}, "data.interpolation: must be one of bicubic, lanczos"),
        ({"binarize": "yes"}, "data.binarize: must be one of none, dynamic, static, got 'yes'"),
        ({"max_corrupt": -1}, "data.max_corrupt: must be >= 0, got -1"),
        ({"max_images": 0}, "data.max_images: must be > 0, got 0"),
        ({"shuffle_buffer": 0}, "data.shuffle_buffer: must be > 0, got 0"),
        ({"seed": -1}, "data.seed: must be >= 0, got -1"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**setting)
