"""The pictures of a card: drawn by the pipeline itself, each family what it can."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfgen.data import DataConfig, load_source

CODE = """
import torch
from pathlib import Path
from PIL import Image
from hfgen.hub.pictures import draw_missing, draw_pictures
from hfgen.samples import HeldOut
torch.manual_seed(0)
data = HeldOut(images=[Image.new("L", (8, 8), 10 * i) for i in range(16)])
def make(kind):
    if kind == "vae":
        from hfgen.models.vae_mlp import MLPVAE
        from hfgen.pipelines.vae_pipeline import VAEPipeline
        return VAEPipeline(MLPVAE(sample_size=8, hidden_size=16, latent_dim=4))
    if kind == "gan":
        from hfgen.models.gan_dcgan import DCGANGenerator
        from hfgen.pipelines.gan_pipeline import GANPipeline
        return GANPipeline(DCGANGenerator(sample_size=8, out_channels=1, channels=4, latent_dim=4))
    import hfgen
    return hfgen.load(stock)
"""


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("vae", ["grid", "interpolation", "reconstructions"]),
        ("gan", ["grid", "interpolation"]),
        ("ddpm", ["denoising", "grid"]),
    ],
)
def test_each_family_draws_what_it_can(client, stock_pipeline, tmp_path, kind, expected):
    code = CODE + "result = [p.name for p in draw_pictures(make(kind), Path(out), data=data)]"
    names = client.run(code, kind=kind, stock=str(stock_pipeline), out=str(tmp_path))
    assert sorted(names) == [f"{name}.png" for name in expected]
    assert read(tmp_path / "grid.png").shape == (82, 82)  # 8 x 8 images of 8 pixels, padded


def test_reconstructions_stand_below_their_images(client, stock_pipeline, tmp_path):
    client.run(
        CODE + "draw_pictures(make('vae'), Path(out), data=data)",
        stock=str(stock_pipeline),
        out=str(tmp_path),
    )
    pixels = read(tmp_path / "reconstructions.png")
    tiles = pixels[2:, 2:].reshape(4, 10, 8, 10)[:, :8, :, :8]  # rows, y, columns, x
    assert (tiles[0].transpose(1, 0, 2) == 10 * np.arange(8)[:, None, None]).all()
    assert (tiles[2].transpose(1, 0, 2) == 10 * np.arange(8, 16)[:, None, None]).all()
    assert len(np.unique(tiles[1])) > 1


def test_denoising_begins_with_noise_and_ends_with_the_image(client, stock_pipeline, tmp_path):
    client.run(
        CODE
        + """
draw_pictures(make("ddpm"), Path(out))
generators = [torch.Generator().manual_seed(row) for row in range(4)]
made = make("ddpm")(batch_size=4, generator=generators, num_inference_steps=10).images
for row, image in enumerate(made):
    image.save(f"{out}/last{row}.png")
""",
        stock=str(stock_pipeline),
        out=str(tmp_path),
    )
    pixels = read(tmp_path / "denoising.png")
    columns = (pixels.shape[1] - 2) // 10
    tiles = pixels[2:, 2:].reshape(4, 10, columns, 10)[:, :8, :, :8]
    for row in range(4):
        last = read(tmp_path / f"last{row}.png")
        assert (tiles[row, :, -1] == last).all()
    assert tiles[:, :, 0].std() > 40  # standard normal noise over [-1, 1] spans most of the greys


MISSING = """
from pathlib import Path
from hfgen.hub.pictures import draw_missing, refresh_pictures
"""


def test_missing_ones_are_drawn_once(client, run_folder):
    code = MISSING + "result = [[p.name for p in draw_missing(Path(run))] for _ in range(2)]"
    shutil.rmtree(run_folder / "samples")
    names = ["grid.png", "denoising.png"]
    assert client.run(code, run=str(run_folder)) == [names, []]


def test_those_of_an_earlier_pipeline_are_drawn_again(client, run_folder):
    client.run(MISSING + "draw_missing(Path(run))", run=str(run_folder))
    later = time.time() + 10
    os.utime(run_folder / "pipeline" / "model_index.json", (later, later))
    code = MISSING + "result = [p.name for p in draw_missing(Path(run))]"
    assert client.run(code, run=str(run_folder)) == ["grid.png", "denoising.png"]


def test_reconstructions_are_of_held_out_images_of_the_recipe(client, tmp_path):
    code = """
    from pathlib import Path
    import hfgen
    from hfgen.hub.pictures import refresh_pictures
    hfgen.train("mnist-vae", **small, output_dir=run)
    refresh_pictures(Path(run))
    from hfgen.hub.card import write_card
    write_card(run)
    """
    small = {"training.max_steps": 2, "training.total_batch_size": 8, "data.max_images": 64}
    small |= {"logging.num_sample_images": 4, "model.vae.hidden_size": 8}
    client.run(code, run=str(tmp_path / "vae"), small=small)
    pixels = read(tmp_path / "vae" / "samples" / "reconstructions.png")
    first = load_source(DataConfig(path="mnist", max_images=64), split="validation").uint8([0])
    assert (pixels[2:30, 2:30] == first[0, 0].numpy()).all()
    assert "](samples/reconstructions.png)" in (tmp_path / "vae" / "README.md").read_text()


def test_code_that_may_not_run_is_shared_without_pictures(client, run_folder):
    """A push goes on, and says why."""
    index = run_folder / "pipeline" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "unet": ["own__01234567", "X"]}))
    shutil.rmtree(run_folder / "samples")
    code = """
    import contextlib, io
    from pathlib import Path
    from hfgen.hub.pictures import refresh_pictures
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        refresh_pictures(Path(run))
    result = said.getvalue()
    """
    said = client.run(code, run=str(run_folder))
    assert said.startswith("hfgen: pictures not drawn:") and "code of its own (unet)" in said
