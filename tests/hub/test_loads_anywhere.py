"""Every bundled recipe's pipeline: pushed, loaded where hfgen cannot be imported, pushed from there
and loaded again, always with the same images."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_client import QUICK

import hfgen.hub
from hfgen.recipe import bundled

DRAW = (Path(hfgen.hub.__path__[0]) / "clean_process.py").read_text()
DIGEST = DRAW.replace('if __name__ == "__main__":\n    main()', "") + (
    """
import hashlib
def digest(pipeline):
    images = draw(pipeline)
    return [str(images.dtype), list(images.shape), hashlib.sha256(images.tobytes()).hexdigest()]
"""
)
EXPORT = (
    QUICK
    + """
import torch
from hfgen import recipe as recipes
from hfgen.build import build_components, build_pipeline
from hfgen.data import DataSpec
from hfgen.hub.push import push

recipe = recipes.load(name)
colour, side = (3, 32) if recipe.data.path == "emoji" else (1, 28)
spec = DataSpec(name=recipe.data.path, split="train", num_images=1, channels=colour,
    height=recipe.data.resolution or side, width=recipe.data.resolution or side,
    class_names=tuple("0123456789"), fingerprint="0")
torch.manual_seed(0)
build_pipeline(recipe, build_components(recipe, spec)).save_pretrained(folder)
push(folder, repo, token="hf_user", retry=retry)
"""
)


@pytest.mark.parametrize("name", bundled())
def test_pushed_loaded_pushed_and_loaded_again(hub, client, stranger, tmp_path, name):
    repo, again = f"user/{name}", f"user/{name}-again"
    client.run(EXPORT, name=name, folder=str(tmp_path / name), repo=repo)
    code = DIGEST + "import hfgen; result = digest(hfgen.load(repo))"
    ours = client.run(code, repo=repo)
    theirs = stranger.run(
        DIGEST
        + """
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)
first = digest(pipeline)
pipeline.push_to_hub(again, token="hf_user")
reloaded = DiffusionPipeline.from_pretrained(again, trust_remote_code=True)
assert "hfgen" not in sys.modules
result = [first, digest(reloaded)]
""",
        repo=repo,
        again=again,
    )
    assert theirs == [ours, ours]
    assert client.run(code, repo=again) == ours
    assert not [path for path in hub.files(again) if path.endswith((".bin", ".pt", ".pkl"))]


def test_a_snapshot_loads_offline(hub, client, stranger, tmp_path):
    client.run(EXPORT, name="mnist-vae", folder=str(tmp_path / "vae"), repo="user/offline")
    folder = client.run(
        "from hfgen.hub.fetch import fetch; result = str(fetch('user/offline', token='hf_user'))"
    )
    hub.forget()
    code = "pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)\n"
    stranger.run(
        "from diffusers import DiffusionPipeline\n" + code + "pipeline().images[0]", folder=folder
    )
    assert hub.log == []
