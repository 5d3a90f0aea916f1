"""What docs/share.md and docs/bring-your-own-model.md tell a reader to do, done: train, push,
check,
card, space, train on; from the command line, against the loopback Hub."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hub_client import MAIN

DOCS = Path(__file__).parents[2] / "docs"
SMALL = ["--training.max_steps", "2", "--training.total_batch_size", "8"]
QUICK_RUN = [*SMALL, "--data.max_images", "16", "--logging.num_sample_images", "4"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.S)


def commands(page: str) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("hfgen ")]


def run(client, words: list[str]) -> str:
    code, said = client.run(MAIN, words=words)
    assert code == 0, f"{' '.join(words)}: {said}"
    return said


@pytest.fixture(scope="module")
def trained(client):
    """runs/mnist-vae in the client's folder, and a few images of somebody's own in ./mine."""
    run(client, ["train", "mnist-vae", *QUICK_RUN, "--hub.license", "apache-2.0"])
    client.run(
        """
        from pathlib import Path
        from PIL import Image
        Path("mine").mkdir()
        for i in range(16):
            Image.new("L", (28, 28), 16 * i).save(f"mine/{i}.png")
        """
    )


def test_share_in_five_minutes(hub, client, stranger, trained):
    told = commands("share.md")
    assert {words[1] for words in told} == {"push", "check", "train", "card", "space", "demo"}
    for words in told:
        if words[1] == "demo":  # serves until it is interrupted: tests/hub/test_space.py
            continue
        more = [*SMALL, "--output_dir", f"runs/{len(words)}"] if words[1] == "train" else []
        said = run(client, [*words[1:], *more])
        if words[1] == "check":
            assert "✗" not in said and "✓ images equal" in said and "✓ recipe" in said
    files = hub.files("user/mnist-vae")
    assert {"recipe.yaml", "metrics.jsonl", "environment.json", "samples/grid.png"} <= set(files)
    card = client.run("result = open('runs/mnist-vae/README.md').read()")
    assert "](samples/interpolation.png)" in card  # drawn by `hfgen card`
    (load, _) = blocks("share.md", "python")
    assert stranger.run(load + "result = [image.mode, *image.size]") == ["L", 28, 28]
    ours = client.run(blocks("share.md", "python")[1] + "result = type(pipeline).__module__")
    assert ours == "hfgen.pipelines.vae_pipeline"


def test_a_push_that_fails_ends_with_status_2(hub, client, trained):
    code, said = client.run(MAIN, words=["push", "runs/mnist-vae", "other/mnist-vae"])
    assert code == 2
    assert said.strip().splitlines()[-1].startswith("hfgen: error: other/mnist-vae: 'other' is")


def test_a_check_that_finds_something_ends_with_status_1(client, trained):
    client.run(
        """
        import shutil
        shutil.copytree("runs/mnist-vae", "runs/broken")
        open("runs/broken/pipeline/vae/extra.bin", "w").close()
        """
    )
    code, said = client.run(MAIN, words=["check", "runs/broken"])
    assert code == 1 and "✗ pickles" in said


def test_bring_your_own_model(client, stranger, trained):
    """The file and the line of the page, trained by its command and loaded where hfgen is not."""
    model, line, *_ = blocks("bring-your-own-model.md", "python")
    client.run(
        """
        import sys
        from pathlib import Path
        from hfgen.recipe import MODELS
        Path("vae_tiny.py").write_text(model)
        sys.path.insert(0, ".")
        exec(line.replace("hfgen.models.vae_tiny", "vae_tiny"))
        """,
        model=model,
        line=line,
    )
    (train, *_) = commands("bring-your-own-model.md")
    run(client, [*train[1:], *QUICK_RUN])
    folder = client.run("from pathlib import Path; result = str(Path('runs/tiny').resolve())")
    made = stranger.run(
        """
        from diffusers import DiffusionPipeline
        pipeline = DiffusionPipeline.from_pretrained(folder + "/pipeline", trust_remote_code=True)
        result = [type(pipeline.vae).__name__, pipeline.vae.config.latent_dim,
                  *pipeline().images[0].size]
        """,
        folder=folder,
    )
    assert made == ["TinyVAE", 16, 28, 28]
