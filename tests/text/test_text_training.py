"""Text to image through `hfgen.train`: overfitting, caches, stock formats, adapters, bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import hfgen
from hfgen import recipe as recipes
from hfgen.cli import main
from hfgen.data import DataConfig, load_source
from hfgen.errors import HfgenError
from hfgen.latents import training_source
from hfgen.pipelines._autoencoder import encode_images
from hfgen.pipelines._text import embed_tokens, tokenize
from tests.text import tiny
from tests.text.training import COLORS, SHORT, UNET, loaded, stable_parts, train


def test_overfitting_dalle_reproduces_its_images(dalle, pictures):
    pipeline, files = loaded(dalle), sorted(pictures.glob("*.png"))
    images = np.stack([np.asarray(Image.open(file)) for file in files]) / 255
    known = pipeline.encode_image(images.astype(np.float32))
    drawn = pipeline(list(COLORS), temperature=0, output_type="latent").images
    assert torch.equal(drawn, known)
    drawn = pipeline(list(COLORS), temperature=0, output_type="np").images
    assert np.abs(drawn - images).mean() < 0.06
    nats = pipeline.log_prob(known, list(COLORS))
    swapped = pipeline.log_prob(known, list(reversed(COLORS)))
    assert (nats > swapped + 1).all()


def test_overfitting_diffusion_reproduces_its_images(root, pictures, clip):
    """On pixels, with our own pipeline and a flow-matching scheduler."""
    run = train(
        root,
        pictures,
        "flow",
        160,
        data={"path": str(pictures), "validation_split": "train", "resolution": 8},
        pipeline="TextToImagePipeline",
        objective={"type": "text-diffusion", "caption_dropout": 0.1},
        training={**SHORT, "max_steps": 400, "total_batch_size": 4},
        model={
            "text_encoder": str(clip),
            "tokenizer": str(clip),
            "unet": UNET,
            "scheduler": {"type": "FlowMatchEulerDiscreteScheduler"},
        },
    )
    source = training_source(recipes.decode(recipes.read(run / "recipe.yaml")))
    images = source.uint8(range(4)).permute(0, 2, 3, 1).numpy() / 255
    drawn = loaded(run)(
        list(COLORS),
        guidance_scale=1.0,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    distance = np.abs(drawn[:, None] - images[None]).mean((2, 3, 4))
    assert distance.argmin(1).tolist() == [0, 1, 2, 3]


def test_a_dual_encoder_learns_and_loads_in_transformers(clip, pictures):
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, CLIPTokenizerFast

    own, images = loaded(clip), []
    assert type(own).__name__ == "CLIPScorePipeline"
    for file in sorted(pictures.glob("*.png")):
        with Image.open(file) as image:
            images.append(image.copy())
    near = own.embed_texts(list(COLORS)) @ own.embed_images(images).T
    assert near.argmax(1).tolist() == near.argmax(0).tolist() == [0, 1, 2, 3]
    folder = clip / "pipeline"
    model = CLIPModel.from_pretrained(folder, subfolder="clip").eval()
    tokenizer = CLIPTokenizerFast.from_pretrained(folder, subfolder="tokenizer")
    assert type(AutoTokenizer.from_pretrained(folder / "tokenizer")) is type(tokenizer)
    processor = CLIPImageProcessorPil.from_pretrained(folder, subfolder="image_processor")
    image = Image.new("RGB", (16, 16), "red")
    inputs = tokenizer(["red square"], padding="max_length", max_length=8, return_tensors="pt")
    pixels = processor([image], return_tensors="pt").pixel_values
    with torch.no_grad():
        cosine = model(**inputs, pixel_values=pixels).logits_per_text / model.logit_scale.exp()
    assert float(cosine) == pytest.approx(float(loaded(clip)([image], "red square")), abs=1e-5)


def test_the_exported_pipeline_is_stock_and_the_same_without_hfgen(stable, tmp_path):
    pipeline = loaded(stable)
    call = "pipe(['red square'] * 2, negative_prompt=['x'] * 2, guidance_scale=4.0, "
    call += "num_inference_steps=3, output_type='np', generator=gens).images"
    names = {"pipe": pipeline, "gens": [torch.Generator().manual_seed(i) for i in range(2)]}
    np.save(tmp_path / "expected.npy", eval(call, names))  # noqa: S307
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["hfgen"] = None
import numpy as np, torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(stable / "pipeline")!r})
assert type(pipe) is StableDiffusionPipeline
pipe.set_progress_bar_config(disable=True)
gens = [torch.Generator().manual_seed(i) for i in range(2)]
assert np.array_equal({call}, np.load({str(tmp_path / "expected.npy")!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_our_pipeline_draws_what_the_stock_one_draws(stable):
    """TextToImagePipeline over the same parts, at any guidance; so guidance of 1 is none."""
    from hfgen.pipelines.text_to_image_pipeline import TextToImagePipeline

    stock = loaded(stable)
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    own = TextToImagePipeline(**{name: getattr(stock, name) for name in names})
    own.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    found = {}
    for scale in (1.0, 4.0):
        options = {"num_inference_steps": 3, "guidance_scale": scale, "output_type": "np"}
        a = stock("blue circle", latents=latents.clone(), **options).images
        b = own("blue circle", latents=latents.clone(), **options).images
        np.testing.assert_allclose(a, b, atol=1e-5)
        found[scale] = own("blue circle", latents=latents.clone(), **options, negative_prompt="x")
    assert not np.allclose(found[1.0].images, found[4.0].images)
    other = own(
        "blue circle",
        latents=latents.clone(),
        guidance_scale=1.0,
        num_inference_steps=3,
        negative_prompt="white",
        output_type="np",
    ).images
    np.testing.assert_array_equal(other, found[1.0].images)


def test_cached_embeddings_and_latents_are_fresh_ones(stable):
    recipe = recipes.decode(recipes.read(stable / "recipe.yaml"))
    source, pipeline = training_source(recipe), loaded(stable)
    rows = range(4)
    batch, captions = source.batch(rows), source.captions(rows)
    assert captions == list(COLORS), "white space is cleaned away"
    for name, texts in (("text", captions), ("null_text", [""])):
        ids, mask = tokenize(pipeline.tokenizer, texts)
        fresh = embed_tokens(pipeline.text_encoder, ids, mask)
        cached = batch[name] if name == "text" else batch[name][None]
        torch.testing.assert_close(cached, fresh, rtol=0, atol=1e-6)
    images = torch.from_numpy(source.uint8(rows).numpy()).float() / 127.5 - 1
    with torch.no_grad():
        fresh = encode_images(pipeline.vae, images)
    torch.testing.assert_close(batch["images"], fresh, rtol=1e-2, atol=1e-2)  # float16 on the disk


def test_priors_without_text(root, pictures, book):
    transformer = {"type": "CodeTransformer", "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    labelled = root / "labelled"
    for i, file in enumerate(sorted(pictures.glob("*.png"))):
        (labelled / f"kind{i % 2}").mkdir(parents=True, exist_ok=True)
        (labelled / f"kind{i % 2}" / file.name).write_bytes(file.read_bytes())
    for conditional, expected in ((True, 2), (False, None)):
        run = train(
            root,
            labelled,
            f"prior-{conditional}",
            2,
            data={
                "path": str(labelled),
                "validation_split": "train",
                "class_conditional": conditional,
            },
            pipeline="CodesPipeline",
            objective={"type": "image-codes"},
            model={"codes": str(book), "transformer": transformer},
        )
        pipeline = loaded(run)
        assert pipeline.num_classes == expected
        labels = {"class_labels": [0, 1]} if conditional else {}
        assert len(pipeline(batch_size=2, **labels).images) == 2


def test_sampling_from_the_command_line(dalle, clip, tmp_path, caplog):
    out = tmp_path / "grid.png"
    words = ["sample", str(dalle), "--prompt", "red square", "purple square", "--num-images", "3"]
    words += ["--negative-prompt", "circle", "--guidance-scale", "2", "--output", str(out)]
    words += ["--rank-with", str(clip), "--num-candidates", "2", "--top-k", "4"]
    assert main(words) == 0
    with Image.open(out) as image:
        width, height = image.size
    assert height == 2 * 18 + 2 and width > 3 * 18 + 2, "a row for each prompt, and its text"
    assert "purple" in caplog.text and "square" not in caplog.text.split(":")[-1]


WRONG = {
    "empty prompt": (["--prompt", " "], "a prompt is empty"),
    "no prompt": ([], "give --prompt"),
    "over-long": (["--prompt", "red square " * 9], "the model takes 8"),
    "negative guidance": (["--prompt", "red", "--guidance-scale", "-2"], "must not be negative"),
    "image": (["--prompt", "red", "--image", "nothing.png"], "cannot be read as an image"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_prompts_in_one_line(dalle, tmp_path, capsys, case):
    words, message = WRONG[case]
    assert main(["sample", str(dalle), "--output", str(tmp_path / "x.png"), *words]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1]


def test_a_stock_pipeline_refuses_them_too(stable, tmp_path, capsys):
    words = ["sample", str(stable), "--output", str(tmp_path / "x.png"), "--prompt"]
    for prompt, message in (("red square " * 9, "the model takes 8"), ("", "prompt is empty")):
        assert main([*words, prompt]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_dual_encoder_draws_nothing(clip, tmp_path, capsys):
    assert main(["sample", str(clip), "--output", str(tmp_path / "x.png")]) == 2
    assert "draws no images" in capsys.readouterr().err


def test_images_without_captions_are_counted(pictures, tmp_path):
    recipe = recipes.load("emoji-clip", {"data": {"path": str(tmp_path / "some")}})
    folder = tmp_path / "some"
    folder.mkdir()
    lines = []
    for i, file in enumerate(sorted(pictures.glob("*.png"))):
        (folder / file.name).write_bytes(file.read_bytes())
        lines.append(json.dumps({"file_name": file.name, "text": "a square" if i else " \t"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    changed = recipes.load(
        "emoji-clip", {"data": {"path": str(folder), "validation_split": "train"}}
    )
    with pytest.raises(HfgenError, match="1 of 4 images are without a caption \\(rows 0\\)"):
        training_source(changed)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(HfgenError, match="all 4 images .* are without captions"):
        training_source(changed)
    assert recipe.data.caption_column is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_captions_from_metadata_csv(pictures, tmp_path):
    """The reader of datasets leaves the file to the garbage collector, which warns."""
    for file in pictures.glob("*.png"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rows = [f"{i}.png,{caption}" for i, caption in enumerate(COLORS)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,prompt", *rows]))
    source = load_source(DataConfig(path=str(tmp_path), validation_split="train"))
    assert source.captions(range(4)) == list(COLORS)


def test_a_tokenizer_of_another_encoder(root, pictures, clip, tmp_path):
    tokenizer = tiny.bytes_pairs()
    tokenizer.add_tokens([f"more{i}" for i in range(40)])
    tokenizer.save_pretrained(tmp_path / "other")
    parts = stable_parts(root, clip)
    parts["model"]["tokenizer"] = str(tmp_path / "other")
    with pytest.raises(HfgenError, match="do not belong to the text encoder"):
        train(tmp_path, pictures, "wrong", 1, **parts)
    assert not (tmp_path / "wrong").exists()


def test_an_autoencoder_that_does_not_match_the_latents(stable, root, clip, pictures, tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    options = {"norm_num_groups": 4, "sample_size": 16, "scaling_factor": 1.0}
    AutoencoderKL(block_out_channels=(8,), latent_channels=3, **options).save_pretrained(
        tmp_path / "vae"
    )
    parts = stable_parts(root, clip)
    parts["model"] |= {"vae": str(tmp_path / "vae"), "unet": str(stable)}
    latents = "was trained with (sample_size|in_channels) 4, the latents have|standard deviation"
    with pytest.raises(HfgenError, match=latents) as error:
        train(tmp_path, pictures, "mismatch", 1, **parts)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mismatch").exists()


def test_codes_of_a_run_without_a_codebook(stable, dalle, tmp_path):
    with pytest.raises(HfgenError, match="no codebook"):
        hfgen.train(
            str(dalle.parent / "recipe-dalle.yaml"),
            **{"model.codes": str(stable), "output_dir": str(tmp_path / "x")},
        )
