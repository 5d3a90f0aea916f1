"""hfgen.load and load_component: runs, folders, stock pipelines; and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NOWHERE, Client, draw, gan, quiet
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import hfgen
from hfgen.errors import HfgenError
from hfgen.hub.load import load_component
from hfgen.pipelines.gan_pipeline import GANPipeline
from hfgen.pipelines.vae_pipeline import VAEPipeline


@pytest.fixture
def saved(vae_pipeline, tmp_path) -> Path:
    vae_pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def stock(tmp_path) -> Path:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


def edit_index(folder: Path, **changes) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(call, *arguments, **options) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(HfgenError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_and_a_run(saved, vae_pipeline, tmp_path):
    expected = draw(vae_pipeline)
    run = tmp_path / "runs" / "mnist-vae"
    shutil.copytree(saved, run / "pipeline")
    (run / "checkpoints").mkdir()
    for source in (saved, str(saved), f"{saved}/", run, str(run)):
        pipeline = hfgen.load(source)
        assert type(pipeline) is VAEPipeline
        np.testing.assert_array_equal(draw(quiet(pipeline)), expected)


def test_a_relative_path_of_two_parts_is_a_folder_before_it_is_a_hub_id(saved, monkeypatch):
    monkeypatch.chdir(saved.parent.parent)
    assert type(hfgen.load(f"{saved.parent.name}/saved")) is VAEPipeline


def test_options_of_from_pretrained_pass_through(saved):
    assert hfgen.load(saved, dtype=torch.bfloat16).vae.dtype == torch.bfloat16
    assert "variant=fp16" in refused(hfgen.load, saved, variant="fp16")


def test_a_stock_pipeline(stock):
    pipeline = hfgen.load(stock)
    assert type(pipeline) is DDPMPipeline
    assert type(load_component(stock, "unet")) is UNet2DModel
    assert type(load_component(stock, "scheduler")) is DDPMScheduler


def test_components(tmp_path):
    generator, discriminator = gan()
    GANPipeline(generator, discriminator).save_pretrained(tmp_path / "pipeline")
    for role, mine in (("generator", generator), ("discriminator", discriminator)):
        for source in (tmp_path, tmp_path / "pipeline"):
            loaded = load_component(source, role)
            assert type(loaded) is type(mine)
            for name, value in mine.state_dict().items():
                assert torch.equal(loaded.state_dict()[name], value)
    said = refused(load_component, tmp_path, "vae")
    assert "no component 'vae'; it has discriminator, generator" in said
    GANPipeline(generator).save_pretrained(tmp_path / "alone")
    assert "no component 'discriminator'" in refused(
        load_component, tmp_path / "alone", "discriminator"
    )


def test_a_folder_with_one_stock_model(stock, saved):
    assert type(load_component(stock / "unet", "unet")) is UNet2DModel
    assert "its class 'MLPVAE' is none of diffusers" in refused(
        load_component, saved / "vae", "vae"
    )


def test_no_code_that_came_along_is_run(saved):
    for path in saved.rglob("*.py"):
        path.write_text("raise SystemExit('it was run')\n")
    assert type(hfgen.load(saved)) is VAEPipeline
    assert type(load_component(saved, "vae")).__module__ == "hfgen.models.vae_mlp"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"vae": ["vae_mlp__01234567", "MLPVAE"]}, ["saved/vae", "installed is vae_mlp__"]),
        ({"vae": ["vae_new__01234567", "NewVAE"]}, ["vae_new__01234567.py", "no such code"]),
        (
            {"_class_name": ["vae_pipeline__01234567", "VAEPipeline"]},
            ["vae_pipeline__01234567.py", "installed is vae_pipeline__"],
        ),
        (
            {"_class_name": ["flow_pipeline__01234567", "FlowPipeline"], "_hfgen_version": "9.1"},
            ["saved by hfgen 9.1", "no such code", f"(hfgen {hfgen.__version__})"],
        ),
        ({"_class_name": ["my_pipeline", "MyPipeline"]}, ["my_pipeline", "not hfgen's"]),
    ],
)
def test_other_code_is_named_and_waits_for_the_flag(saved, change, parts):
    edit_index(saved, **change)
    said = refused(hfgen.load, saved)
    for part in (*parts, str(saved), "trust_remote_code=True"):
        assert part in said


def test_other_code_of_a_component(saved):
    edit_index(saved, vae=["vae_mlp__01234567", "MLPVAE"])
    said = refused(load_component, saved, "vae")
    assert "vae_mlp__01234567.py" in said and "installed is vae_mlp__" in said


def test_a_stock_pipeline_with_code_of_its_own(stock):
    edit_index(stock, unet=["my_unet__01234567", "MyUNet"])
    said = refused(hfgen.load, stock)
    assert "brings code of its own (unet)" in said


def test_a_pipeline_of_another_diffusers(stock):
    edit_index(stock, _class_name="DreamPipeline", _diffusers_version="9.0")
    said = refused(hfgen.load, stock)
    assert "a DreamPipeline saved by diffusers 9.0" in said


def test_what_is_no_pipeline(saved, tmp_path, monkeypatch):
    assert "no pipeline (it holds no model_index.json)" in refused(hfgen.load, tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "a run that has exported no pipeline" in refused(hfgen.load, tmp_path / "run")
    assert "a file; give the folder" in refused(hfgen.load, saved / "model_index.json")
    assert "no such folder" in refused(hfgen.load, tmp_path / "absent")
    assert "no such folder" in refused(hfgen.load, "absent")
    monkeypatch.chdir(tmp_path)
    assert "no such folder" in refused(hfgen.load, "run/absent")
    assert "not valid" in refused(hfgen.load, "not a/name")


def test_broken_files(saved):
    weights = saved / "vae" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert str(saved) in refused(hfgen.load, saved)
    assert str(saved) in refused(load_component, saved, "vae")
    weights.unlink()
    assert "diffusion_pytorch_model.safetensors" in refused(hfgen.load, saved)
    weights.with_suffix(".bin").write_bytes(b"a pickle")
    assert "safetensors" in refused(hfgen.load, saved)
    (saved / "model_index.json").write_text("{")
    assert str(saved) in refused(hfgen.load, saved)
    (saved / "model_index.json").write_text("[]")
    assert "not a JSON object" in refused(hfgen.load, saved)


def test_the_flag_runs_what_came_along(saved, tmp_path):
    """In a process of its own, since that code stays imported: with hfgen's loader as the door."""
    code = saved / "vae" / f"{json.loads((saved / 'model_index.json').read_text())['vae'][0]}.py"
    code.write_text(code.read_text() + "\nRAN = True\n")
    process = Client(NOWHERE, tmp_path)
    try:
        process.run(
            """
import sys
import hfgen
from hfgen.hub.load import load_component
pipeline = hfgen.load(folder, trust_remote_code=True)
assert sys.modules[type(pipeline.vae).__module__].RAN
assert type(pipeline).__module__.startswith("diffusers_modules.")
part = load_component(folder, "vae", trust_remote_code=True)
assert type(part).__module__.startswith("diffusers_modules.")
assert type(hfgen.load(folder)).__module__ == "hfgen.pipelines.vae_pipeline"
""",
            folder=str(saved),
        )
    finally:
        process.close()
