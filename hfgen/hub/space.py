"""A demo page of a model: on this machine, or as a Gradio Space that carries the model along."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
from huggingface_hub import HfApi

from hfgen.errors import HfgenError
from hfgen.hub.client import Retry, check_repo_id, hub_errors
from hfgen.hub.commit import Commit, Pushed, prepare
from hfgen.hub.facts import SCORING, read_facts
from hfgen.hub.folder import visible_files
from hfgen.hub.push import checked_files
from hfgen.hub.trust import load_asking
from hfgen.samples import draws_images

TEMPLATES = Path(__file__).parent / "templates"
GRADIO = "6.31.0"
"""The version the page was tried with; a Space is built with it."""


def demo(
    path_or_id: str | Path,
    *,
    port: int | None = None,
    trust_remote_code: bool = False,
    block: bool = True,
) -> str:
    """Serve the page of a run, a pipeline folder or a Hub id on this machine; returns its address.

    Args:
        port: default the first free one from 7860.
        block: stay until interrupted.
    Raises:
        HfgenError: gradio is not installed, the port is taken, or what ``load_asking`` raises.
    """
    page = build_page(path_or_id, trust_remote_code=trust_remote_code)
    try:
        _, address, _ = page.launch(server_port=port, prevent_thread_lock=True, quiet=True)
    except OSError as error:
        raise HfgenError(f"--port {port}: {' '.join(str(error).split())}") from None
    print(f"demo of {path_or_id}: {address}  (Ctrl+C ends it)", flush=True)
    if block:
        page.block_thread()
    return address


def build_page(path_or_id: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The page as ``gradio.Blocks``, over the pipeline as ``load_asking`` gives it."""
    app = _app()
    pipeline = load_asking(path_or_id, trust_remote_code=trust_remote_code)
    if not draws_images(pipeline):
        raise no_demo(path_or_id)
    return app.build(pipeline, Path(path_or_id).name)


def no_demo(origin: str | Path) -> HfgenError:
    """Of a dual encoder."""
    return HfgenError(f"{origin}: it draws no images, so there is nothing to show on a page")


def _app() -> ModuleType:
    """``templates/app.py``, the very file that a Space runs."""
    if importlib.util.find_spec("gradio") is None:
        raise HfgenError("hfgen demo: gradio is not installed; pip install 'hfgen[demo]'")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    spec = importlib.util.spec_from_file_location("hfgen_demo_app", TEMPLATES / "app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_space(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    retry: Retry = Retry(),  # noqa: B008 (frozen)
) -> Pushed:
    """Share a run or a pipeline folder as the Gradio Space ``repo_id``: page and model in one
    commit.

    Raises HfgenError, as ``push``.
    """
    check_repo_id(repo_id)
    checked_files(folder)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as scratch:
        files = visible_files(write_space(folder, Path(scratch)))
        with hub_errors(repo_id, api):
            prepare(api, repo_id, private=private, retry=retry, repo_type="space")
            message = f"Demo of {Path(folder).name}"
            job = Commit(api, repo_id, files, "main", False, message, repo_type="space")
            pushed = retry(job)
            retry(lambda: job.check(pushed))
    return pushed


def write_space(folder: str | Path, target: Path) -> Path:
    """Write a Space that runs anywhere into ``target``: app.py, requirements.txt, README.md,
    model/.
    """
    facts = read_facts(folder)
    if facts.task == SCORING:
        raise no_demo(folder)
    for name, path in visible_files(facts.shared.pipeline).items():
        (target / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / "model" / name)
    shutil.copyfile(TEMPLATES / "app.py", target / "app.py")
    needed = [f"gradio=={GRADIO}", *(_pinned(name) for name in ("torch", "diffusers"))]
    extras = ["transformers", "accelerate", "safetensors"]
    (target / "requirements.txt").write_text("\n".join([*needed, *map(_pinned, extras)]) + "\n")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("space.md.jinja").render(
        title=facts.name,
        gradio=GRADIO,
        license=facts.recipe.get("hub", {}).get("license") or "unknown",
        description=str(facts.recipe.get("description") or "A generative model of images."),
    )
    (target / "README.md").write_text(text + "\n", encoding="utf-8")
    return target


def _pinned(name: str) -> str:
    """``name==version``, as installed here, without a build's suffix."""
    return f"{name}=={metadata.version(name).partition('+')[0]}"
