"""The demo page and the Space: what its sliders do, and that it runs without hfgen."""

from __future__ import annotations

import shutil
import socket

import pytest
import yaml
from hub_client import MAIN

from hfgen.hub.folder import split_card

APP = """
import importlib.util, json
import torch
from diffusers import DiffusionPipeline
spec = importlib.util.spec_from_file_location("space_app", app)
page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page)
pipeline = DiffusionPipeline.from_pretrained(model, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
names = list(page.controls(pipeline))
defaults = [control.value for control in page.controls(pipeline).values()]
def pixels(image):
    return list(image.tobytes())
"""
GAN = """
import torch
from hfgen.models.gan_dcgan import DCGANGenerator
from hfgen.pipelines.gan_pipeline import GANPipeline
torch.manual_seed(0)
generator = DCGANGenerator(
    sample_size=8, out_channels=1, channels=4, latent_dim=4, num_class_embeds=3
)
GANPipeline(generator).save_pretrained(folder)
"""


@pytest.fixture(scope="module")
def gan_folder(client, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan") / "tiny-gan"
    client.run(GAN, folder=str(folder))
    return folder


@pytest.fixture(scope="module")
def space(client, gan_folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("space")
    client.run(
        "from pathlib import Path\nfrom hfgen.hub.space import write_space\n"
        "write_space(folder, Path(target))",
        folder=str(gan_folder),
        target=str(target),
    )
    return target


def app(stranger, folder, code):
    return stranger.run(APP + code, app=str(folder / "app.py"), model=str(folder / "model"))


def test_a_space_holds_page_requirements_and_model(space):
    names = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    assert {"app.py", "requirements.txt", "README.md", "model/model_index.json"} <= names
    data = yaml.safe_load(split_card((space / "README.md").read_text())[0])
    assert (data["sdk"], data["app_file"]) == ("gradio", "app.py")
    pins = (space / "requirements.txt").read_text()
    assert f"gradio=={data['sdk_version']}\n" in pins and "+cpu" not in pins
    assert "hfgen" not in pins


def test_sliders_follow_the_pipeline(space, stranger):
    assert app(stranger, space, "result = names") == ["truncation_psi", "class_labels"]


def test_seed_and_sliders_change_the_image_and_repeat(space, stranger):
    code = """
def made(seed, count, psi, label):
    return pixels(page.draw(pipeline, names, seed, count, psi, label))
result = [made(0, 2, 1.0, 0), made(0, 2, 1.0, 0), made(1, 2, 1.0, 0), made(0, 2, 0.3, 0),
          made(0, 2, 1.0, 1), made(0, 1, 1.0, 0)]
"""
    first, again, seed, psi, label, fewer = app(stranger, space, code)
    assert first == again
    assert all(other != first for other in (seed, psi, label))
    assert len(fewer) == len(first) // 2


def test_each_image_has_its_own_seed(space, stranger):
    """The second image of seed 0 is the first of seed 1."""
    code = """
two = page.draw(pipeline, names, 0, 2, 1.0, 0)
one = page.draw(pipeline, names, 1, 1, 1.0, 0)
width, height = one.size
result = pixels(two.crop((width, 0, 2 * width, height))) == pixels(one)
"""
    assert app(stranger, space, code) is True


def test_the_walk_begins_and_ends_at_its_seeds(space, stranger):
    code = """
def at(share):
    return pixels(page.walk(pipeline, names, 0, 1, share, 1.0, 0)[0])
def of(seed):
    latents = page.latent(pipeline, seed)[None]
    return pixels(page.sheet(pipeline(latents=latents, class_labels=0).images, 1))
result = [at(0.0) == of(0), at(1.0) == of(1), at(0.5) not in (of(0), of(1))]
"""
    assert app(stranger, space, code) == [True, True, True]


def test_a_diffusion_pipeline_has_steps_and_no_walk(stock_pipeline, space, stranger):
    code = """
drawn = page.draw(pipeline, names, 0, 1, *defaults)
blocks = page.build(pipeline, "tiny")
labels = [block.label for block in blocks.blocks.values() if getattr(block, "label", None)]
result = [names, defaults, drawn.size, labels]
"""
    values = {"app": str(space / "app.py"), "model": str(stock_pipeline)}
    names, defaults, size, labels = stranger.run(APP + code, **values)
    assert (names, defaults) == (["num_inference_steps"], [10])
    assert size == [96, 96]
    assert {"Seed", "Images", "Steps"} <= set(labels) and "Position" not in labels


def test_a_space_is_pushed_in_one_commit(hub, client, gan_folder):
    code = """
    from hfgen.hub.space import make_space
    result = make_space(folder, "user/demo", token="hf_user").url
    """
    url = client.run(code, folder=str(gan_folder))
    assert "/spaces/user/demo/commit/" in url
    files = hub.files("user/demo", kind="space")
    assert {"app.py", "model/model_index.json"} <= set(files)
    assert not [line for line in hub.log if line.startswith("POST /api/models")]
    assert client.run(code, folder=str(gan_folder)) == url  # nothing changed, so no second commit


def test_the_page_answers_here_too(client, gan_folder):
    """`hfgen demo` serves; a request to its API draws."""
    code = """
    import contextlib, io, urllib.request
    from hfgen.errors import HfgenError
    from hfgen.hub.space import demo
    with contextlib.redirect_stdout(io.StringIO()):
        address = demo(folder, port=port, block=False)
    page = urllib.request.urlopen(address).read().decode()
    try:
        demo(folder, port=port, block=False)
    except HfgenError as error:
        said = str(error)
    import gradio
    gradio.close_all()
    result = ["tiny-gan" in page, address, said]
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shown, address, said = client.run(code, folder=str(gan_folder), port=port)
    assert shown and address == f"http://127.0.0.1:{port}/"
    assert f"--port {port}" in said and "\n" not in said  # which is taken now


def test_code_that_is_not_ours_waits_for_the_flag(hub, client, gan_folder, tmp_path):
    """And where it could not load alone no Space is made of it."""
    folder = shutil.copytree(gan_folder, tmp_path / "other")
    (code,) = (folder / "generator").glob("*.py")
    code.write_text(code.read_text() + "\nMORE = 1\n")
    status, said = client.run(MAIN, words=["demo", str(folder)])
    assert status == 2 and said.count("\n") == 1 and "then add --trust-remote-code" in said
    page = """
    from hfgen.hub.space import build_page
    result = build_page(folder, trust_remote_code=True).title
    """
    assert client.run(page, folder=str(folder))
    code.write_text(code.read_text() + "import no_such_module\n")
    status, said = client.run(MAIN, words=["space", str(folder), "user/lacking"])
    assert status == 2 and "imports no_such_module" in said
    assert "spaces/user/lacking" not in hub.repos


def test_a_demo_of_nothing_is_one_line(client, tmp_path):
    code = "from hfgen.hub.space import demo; demo(folder, block=False)"
    assert "no pipeline" in client.fails(code, folder=str(tmp_path))
