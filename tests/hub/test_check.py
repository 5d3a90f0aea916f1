"""`hfgen check` and trust: what it looks at, what it finds, and that strangers' code waits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_client import MAIN

from hfgen.hub.card import write_card

CHECK = """
from hfgen.hub.check import check
report = check(source, **options)
result = [report.status, {row.name: [row.passed, row.detail] for row in report.rows},
report.table()]
"""


def check(client, source, **options):
    status, rows, table = client.run(CHECK, source=str(source), options=options)
    return status, {name: tuple(row) for name, row in rows.items()}, table


@pytest.fixture(scope="session")
def vae_folder(client, tmp_path_factory) -> Path:
    """A pipeline of ours with a card: MLPVAE in a VAEPipeline."""
    folder = tmp_path_factory.mktemp("own") / "tiny-vae"
    client.run(
        """
        import torch
        from hfgen.hub.card import write_card
        from hfgen.models.vae_mlp import MLPVAE
        from hfgen.pipelines.vae_pipeline import VAEPipeline
        torch.manual_seed(0)
        VAEPipeline(MLPVAE(sample_size=8, hidden_size=16, latent_dim=4)).save_pretrained(folder)
        write_card(folder)
        """,
        folder=str(folder),
    )
    return folder


@pytest.fixture
def vae(vae_folder, tmp_path) -> Path:
    return shutil.copytree(vae_folder, tmp_path / "tiny-vae")


def test_a_pushed_model_passes(hub, client, vae):
    client.run(
        "from hfgen.hub.push import push; push(folder, 'user/good', token='hf_user')",
        folder=str(vae),
    )
    status, rows, table = check(client, "user/good")
    assert status == 0, table
    assert rows["images equal"] == (True, "bit for bit")
    assert rows["loads without hfgen"][0] and rows["code"][0] and rows["card"][0]
    assert len(table.splitlines()) == len(rows) and table.startswith("✓ files")


def test_a_stock_run_passes(client, run_folder):
    write_card(run_folder)
    (run_folder / "samples" / "0000001000.png").write_bytes(b"")
    code = """
    from pathlib import Path
    from hfgen.hub.check import check_files
    rows = check_files(Path(folder), Path(folder, "pipeline"))
    result = {row.name: [row.passed, row.detail] for row in rows}
    """
    rows = client.run(code, folder=str(run_folder))
    assert not [row for row in rows.values() if row[0] is False], rows
    assert rows["code"] == [None, "none"] and rows["recipe"] == [True, "tiny-ddpm"]


BREAKAGES = {
    "index": lambda folder: shutil.rmtree(folder / "vae"),
    "pickles": lambda folder: (folder / "vae" / "extra.pt").write_bytes(b"x"),
    "safetensors": lambda folder: truncate(weights(folder)),
    "configs": lambda folder: edit(folder / "vae" / "config.json", _class_name="Other"),
    "code": lambda folder: append(next((folder / "vae").glob("*.py")), "\nimport no_such_module\n"),
    "card": lambda folder: (folder / "README.md").unlink(),
    "recipe": lambda folder: (folder / "recipe.yaml").write_text("name: x\n"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_each_row_finds_what_it_is_for(client, vae, name):
    BREAKAGES[name](vae)
    status, rows, table = check(client, vae)
    assert status == 1
    assert rows[name][0] is False, table
    assert "images equal" not in rows


@pytest.mark.parametrize(
    ("change", "row", "said"),
    [
        (lambda f: edit(f / "model_index.json", _hfgen_version="99.0"), "index", "newer"),
        (lambda f: append(next((f / "vae").glob("*.py")), "\nX = 1\n"), "code", "was changed"),
        (lambda f: next((f / "vae").glob("*.py")).unlink(), "code", "is missing"),
        (lambda f: replace(f / "README.md", "diffusers", "other"), "card", "library_name"),
        (lambda f: append(f / "README.md", "![x](no.png)"), "card", "shows no.png"),
        (lambda f: replace(f / "README.md", "license: unknown", ""), "card", "no license"),
        (lambda f: append(f / "vae" / "config.json", "}"), "configs", "not valid JSON"),
    ],
)
def test_what_a_row_says(client, vae, change, row, said):
    change(vae)
    status, rows, _ = check(client, vae)
    assert status == 1 and rows[row][0] is False and said in rows[row][1]


def test_other_images_are_seen(client, vae):
    """Two saved pipelines that draw differently are told apart, and a whole comparison passes."""
    code = """
    import numpy as np
    from pathlib import Path
    from hfgen.hub.check import compare_images
    a = np.zeros((2, 4, 4, 1), np.float32)
    b = a.copy()
    b[1, 0, 0, 0] = 1e-7
    c = a.copy()
    c[0, 0, 0, 0] = np.nan
    pairs = [(a, a), (a, b), (a, a[:1]), (a, a.astype(np.float64)), (c, c)]
    result = [[row.passed for row in compare_images(*pair)] for pair in pairs]
    """
    same, other, fewer, wider, broken = client.run(code)
    assert same == [True, True]
    assert other == [True, False] and fewer == [True, False] and wider == [True, False]
    assert broken[0] is False


def test_code_that_is_not_ours_runs_only_when_trusted(client, own_model):
    text = client.fails(CHECK, source=str(own_model), options={})
    assert "brings code of its own" in text and "my_vae__" in text
    assert "--trust-remote-code" in text
    status, rows, table = check(client, own_model, trust_remote_code=True)
    assert status == 0, table
    assert rows["loads without hfgen"][0] is True
    assert rows["loads with hfgen"][0] is None  # nothing installed to compare with, and it says so
    assert "my_vae__" in rows["loads with hfgen"][1]
    words = ["check", str(own_model)]
    assert client.run(MAIN, words=words)[0] == 2
    assert client.run(MAIN, words=[*words, "--trust-remote-code"])[0] == 0


def test_load_asking_runs_trusted_code_and_no_other(client, own_model):
    code = """
    from hfgen.hub.trust import load_asking
    result = type(load_asking(folder, trust_remote_code=trust).vae).__module__
    """
    assert "brings code of its own" in client.fails(code, folder=str(own_model), trust=False)
    assert "my_vae__" in client.run(code, folder=str(own_model), trust=True)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/nonexistent", "/nonexistent: no such folder"),
        ("runs/nonexistent", "runs/nonexistent: no such folder"),
        ("nonexistent", "no such folder (and no Hub id"),
        (__file__, "a file; give the folder"),
    ],
)
def test_a_folder_that_is_missing_is_called_so(hub, client, source, said):
    for door in ("check", "sample", "demo"):
        code, text = client.run(MAIN, words=[door, source])
        assert code == 2 and text.count("\n") == 1 and said in text
    assert hub.log == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import no_such_module", "no_such_module"),
        ("1 / 0", "its code fails: ZeroDivisionError"),
        ("from __future__ import annotations", "its code fails: SyntaxError"),
    ],
)
def test_trusted_code_that_imports_something_missing_is_one_line(
    client, own_model, tmp_path, line, said
):
    folder = shutil.copytree(own_model, tmp_path / "lacking")
    append(next((folder / "vae").glob("*.py")), f"\n{line}\n")
    code = """
    from hfgen.hub.trust import load_asking
    load_asking(folder, trust_remote_code=True)
    """
    text = client.fails(code, folder=str(folder))
    assert text.startswith(f"{folder}: ") and said in text


def test_ours_needs_no_trust(client, vae):
    code = """
    from hfgen.hub.trust import load_asking
    result = type(load_asking(folder).vae).__module__
    """
    assert client.run(code, folder=str(vae)) == "hfgen.models.vae_mlp"


def test_a_lying_hash_is_not_trusted(client, vae):
    """Code under the very name that the installed class would have, with other content."""
    append(next((vae / "vae").glob("*.py")), "\nprint('evil')\n")
    code = "from hfgen.hub.trust import load_asking; load_asking(folder)"
    said = client.fails(code, folder=str(vae))
    assert "brings code of its own (vae/vae_mlp__" in said and ", changed after it was" in said


def test_other_code_is_named_beside_the_installed_one(client, vae):
    """A later version of an installed class, exported under the hash that it has."""
    (old,) = (vae / "vae").glob("*.py")
    code = """
    from pathlib import Path
    from hfgen.hub.trust import load_asking
    from hfgen.pipelines._self_contained import export_name
    old = Path(folder, "vae", name + ".py")
    text = old.read_text() + "\\nMORE = 1\\n"
    new = export_name(name, text)
    old.rename(old.with_name(new + ".py")).write_text(text)
    index = Path(folder, "model_index.json")
    index.write_text(index.read_text().replace(name, new))
    try:
        load_asking(folder)
    except Exception as error:
        result = [new, str(error)]
    """
    new, said = client.run(code, folder=str(vae), name=old.stem)
    assert new != old.stem and f"(vae/{new}.py, installed is {old.name})" in said


@pytest.mark.parametrize(
    ("typed", "runs"), [("y\n", True), ("yes\n", True), ("n\n", False), ("", False)]
)
def test_a_person_is_asked(client, typed, runs):
    code = """
    import io, sys
    from hfgen.errors import HfgenError
    from hfgen.hub.trust import ask
    class Terminal(io.StringIO):
        isatty = lambda self: True
    kept, said = (sys.stdin, sys.stderr), io.StringIO()
    sys.stdin, sys.stderr = Terminal(typed), said
    try:
        ask("user/x", {"a__01234567.py": "installed is a__89abcdef.py"})
        result = [True, said.getvalue()]
    except HfgenError:
        result = [False, said.getvalue()]
    finally:
        sys.stdin, sys.stderr = kept
    """
    allowed, said = client.run(code, typed=typed)
    assert allowed is runs
    assert "  a__01234567.py, installed is a__89abcdef.py\n" in said and "user/x" in said


@pytest.fixture(scope="session")
def own_model(client, tmp_path_factory) -> Path:
    """A pipeline with a model that somebody wrote outside hfgen, which this process forgets."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_vae.py").write_text(MY_VAE)
    client.run(
        """
        import sys
        sys.path.insert(0, folder)
        from hfgen.hub.card import write_card
        from hfgen.pipelines.vae_pipeline import VAEPipeline
        from my_vae import MyVAE
        VAEPipeline(MyVAE()).save_pretrained(folder + "/pipeline")
        write_card(folder + "/pipeline")
        sys.path.remove(folder)
        del sys.modules["my_vae"]  # from here on as in a process that never saw it
        """,
        folder=str(folder),
    )
    return folder / "pipeline"


MY_VAE = '''
"""A model of one's own."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput


class MyVAE(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: int = 8, latent_dim: int = 2):
        super().__init__()
        size = in_channels * sample_size**2
        self.encoder = torch.nn.Linear(size, 2 * latent_dim)
        self.decoder = torch.nn.Linear(latent_dim, size)

    @property
    def latent_shape(self):
        return (self.config.latent_dim,)

    def encode(self, x):
        moments = self.encoder(x.flatten(1))[:, :, None, None]
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, z):
        side = self.config.sample_size
        x = self.decoder(z.flatten(1)).reshape(-1, self.config.in_channels, side, side)
        return DecoderOutput(sample=x)
'''


def weights(folder: Path) -> Path:
    return next((folder / "vae").glob("*.safetensors"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))
