"""Captions: cleaning, templates, where they come from, and the tokenizers trained on them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from hfgen.caption_tokenizer import train_tokenizer
from hfgen.data import DataConfig, load_source
from hfgen.data.captions import clean, unseen_words, words
from hfgen.data.text import distinct_captions
from hfgen.errors import HfgenError


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  a \t red\n heart ", "a red heart"),
        ("cat &amp; dog", "cat & dog"),
        ("a <b>bold</b> heart", "a bold heart"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("zero\u0000width", "zero width"),
        ("Keeps CASE", "Keeps CASE"),
    ],
)
def test_cleaning(raw, expected):
    assert clean(raw) == expected
    assert clean(clean(raw)) == expected


def test_words_and_those_never_seen():
    assert words(["Red heart, don't!", "heart-shaped 7"]) == {
        "red", "heart", "don't", "shaped", "7"
    }  # fmt: skip
    assert unseen_words(["a PURPLE heart"], {"a", "heart"}) == ["purple"]


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        for place in (tmp_path / "pictures", tmp_path / "classes" / f"kind {i % 2}"):
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), 40 * i, np.uint8)).save(place / f"{i}.png")
    return tmp_path


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore:Exception ignored in")  # datasets'
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("column", ["caption", "text", "prompt"])
def test_captions_beside_images(folder, kind, column):
    rows = [{"file_name": f"{i}.png", column: f"number  {i}"} for i in range(4)]
    with (folder / "pictures" / f"metadata.{kind}").open("w", newline="") as file:
        if kind == "jsonl":
            file.write("\n".join(json.dumps(row) for row in rows))
        else:
            writer = csv.DictWriter(file, ["file_name", column])
            writer.writeheader()
            writer.writerows(rows)
    config = DataConfig(path=str(folder / "pictures"), validation_split="train")
    source = load_source(config)
    assert source.captions(range(4)) == [f"number {i}" for i in range(4)]
    template = DataConfig(
        path=str(folder / "pictures"),
        validation_split="train",
        caption_template="a picture of {caption}",
    )
    assert load_source(template).captions([3]) == ["a picture of number 3"]


def test_captions_of_class_names(folder):
    config = DataConfig(
        path=str(folder / "classes"), validation_split="train", caption_template="a {label}"
    )
    texts, rows = distinct_captions(load_source(config))
    assert texts == ["a kind 0", "a kind 1"]
    assert sorted(rows.tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no field", "must name {caption} or {label}"),
        ("{other}", "must name {caption} or {label}"),
        ("{caption", "is no template"),
    ],
)
def test_bad_templates(template, message):
    with pytest.raises(HfgenError, match=message):
        DataConfig(caption_template=template)


def test_a_template_without_its_column(folder):
    config = DataConfig(
        path=str(folder / "pictures"), validation_split="train", caption_template="a {label}"
    )
    with pytest.raises(HfgenError, match="the data has no label column"):
        load_source(config)


def test_the_bundled_set_has_held_out_captions():
    train, test = (
        load_source(DataConfig(path="emoji"), split) for split in ("train", "validation")
    )
    texts, rows = distinct_captions(train)
    assert len(rows) == len(train) == 3378 and len(test) == 408
    held_out = test.captions(range(408))
    assert not set(held_out) & set(texts), "no held-out caption was seen"
    assert "rwanda" in unseen_words(held_out, train.words or words(texts))


@pytest.mark.parametrize("kind", ["CLIPTokenizer", "PreTrainedTokenizerFast"])
def test_a_trained_tokenizer_is_stock_and_always_the_same(kind, tmp_path):
    from transformers import AutoTokenizer

    texts = load_source(DataConfig(path="emoji")).captions(range(0, 3378, 7))
    one, two = (train_tokenizer(texts, kind, 800, 16) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()
    one.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(texts[:50]).input_ids == one(texts[:50]).input_ids
    assert again.model_max_length == 16
    ids = one("woman firefighter").input_ids
    assert ids[0] == one.bos_token_id and ids[-1] == one.eos_token_id
    unknown = one("zyxwv").input_ids[1:-1]
    if kind == "CLIPTokenizer":
        assert one.unk_token_id not in unknown and len(unknown) > 1, "spelled"
    else:
        assert unknown == [one.unk_token_id]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "T5Tokenizer"}, "valid: CLIPTokenizer, PreTrainedTokenizerFast"),
        ({"vocab_size": 100}, "from 600"),
        ({"max_length": 2}, "at least 3"),
    ],
)
def test_tokenizers_that_cannot_be(options, message):
    with pytest.raises(HfgenError, match=message):
        train_tokenizer(["a"], **options)
