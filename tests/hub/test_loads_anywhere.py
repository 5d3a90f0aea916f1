"""Every bundled recipe's pipeline: pushed, loaded where hfgen cannot be imported, pushed from there
and loaded again, always with the same images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hub_client import QUICK, client_environment

import hfgen.hub
from hfgen.recipe import bundled, find, read

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
from pathlib import Path
import torch
from hfgen import recipe as recipes
from hfgen.build import build_component, build_components, build_pipeline
from hfgen.build import component_settings, frozen_autoencoder
from hfgen.data import DataSpec
from hfgen.hub.push import push
from hfgen.pipelines._autoencoder import latent_moments
from hfgen.text import make_tokenizer

CAPTIONS = ["red heart", "grinning face", "a picture of japan flag", "blue circle"]

def spec(name, *shape):
    channels, height, width = shape
    return DataSpec(name=name, split="train", num_images=1, channels=channels, height=height,
        width=width, class_names=tuple("0123456789"), fingerprint="0")

def export(name, folder):
    recipe = recipes.load(name)
    for part in recipe.model.values():  # what it starts from is exported first
        source = part if isinstance(part, str) else part.get("pretrained", "")
        if source.startswith("runs/") and not Path(source).exists():
            export(source.removeprefix("runs/"), source + "/pipeline")
    sides = {"./data/emoji-64": (3, 64), "emoji": (3, 32)}
    channels, side = sides.get(recipe.data.path, (1, 28))
    shape = (channels, recipe.data.resolution or side, recipe.data.resolution or side)
    torch.manual_seed(0)
    role = frozen_autoencoder(recipe)
    if role is not None:
        vae = build_component(role, component_settings(recipe)[role]).eval()
        with torch.no_grad():
            shape = latent_moments(vae, torch.zeros(1, *shape))[0].shape[1:]
    parts = {}
    if "tokenizer" in component_settings(recipe):  # trained on captions, unless it is loaded
        parts["tokenizer"] = make_tokenizer(component_settings(recipe)["tokenizer"], CAPTIONS)
    components = build_components(recipe, spec(recipe.data.path, *shape), parts)
    build_pipeline(recipe, components).save_pretrained(folder)

export(name, folder)
push(folder, repo, token="hf_user", retry=retry)
"""
)


def recipes():
    """Every bundled recipe; in the ordinary suite one for each pipeline class.

    Each model's code alone is in tests/pipelines/test_standalone.py, and models of texts are in
    test_text_models.py.
    """
    seen: set[str] = set()
    for name in bundled():
        values = read(find(name))
        quick = values["pipeline"] not in seen and values["family"] != "text"
        yield pytest.param(name, marks=[] if quick else [pytest.mark.slow])
        seen |= {values["pipeline"]} if quick else set()


@pytest.mark.parametrize("name", list(recipes()))
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


TWINS = """
import shutil, sys
from pathlib import Path
sys.path.insert(0, source)
import torch
from hfgen.hub.push import push
from hfgen.pipelines.vae_pipeline import VAEPipeline
import twin_vae
torch.manual_seed(0)
pipeline = VAEPipeline(twin_vae.TwinVAE())
pipeline.vae.offset.data.fill_(0.5)
pipeline.save_pretrained(folder)
push(folder, repo, token="hf_user")
sys.path.remove(source)
del sys.modules["twin_vae"]
"""
TWIN_VAE = '''
"""A decoder that ignores its latent: every pixel is SIGN offset."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput


class TwinVAE(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: int = 8):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.zeros(1))

    @property
    def latent_shape(self):
        return (2,)

    def decode(self, z):
        side = self.config.sample_size
        return DecoderOutput(sample=(SIGN self.offset).expand(len(z), 1, side, side))
'''
MEAN = """
from diffusers import DiffusionPipeline
pipelines = [DiffusionPipeline.from_pretrained(repo, trust_remote_code=True) for repo in repos]
means = [float(p(output_type="np").images.mean()) for p in pipelines]
result = [round(mean, 3) for mean in means]
"""
SIGNS = {"user/twin-plus": "+", "user/twin-minus": "-"}
MEANS = {"user/twin-plus": 0.75, "user/twin-minus": 0.25}  # +-0.5 in [-1, 1], shown in [0, 1]


@pytest.fixture(scope="module")
def twins(client, tmp_path_factory):
    """Two repositories whose model files have one name and class, and differ in one sign."""
    for repo, sign in SIGNS.items():
        source = tmp_path_factory.mktemp("source")
        (source / "twin_vae.py").write_text(TWIN_VAE.replace("SIGN", sign))
        client.run(TWINS, source=str(source), folder=str(source / "pipeline"), repo=repo)
    return list(SIGNS)


def test_two_repositories_with_files_of_one_name_in_one_process(hub, stranger, twins):
    assert stranger.run(MEAN, repos=twins) == [0.75, 0.25]
    assert stranger.run(MEAN, repos=twins[::-1]) == [0.25, 0.75]


TOGETHER = """
import multiprocessing, sys
from diffusers import DiffusionPipeline  # what costs seconds is imported once, before the fork

def load(repo, start, answers):
    start.wait()
    for _ in range(10):
        try:
            pipeline = DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)
            break
        except (AttributeError, SyntaxError):  # half a file: diffusers copies code without a lock
            continue
    answers.put((repo, round(float(pipeline(output_type="np").images.mean()), 3)))

context = multiprocessing.get_context("fork")
start, answers = context.Event(), context.Queue()
count, repos = int(sys.argv[1]), sys.argv[2:]
children = [
    context.Process(target=load, args=(repos[i % len(repos)], start, answers)) for i in range(count)
]
for child in children:
    child.start()
start.set()
for _ in children:
    print(*answers.get(timeout=300))
"""


@pytest.mark.parametrize("count", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_loads_at_once_in_separate_processes(hub, twins, tmp_path, count):
    """Processes that share one empty cache and start together: none runs the other's code.

    One may find a code file that another is still copying; that load fails, and a second works.
    """
    command = [sys.executable, "-c", TOGETHER, str(count), *twins]
    environment = client_environment(hub.url, tmp_path)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=400)
    seen = [line.split() for line in done.stdout.splitlines()]
    assert len(seen) == count and {repo for repo, _ in seen} == set(twins)
    assert all(float(mean) == MEANS[repo] for repo, mean in seen), seen


LOCKED = TOGETHER.replace(
    "from diffusers import DiffusionPipeline  #", "import hfgen, diffusers, hfgen.hub.load  #"
).replace("DiffusionPipeline.from_pretrained(", "hfgen.load(")
LOCKED = LOCKED.replace("range(10)", "range(1)").replace("(AttributeError, SyntaxError)", "()")


@pytest.mark.parametrize("count", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_trusted_loads_of_hfgen_wait_for_one_another(hub, twins, tmp_path, count):
    """As above, through ``hfgen.load(trust_remote_code=True)``: none has to try twice."""
    command = [sys.executable, "-c", LOCKED, str(count), *twins]
    environment = client_environment(hub.url, tmp_path)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=400)
    seen = [line.split() for line in done.stdout.splitlines()]
    assert len(seen) == count
    assert all(float(mean) == MEANS[repo] for repo, mean in seen), seen
