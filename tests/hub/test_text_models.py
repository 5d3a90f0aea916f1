"""Models of texts on the Hub: their cards, the lines that load them, their pictures, the check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image
from test_loads_anywhere import DIGEST

from hfgen.hub.folder import split_card

ROOT = str(Path(__file__).parents[2])
MAKE = """
import sys
sys.path.insert(0, root)
from tests.text import tiny
sys.path.remove(root)
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel
from hfgen.pipelines.text_to_image_pipeline import TextToImagePipeline

def t2i():
    words = tiny.words()
    return TextToImagePipeline(text_encoder=tiny.bert(words), tokenizer=words,
        unet=tiny.unet(16, channels=1), scheduler=tiny.scheduler())

def sd():
    clip = tiny.clip_pipeline()
    encoder = CLIPTextModel(clip.clip.config.text_config).eval()
    return StableDiffusionPipeline(vae=tiny.kl_vae(), text_encoder=encoder,
        tokenizer=clip.tokenizer, unet=tiny.unet(16), scheduler=tiny.scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)

def make(kind):
    if kind.startswith("codes-"):
        return tiny.codes_pipeline(kind.removeprefix("codes-"))
    return {"clip": tiny.clip_pipeline, "t2i": t2i, "sd": sd}[kind]()
"""
SAVE = (
    MAKE
    + DIGEST
    + """
from hfgen.hub.card import write_card
import hfgen
make(kind).save_pretrained(folder)
write_card(folder, repo_id=folder)
result = digest(hfgen.load(folder))
"""
)
KINDS = {
    "clip": ("zero-shot-image-classification", "Natural Language Supervision"),
    "codes-text": ("text-to-image", "Zero-Shot Text-to-Image Generation"),
    "codes-class": ("unconditional-image-generation", "Zero-Shot Text-to-Image Generation"),
    "codes-nothing": ("unconditional-image-generation", "Zero-Shot Text-to-Image Generation"),
    "t2i": ("text-to-image", "Latent Diffusion Models"),
    "sd": ("text-to-image", "Latent Diffusion Models"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_card_lines_and_check_of_a_model_of_texts(client, stranger, tmp_path, kind):
    """The lines of the card run where hfgen is not, and what `hfgen check` draws is the same."""
    folder = tmp_path / kind
    ours = client.run(SAVE, root=ROOT, kind=kind, folder=str(folder))
    front, body = split_card((folder / "README.md").read_text())
    task, paper = KINDS[kind]
    assert yaml.safe_load(front)["pipeline_tag"] == task and paper in body
    (lines,) = re.findall(r"```python\n(.*?)```", body, re.S)
    assert len(lines.strip().splitlines()) == 3
    Image.linear_gradient("L").save(tmp_path / "picture.png")
    name = "cosine" if kind == "clip" else "image"
    assert stranger.run(
        f"import os\nos.chdir(here)\n{lines}result = {name} is not None", here=str(tmp_path)
    )
    load = f"DiffusionPipeline.from_pretrained(folder{', trust_remote_code=True' * (kind != 'sd')})"
    code = DIGEST + f"from diffusers import DiffusionPipeline\nresult = digest({load})"
    assert stranger.run(code, folder=str(folder)) == ours


PICTURES = (
    MAKE
    + """
from pathlib import Path
from PIL import Image
from hfgen.hub.pictures import draw_pictures
from hfgen.samples import HeldOut
colors = ["red", "green", "blue"]
data = HeldOut(images=[Image.new("RGB", (16, 16), c) for c in colors],
               captions=["red heart", "green circle", "blue heart"])
call = {"num_inference_steps": 3} if kind in ("t2i", "sd") else {}
written = draw_pictures(make(kind), Path(out), data=data, prompts=prompts, call=call)
result = {path.stem: Image.open(path).size for path in written}
"""
)


@pytest.mark.parametrize(
    ("kind", "prompts", "names"),
    [
        ("clip", None, ["similarity"]),
        ("codes-text", ["red heart"], ["grid"]),
        ("codes-text", None, ["grid"]),  # of captions of the data
        ("codes-class", None, ["grid"]),
        ("sd", ["red heart", "blue circle"], ["denoising", "grid"]),
    ],
)
def test_pictures_of_texts(client, tmp_path, kind, prompts, names):
    sizes = client.run(PICTURES, root=ROOT, kind=kind, out=str(tmp_path), prompts=prompts)
    assert sorted(sizes) == names
    rows = {"clip": 4, "codes-class": 8}.get(kind, len(prompts or "123"))
    side = 66 if kind == "clip" else 18
    assert sizes[names[-1]][1] == rows * side + 2  # one row for each text


def test_the_table_of_cosines_is_bright_where_they_are_high(client, tmp_path):
    cosines = client.run(
        PICTURES
        + """
clip = make("clip")
result = (clip.embed_texts(data.captions) @ clip.embed_images(data.images).T).tolist()
""",
        **{"root": ROOT, "kind": "clip", "out": str(tmp_path), "prompts": None},
    )
    with Image.open(tmp_path / "similarity.png") as picture:
        left = picture.width - 3 * 66
        seen = [
            [picture.getpixel((left + 66 * i + 33, 66 * (j + 1) + 33))[0] for i in range(3)]
            for j in range(3)
        ]
    flat = sorted(
        (c, s)
        for row, line in zip(cosines, seen, strict=True)
        for c, s in zip(row, line, strict=True)
    )
    assert [shade for _, shade in flat] == sorted(shade for _, shade in flat)
    assert (flat[0][1], flat[-1][1]) == (0, 255)


def test_a_card_names_the_texts_and_settings_of_its_recipe(client, tmp_path):
    run = tmp_path / "tiny-t2i"
    client.run(MAKE + "make('sd').save_pretrained(folder)", root=ROOT, folder=str(run / "pipeline"))
    logging = {"sample_prompts": ['a "red" heart', "x"], "num_inference_steps": 25}
    recipe = {"name": "tiny-t2i", "family": "text", "logging": logging}
    recipe["logging"]["sample_call"] = {"guidance_scale": 3.0}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (run / "samples").mkdir()
    Image.new("RGB", (8, 8)).save(run / "samples" / "grid.png")
    code = "from hfgen.hub.card import write_card; result = write_card(run).read_text()"
    front, body = split_card(client.run(code, run=str(run)))
    call = r'pipeline("a \"red\" heart", num_inference_steps=25, guidance_scale=3.0).images[0]'
    assert call in body and "a row each" in body
    assert yaml.safe_load(front)["widget"][0]["text"] == 'a "red" heart, x'


def test_a_page_that_has_nothing_to_draw_is_refused(client, tmp_path):
    folder = str(tmp_path / "clip")
    client.run(MAKE + "make('clip').save_pretrained(folder)", root=ROOT, folder=folder)
    page = "from hfgen.hub.space import demo; demo(folder, block=False)"
    space = "from hfgen.hub.space import make_space; make_space(folder, 'user/x', token='hf_user')"
    for code in (page, space):
        assert "draws no images" in client.fails(code, folder=folder)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("sd", ["num_inference_steps", "guidance_scale", "prompt"]),
        ("codes-text", ["temperature", "guidance_scale", "prompt"]),
        ("codes-class", ["temperature", "class_labels"]),
    ],
)
def test_a_page_asks_for_what_the_model_takes(client, kind, names):
    code = (
        MAKE
        + """
from hfgen.hub.space import _app
page, pipeline = _app(), make(kind)
controls = page.controls(pipeline)
blocks = page.build(pipeline, "tiny")
values = [1 if name == "num_inference_steps" else c.value for name, c in controls.items()]
result = [list(controls), page.draw(pipeline, list(controls), 0, 2, *values).size]
"""
    )
    assert client.run(code, root=ROOT, kind=kind) == [names, [192, 96]]
