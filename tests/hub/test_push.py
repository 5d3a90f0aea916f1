"""Pushing to the loopback Hub: one commit, verified; every refusal one line, and the branch as it
was.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hub_client import QUICK, client_environment, wait_for

PUSH = (
    QUICK
    + """
from dataclasses import asdict
from hfgen.hub.push import push
result = asdict(push(folder, repo, token=token, retry=retry, **options))
"""
)


def push(client, folder, repo, token="hf_user", **options):
    return client.run(PUSH, folder=str(folder), repo=repo, token=token, options=options)


def push_fails(client, folder, repo, token: str | bool = "hf_user", **options) -> str:
    return client.fails(PUSH, folder=str(folder), repo=repo, token=token, options=options)


def test_one_commit_with_everything(hub, client, run_folder):
    pushed = push(client, run_folder, "user/all")
    assert hub.history("user/all") == ["Push tiny-ddpm", "initial"]
    files = hub.files("user/all")
    assert set(pushed["files"]) | {".gitattributes"} == set(files)
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "README.md"} <= set(
        files
    )
    assert {"recipe.yaml", "metrics.json", "samples/grid.png"} <= set(files)
    assert files["README.md"].startswith(b"---\n")
    assert hub.repos["models/user/all"].private is False


def test_a_pushed_pipeline_is_byte_for_byte_the_local_one(hub, client, stock_pipeline):
    push(client, stock_pipeline, "user/bare")
    files = hub.files("user/bare")
    for path in stock_pipeline.rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert files[path.relative_to(stock_pipeline).as_posix()] == path.read_bytes()


def test_pushing_the_same_again_makes_no_commit(hub, client, run_folder):
    first = push(client, run_folder, "user/again")
    second = push(client, run_folder, "user/again")
    assert first["commit"] == second["commit"]
    assert len(hub.history("user/again")) == 2


def test_private(hub, client, run_folder):
    push(client, run_folder, "user/secret", private=True)
    assert hub.repos["models/user/secret"].private is True
    text = client.fails(
        """
        from hfgen.hub.fetch import fetch
        fetch("user/secret", token=False)
        """
    )
    assert "private" in text


def test_create_pr_leaves_main_alone(hub, client, run_folder):
    before = push(client, run_folder, "user/pr")["commit"]
    (run_folder / "recipe.yaml").write_text(
        (run_folder / "recipe.yaml").read_text().replace("tiny", "small")
    )
    pushed = push(client, run_folder, "user/pr", create_pr=True)
    assert pushed["revision"] == "refs/pr/1"
    assert pushed["url"].endswith("/discussions/1")
    assert hub.repos["models/user/pr"].refs["main"] == before
    assert b"small" in hub.files("user/pr", "refs/pr/1")["recipe.yaml"]


def test_create_pr_by_somebody_else(hub, client, run_folder):
    push(client, run_folder, "user/open")
    (run_folder / "recipe.yaml").write_text((run_folder / "recipe.yaml").read_text() + "# other\n")
    pushed = push(client, run_folder, "user/open", token="hf_other", create_pr=True)
    assert pushed["revision"] == "refs/pr/1"


def test_revision_makes_a_branch(hub, client, run_folder):
    push(client, run_folder, "user/branch")
    (run_folder / "recipe.yaml").write_text((run_folder / "recipe.yaml").read_text() + "# v2\n")
    push(client, run_folder, "user/branch", revision="v2")
    assert b"# v2" not in hub.files("user/branch")["recipe.yaml"]
    assert b"# v2" in hub.files("user/branch", "v2")["recipe.yaml"]


def test_files_of_an_earlier_push_go_and_foreign_ones_stay(hub, client, run_folder):
    push(client, run_folder, "user/replace")
    old = hub.files("user/replace")
    foreign = {"LICENSE": b"mine", "samples/holiday.png": b"mine", "notes/config.txt": b"mine"}
    stale = {
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors": b"old",
        "vae_pipeline__0123abcd.py": b"old",
    }
    hub.put("user/replace", old | foreign | stale)
    (run_folder / "evaluation" / "metrics.json").write_text('{"scores": []}')
    push(client, run_folder, "user/replace")
    files = hub.files("user/replace")
    assert set(foreign) <= set(files)
    assert not set(stale) & set(files)


@pytest.mark.parametrize(
    ("route", "how"),
    [
        ("POST /api/repos/create", {"action": "status", "status": 503}),
        ("POST /api/repos/create", {"action": "cut"}),
        ("GET /api/models/[^/]+/[^/]+/tree", {"action": "status", "status": 500}),
        ("POST .*/commit/main", {"action": "status", "status": 500}),
        ("POST .*/commit/main", {"action": "cut"}),
        ("POST .*/commit/main", {"action": "cut_after"}),
        (
            "POST .*/commit/main",
            {"action": "status", "status": 429, "headers": {"Retry-After": "0"}},
        ),
        ("PUT /lfs/", {"action": "cut"}),
    ],
)
def test_what_passes_is_tried_again(hub, client, run_folder, route, how, request):
    repo = f"user/flaky-{abs(hash(request.node.name)) % 10**6}"
    hub.fail(route, **how)
    pushed = push(client, run_folder, repo)
    assert hub.history(repo) == ["Push tiny-ddpm", "initial"]
    assert hub.files(repo)["recipe.yaml"] == (run_folder / "recipe.yaml").read_bytes()
    assert pushed["commit"] == hub.repos[f"models/{repo}"].refs["main"]


def test_a_lost_answer_does_not_open_a_second_pull_request(hub, client, run_folder):
    push(client, run_folder, "user/lost")
    (run_folder / "recipe.yaml").write_text((run_folder / "recipe.yaml").read_text() + "# new\n")
    hub.fail("POST .*/commit/main", "cut_after")
    pushed = push(client, run_folder, "user/lost", create_pr=True)
    assert pushed["revision"] == "refs/pr/1"
    assert hub.repos["models/user/lost"].pull_requests() == [1]


def test_what_does_not_pass_leaves_main_as_it_was(hub, client, run_folder):
    before = push(client, run_folder, "user/down")["commit"]
    (run_folder / "recipe.yaml").write_text((run_folder / "recipe.yaml").read_text() + "# new\n")
    hub.fail("POST .*/commit/main", "status", times=100, status=500)
    assert "keeps answering 500" in push_fails(client, run_folder, "user/down")
    assert hub.repos["models/user/down"].refs["main"] == before


def test_the_remote_is_compared_after_the_commit(hub, client, run_folder):
    push(client, run_folder, "user/sha")
    (run_folder / "recipe.yaml").write_text((run_folder / "recipe.yaml").read_text() + "# new\n")
    oid = hub.repos["models/user/sha"].refs["main"]
    hub.fail(f"GET .*/tree/(?!{oid})", "sha")
    text = push_fails(client, run_folder, "user/sha")
    assert "other content than was pushed" in text and "digest" in text


def test_a_commit_by_somebody_else_meanwhile(hub, client, run_folder):
    push(client, run_folder, "user/race")
    (run_folder / "recipe.yaml").write_text((run_folder / "recipe.yaml").read_text() + "# new\n")
    hub.fail("POST .*/commit/main", "status", status=412)
    assert "meanwhile" in push_fails(client, run_folder, "user/race")


def test_409_while_the_repository_is_made(hub, client, run_folder):
    hub.fail("POST /api/repos/create", "status", status=409)
    assert push_fails(client, run_folder, "user/never-made").startswith(
        "user/never-made: no such repository"
    )


def test_killed_in_the_middle_and_pushed_again(hub, client, run_folder, tmp_path):
    hub.fail("PUT /lfs/user/killed", "wait", times=1, seconds=8)
    code = "import sys; from hfgen.hub.push import push; push(*sys.argv[1:], token='hf_user')"
    command = [sys.executable, "-c", code, str(run_folder), "user/killed"]
    environment = client_environment(hub.url, tmp_path)
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    wait_for(lambda: hub.count("PUT /lfs/user/killed") == 2)
    wait_for(lambda: len(hub.repos["models/user/killed"].blobs) == 1)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert hub.history("user/killed") == ["initial"]
    hub.forget()
    push(client, run_folder, "user/killed")
    assert hub.count("PUT /lfs/user/killed") == 1
    assert hub.history("user/killed") == ["Push tiny-ddpm", "initial"]


# ---------------------------------------------------------------------------------------- bad input


def test_no_token(hub, client, run_folder):
    assert "no Hugging Face token" in push_fails(client, run_folder, "user/x", token=None)


def test_wrong_token(hub, client, run_folder):
    assert "token is refused (401)" in push_fails(client, run_folder, "user/x", token="hf_wrong")


def test_somebody_elses_name(hub, client, run_folder):
    text = push_fails(client, run_folder, "other/x")
    assert "'other' is another account" in text and "user/x" in text


def test_no_write_permission_on_an_existing_repository(hub, client, run_folder):
    hub.put("other/taken", {"README.md": b""})
    assert "may not write there (403)" in push_fails(client, run_folder, "other/taken")
    assert set(hub.files("other/taken")) == {"README.md"}


@pytest.mark.parametrize(
    "repo", ["user/a b", "user//x", "a/b/c", "nobody", "", "user/-x", "user/x..y"]
)
def test_invalid_repo_id(hub, client, run_folder, repo):
    assert "is not valid" in push_fails(client, run_folder, repo)
    assert hub.log == []


def test_no_network(client, run_folder):
    text = client.fails(
        """
        from huggingface_hub import HfApi
        from hfgen.hub.client import Retry, hub_errors
        api = HfApi(endpoint="http://127.0.0.1:9", token="hf_user")
        with hub_errors("user/x", api):
            Retry(attempts=2, first_wait=0.01)(api.whoami)
        """
    )
    assert "no connection to http://127.0.0.1:9" in text


def test_refused_by_the_chunk_store_is_one_line(hub, run_folder, tmp_path):
    """`hf_xet` raises Python's own ConnectionError, its status in words: not tried again."""
    environment = {**client_environment(hub.url, tmp_path), "HF_TOKEN": "hf_user"}
    environment["HF_HUB_DISABLE_XET"] = "0"
    words = ["-m", "hfgen", "push", str(run_folder), "user/chunks"]
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("hfgen: error:")]
    assert done.returncode == 2 and len(said) == 1 and "404" in said[0]
    assert "Traceback" not in done.stderr


def test_nothing_is_sent_when_the_folder_is_wrong(hub, client, run_folder, tmp_path):
    pipeline = run_folder / "pipeline"
    cases = {
        "no such folder": lambda: tmp_path / "nowhere",
        "not a pipeline": lambda: _folder(tmp_path / "plain", {"notes.txt": "hello"}),
        "not valid JSON": lambda: _folder(tmp_path / "json", {"model_index.json": "{"}),
        "names no _class_name": lambda: _folder(tmp_path / "class", {"model_index.json": "{}"}),
        "may hold a pickle": lambda: _with(pipeline, "unet/extra.bin", "x"),
        "not a whole safetensors file": lambda: _with(pipeline, "unet/broken.safetensors", "x"),
        "imports no_such_module": lambda: _with(
            pipeline, "unet/code__01234567.py", "import no_such_module"
        ),
        "imports hfgen": lambda: _with(
            pipeline, "unet/code__01234567.py", "from hfgen.models import x"
        ),
        "not valid Python": lambda: _with(pipeline, "unet/code__01234567.py", "def"),
        "is not valid YAML": lambda: _with(run_folder, "README.md", "---\nlicense: [\n---\n"),
        "never closed": lambda: _with(run_folder, "README.md", "---\nlicense: mit\n"),
        "not written by hfgen evaluate": lambda: _with(
            run_folder, "evaluation/metrics.json", '{"scores": [{}]}'
        ),
        "newer": lambda: _newer(pipeline),
    }
    for text, make in cases.items():
        made = make()
        folder, written = made if isinstance(made, tuple) else (made, None)
        folder = run_folder if folder == pipeline else folder
        assert text in push_fails(client, folder, "user/never"), text
        if written:
            written()
    assert hub.log == []


def _folder(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def _with(folder: Path, name: str, text: str):
    """The folder with one more (or another) file, and how to undo it."""
    path = folder / name
    old = path.read_text() if path.exists() else None
    path.write_text(text)
    return folder, (lambda: path.write_text(old)) if old is not None else path.unlink


def _newer(pipeline: Path):
    index = json.loads((pipeline / "model_index.json").read_text())
    return _with(pipeline, "model_index.json", json.dumps(index | {"_hfgen_version": "99.0"}))
