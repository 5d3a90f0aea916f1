"""What a pipeline saves loads where hfgen is not, and again after being saved there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import conv_vae, draw, gan, mlp_vae, quiet
from diffusers import AutoencoderKL
from hub_client import ClientError, client_environment
from safetensors.torch import load_file

from hfgen.pipelines._self_contained import export_name
from hfgen.pipelines.gan_pipeline import GANPipeline
from hfgen.pipelines.vae_pipeline import VAEPipeline

LOAD = """
import sys
import numpy as np
import torch
from diffusers import DiffusionPipeline

def load(folder, **options):
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

def draw(pipeline, **options):
    generator = torch.Generator().manual_seed(0)
    return pipeline(batch_size=4, generator=generator, output_type="np", **options).images
"""


def kl_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        norm_num_groups=4,
        sample_size=8,
    )
    return vae.eval()


PIPELINES = {
    "mlp": lambda: VAEPipeline(mlp_vae(), likelihood={"type": "bernoulli"}),
    "conv": lambda: VAEPipeline(conv_vae(), likelihood={"type": "gaussian", "std": 0.1}),
    "stock-vae": lambda: VAEPipeline(kl_vae()),
    "gan": lambda: GANPipeline(*gan()),
    "gan-colour": lambda: GANPipeline(gan(channels=3)[0]),
}


@pytest.fixture(params=PIPELINES)
def pipeline(request):
    return quiet(PIPELINES[request.param]())


def code_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py"))


def test_a_stranger_gets_the_same_images_saves_them_and_gets_them_again(
    pipeline, stranger, tmp_path
):
    pipeline.save_pretrained(tmp_path / "first")
    stranger.run(
        LOAD
        + """
pipeline = load(f"{folder}/first")
np.save(f"{folder}/first.npy", draw(pipeline))
pipeline.save_pretrained(f"{folder}/second")
again = load(f"{folder}/second")
np.save(f"{folder}/second.npy", draw(again))
assert type(again).__module__.startswith("diffusers_modules.")
assert not [name for name in sys.modules if name.split(".")[0] == "hfgen"]
""",
        folder=str(tmp_path),
    )
    expected = draw(pipeline)
    assert expected.std() > 0
    np.testing.assert_array_equal(np.load(tmp_path / "first.npy"), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "second.npy"), expected)
    assert code_files(tmp_path / "first") == code_files(tmp_path / "second")
    again = quiet(type(pipeline).from_pretrained(tmp_path / "second"))
    assert type(again) is type(pipeline)
    np.testing.assert_array_equal(draw(again), expected)


def test_saving_twice_writes_the_same_bytes(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "first")
    type(pipeline).from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for path in (tmp_path / "first").rglob("*"):
        if path.is_file():
            other = tmp_path / "second" / path.relative_to(tmp_path / "first")
            assert path.read_bytes() == other.read_bytes(), path.name


def test_the_folder_is_what_the_design_says(vae_pipeline, gan_pipeline, tmp_path):
    vae_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    stem, cls = index["_class_name"]
    component, model = index["vae"]
    assert (cls, model, index["likelihood"]) == ("VAEPipeline", "MLPVAE", {"type": "bernoulli"})
    assert code_files(tmp_path) == [f"vae/{component}.py", f"{stem}.py"]
    assert stem.startswith("vae_pipeline__") and component.startswith("vae_mlp__")
    weights = [path.name for path in tmp_path.rglob("*") if path.suffix not in (".py", ".json")]
    assert weights == ["vae", "diffusion_pytorch_model.safetensors"]
    gan_pipeline.save_pretrained(tmp_path)  # code of the last save goes, other files stay
    assert f"{stem}.py" in code_files(tmp_path)


def test_saving_again_removes_the_old_code(vae_pipeline, tmp_path):
    vae_pipeline.save_pretrained(tmp_path)
    old = tmp_path / "vae" / "vae_mlp__00000000.py"
    mine = tmp_path / "vae" / "helper.py"
    old.write_text("")
    mine.write_text("")
    vae_pipeline.save_pretrained(tmp_path)
    assert not old.exists() and mine.exists()


def test_no_pickle_is_written(vae_pipeline, tmp_path):
    with pytest.raises(ValueError, match="safetensors only"):
        vae_pipeline.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.iterdir())


def test_no_pickle_is_read(vae_pipeline, tmp_path):
    vae_pipeline.save_pretrained(tmp_path)
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        VAEPipeline.from_pretrained(tmp_path)


def test_no_path_of_the_sharer_travels(vae_pipeline, tmp_path):
    vae_pipeline.save_pretrained(tmp_path / "first")
    VAEPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for path in (tmp_path / "second").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_variant_sharding_and_dtype(stranger, tmp_path):
    pipeline = quiet(GANPipeline(gan()[0]))
    pipeline.save_pretrained(tmp_path / "sharded", max_shard_size="1KB")
    shards = list((tmp_path / "sharded" / "generator").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    pipeline.save_pretrained(tmp_path / "variant", variant="fp16")
    assert (tmp_path / "variant/generator/diffusion_pytorch_model.fp16.safetensors").is_file()
    stranger.run(
        LOAD
        + """
np.save(f"{folder}/sharded.npy", draw(load(f"{folder}/sharded")))
np.save(f"{folder}/variant.npy", draw(load(f"{folder}/variant", variant="fp16")))
mapped = load(f"{folder}/sharded", device_map="cpu")
np.save(f"{folder}/mapped.npy", draw(mapped))
half = load(f"{folder}/sharded", dtype=torch.bfloat16)
assert half.generator.dtype == torch.bfloat16
assert draw(half).dtype == np.float32
np.save(f"{folder}/half.npy", draw(half))
""",
        folder=str(tmp_path),
    )
    expected = draw(pipeline)
    for name in ("sharded", "variant", "mapped"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)
    np.testing.assert_allclose(np.load(tmp_path / "half.npy"), expected, atol=0.03)
    with pytest.raises(ValueError, match="variant=fp16"):
        GANPipeline.from_pretrained(tmp_path / "sharded", variant="fp16")
    same = quiet(GANPipeline.from_pretrained(tmp_path / "sharded", device_map="cpu"))
    np.testing.assert_array_equal(draw(same), expected)


def test_components_load_alone(gan_pipeline, tmp_path):
    gan_pipeline.save_pretrained(tmp_path)
    for role in ("generator", "discriminator"):
        mine = getattr(gan_pipeline, role)
        loaded = type(mine).from_pretrained(tmp_path, subfolder=role)
        assert loaded.config["sample_size"] == 8
        for name, value in mine.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)


def test_a_compiled_component_is_saved_as_itself(vae_pipeline, tmp_path):
    expected = draw(vae_pipeline)
    vae_pipeline.vae = torch.compile(vae_pipeline.vae, backend="eager")
    vae_pipeline.save_pretrained(tmp_path)
    np.testing.assert_array_equal(draw(quiet(VAEPipeline.from_pretrained(tmp_path))), expected)


def test_a_replaced_component_travels_in_place_of_the_old(vae_pipeline, stranger, tmp_path):
    """Also where hfgen is not installed: a model of the stranger's own, in a file of its own."""
    vae_pipeline.save_pretrained(tmp_path / "first")
    (tmp_path / "grey_vae.py").write_text(
        "import torch\n"
        "from diffusers import ConfigMixin, ModelMixin\n"
        "from diffusers.configuration_utils import register_to_config\n"
        "from diffusers.models.autoencoders.vae import DecoderOutput\n"
        "class GreyVAE(ModelMixin, ConfigMixin):\n"
        "    latent_shape = (2,)\n"
        "    @register_to_config\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.level = torch.nn.Parameter(torch.zeros(1))\n"
        "    def decode(self, z):\n"
        "        return DecoderOutput(sample=self.level.expand(len(z), 1, 8, 8))\n"
    )
    stranger.run(
        LOAD
        + """
sys.path.insert(0, folder)
from grey_vae import GreyVAE
pipeline = load(f"{folder}/first")
pipeline.vae = GreyVAE()
pipeline.save_pretrained(f"{folder}/second")
del sys.modules["grey_vae"]
sys.path.remove(folder)
assert np.all(draw(load(f"{folder}/second")) == 0.5)
""",
        folder=str(tmp_path),
    )
    files = code_files(tmp_path / "second")
    assert len(files) == 2 and files[0].startswith("vae/grey_vae__")


def test_two_repositories_with_the_same_file_name_give_each_its_own_images(
    vae_pipeline, stranger, tmp_path
):
    """One differs in what its decoder does; loaded one after the other, and used in turns."""
    vae_pipeline.save_pretrained(tmp_path / "mine")
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs")
    edit_decoder(tmp_path / "theirs")
    stranger.run(
        LOAD
        + """
mine, theirs = load(f"{folder}/mine"), load(f"{folder}/theirs")
assert np.allclose(draw(mine), 1 - draw(theirs), atol=1e-6)
assert not np.allclose(draw(mine), draw(theirs), atol=1e-3)
assert np.array_equal(draw(load(f"{folder}/mine")), draw(mine))
theirs.save_pretrained(f"{folder}/again")
assert np.array_equal(draw(load(f"{folder}/again")), draw(theirs))
""",
        folder=str(tmp_path),
    )


def edit_decoder(folder: Path, name: str | None = None) -> None:
    """Give a saved pipeline a decoder of the opposite sign, as a later version of it would be.

    Its file is named as an export would name it, unless a ``name`` is given.
    """
    index = json.loads((folder / "model_index.json").read_text())
    old = folder / "vae" / f"{index['vae'][0]}.py"
    code = old.read_text().replace("DecoderOutput(sample=sample)", "DecoderOutput(sample=-sample)")
    assert code != old.read_text()
    index["vae"][0] = name or export_name("vae_mlp", code)
    old.unlink()
    (folder / "vae" / f"{index['vae'][0]}.py").write_text(code)
    (folder / "model_index.json").write_text(json.dumps(index))


def test_installed_code_is_used_only_where_it_is_the_same(vae_pipeline, tmp_path):
    vae_pipeline.save_pretrained(tmp_path)
    edit_decoder(tmp_path, name="vae_mlp__0123abcd")
    with pytest.raises(ValueError) as caught:
        VAEPipeline.from_pretrained(tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    for part in (f"{tmp_path}/vae", "vae_mlp__0123abcd.py", "installed is vae_mlp__", "hfgen 0"):
        assert part in said
    assert "trust_remote_code=True" in said


def test_code_that_comes_along_is_not_run_without_the_flag(vae_pipeline, tmp_path):
    vae_pipeline.save_pretrained(tmp_path)
    for path in tmp_path.rglob("*.py"):
        path.write_text("raise SystemExit('the code that came along was run')\n")
    np.testing.assert_array_equal(
        draw(quiet(VAEPipeline.from_pretrained(tmp_path))), draw(vae_pipeline)
    )


def test_a_stranger_must_give_the_flag(vae_pipeline, stranger, tmp_path):
    vae_pipeline.save_pretrained(tmp_path)
    with pytest.raises(ClientError, match="trust_remote_code=True"):
        stranger.run(
            "from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained(folder)",
            folder=str(tmp_path),
        )
    code = LOAD + "type(load(folder)).from_pretrained(folder)"
    with pytest.raises(ClientError, match="no such code is installed .hfgen is not installed"):
        stranger.run(code, folder=str(tmp_path))


def test_a_class_of_a_notebook_is_refused_before_anything_is_half_written(vae_pipeline, tmp_path):
    cls = type("Homeless", (type(vae_pipeline.vae),), {"__module__": "__main__"})
    vae_pipeline.vae.__class__ = cls
    with pytest.raises(ValueError, match="__main__: .* in a module of its own"):
        vae_pipeline.save_pretrained(tmp_path)
    assert not (tmp_path / "model_index.json").exists()


def test_a_card_in_the_folder_survives_saving(vae_pipeline, tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    vae_pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


CONCURRENT = (
    LOAD
    + """
import os
import traceback
folder, count = sys.argv[1], int(sys.argv[2])

def load_again(name):
    for _ in range(20):
        try:
            return load(f"{folder}/{name}")
        except (AttributeError, SyntaxError):  # half a file: diffusers copies code without a lock
            continue
    raise AssertionError("no load in 20 found whole files")

def child(name):
    expected = np.load(f"{folder}/{name}.npy")
    for _ in range(3):
        images = draw(load_again(name))
        assert np.allclose(images, expected, atol=1e-6), "images of another repository"

def fork(name):
    process = os.fork()
    if process == 0:
        try:
            child(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return process

processes = [fork(("mine", "theirs")[i % 2]) for i in range(count)]
codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
assert codes == [0] * count, codes
"""
)
"""Forked only after the imports, so that the loads themselves overlap."""


@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_concurrent_processes_never_run_each_others_code(vae_pipeline, tmp_path, count):
    """They share one module cache; half load one version of ``vae_mlp``, half another.

    diffusers writes a folder's code into that cache anew at each load: one process may find a file
    that another is still copying. Such a load fails and is made again; a wrong image is an error.
    """
    vae_pipeline.save_pretrained(tmp_path / "mine")
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs")
    edit_decoder(tmp_path / "theirs")
    np.save(tmp_path / "mine.npy", draw(vae_pipeline))
    np.save(tmp_path / "theirs.npy", 1 - draw(vae_pipeline))
    run = subprocess.run(
        [sys.executable, "-c", CONCURRENT, tmp_path, str(count)],
        env=client_environment("http://127.0.0.1:9", tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
