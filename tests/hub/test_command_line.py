"""The options of `hfgen push | check | card | space`, given on the command line."""

from __future__ import annotations

import pytest
from hub_client import MAIN

NO_TOKEN = MAIN.replace('os.environ["HF_TOKEN"] = "hf_user"', "").replace(
    'del os.environ["HF_TOKEN"]', ""
)

TRAIN_AND_PUSH = [
    *("train", "mnist-vae", "--output_dir", "OUT", "--hub.push_to_hub", "true"),
    *("--hub.hub_model_id", "user/x"),
]
ON_THE_HUB = {
    "user/no-pipeline": {"notes.txt": b"hello"},
    "user/newer": {
        "model_index.json": b'{"_class_name": "DDPMPipeline", "_hfgen_version": "99.0"}'
    },
    "user/with-pickles": {"model_index.json": b"{}", "vae/x.bin": b"x"},
    "user/bad-card": {"README.md": b"---\nlicense: [\n---\n"},
}


def told(client, *words: str, code: str = MAIN) -> str:
    status, said = client.run(code, words=list(words))
    assert status == 0, said
    return said.strip().splitlines()[-1]


def test_push_private_with_a_message_and_a_token(hub, client, run_folder):
    options = ["--private", "--message", "First digits", "--token", "hf_user"]
    url = told(client, "push", str(run_folder), "user/told", *options, code=NO_TOKEN)
    assert "/user/told/commit/" in url
    assert hub.history("user/told") == ["First digits", "initial"]
    assert hub.repos["models/user/told"].private is True


def test_push_to_a_branch_and_as_a_pull_request(hub, client, run_folder):
    recipe = run_folder / "recipe.yaml"
    told(client, "push", str(run_folder), "user/branches")
    recipe.write_text(recipe.read_text() + "# v2\n")
    told(client, "push", str(run_folder), "user/branches", "--revision", "v2")
    url = told(client, "push", str(run_folder), "user/branches", "--create-pr")
    assert url.endswith("/discussions/1")
    refs = {ref: hub.files("user/branches", ref)["recipe.yaml"] for ref in ("v2", "refs/pr/1")}
    assert all(b"# v2" in text for text in refs.values())
    assert b"# v2" not in hub.files("user/branches")["recipe.yaml"]


def test_check_looks_at_the_revision_with_the_token(hub, client, run_folder):
    options = ["--private", "--revision", "v2"]
    told(client, "push", str(run_folder), "user/hidden-v2", *options)
    broken = hub.files("user/hidden-v2", "v2") | {"README.md": b"# no metadata\n"}
    repo = hub.repos["models/user/hidden-v2"]
    repo.add("v2", type(repo.commits[repo.refs["v2"]])(broken, repo.refs["v2"], "card", "user"))
    words = ["check", "user/hidden-v2", "--revision", "v2"]
    status, said = client.run(NO_TOKEN, words=words)
    assert status == 2 and "private" in said
    status, said = client.run(NO_TOKEN, words=[*words, "--token", "hf_user"])
    assert status == 1 and "✗ card" in said and "✓ index" in said


def test_card_with_a_repo_id(client, run_folder):
    told(client, "card", str(run_folder), "--repo-id", "user/named")
    assert 'from_pretrained("user/named")' in (run_folder / "README.md").read_text()


def test_space_private_with_a_token(hub, client, run_folder):
    options = ["--private", "--token", "hf_user"]
    url = told(client, "space", str(run_folder), "user/page", *options, code=NO_TOKEN)
    assert "/spaces/user/page/commit/" in url and hub.repos["spaces/user/page"].private is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["push", "RUN", "user/x"], "no Hugging Face token"),
        (["push", "RUN", "user/x", "--token", "hf_wrong"], "token is refused (401)"),
        (["push", "RUN", "other/x", "--token", "hf_user"], "'other' is another account"),
        (["push", "RUN", "no id"], "is not valid"),
        (["push", "EMPTY", "user/x"], "not a pipeline"),
        (["space", "RUN", "user/x"], "no Hugging Face token"),
        (["space", "EMPTY", "user/x"], "not a pipeline"),
        (["card", "EMPTY"], "not a pipeline"),
        (["check", "user/nothing-there"], "no such repository"),
        (["train", "user/nothing-there"], "no such repository"),
        (["sample", "user/no-pipeline"], "user/no-pipeline: no pipeline (it holds no model_index"),
        (["sample", "user/newer"], "user/newer: saved by hfgen 99.0, newer than the installed"),
        (["check", "user/with-pickles"], "user/with-pickles: vae/x.bin may hold a pickle"),
        (["push", "RUN", "user/bad-card", "--token", "hf_user"], "on the Hub: line 2 is not valid"),
        (TRAIN_AND_PUSH, "no Hugging Face token"),
        ([*TRAIN_AND_PUSH, "--hub.hub_model_id", "no id"], "is not valid"),
    ],
)
def test_bad_input_is_one_line_status_2_and_nothing_is_made(
    hub, client, run_folder, tmp_path, words, said
):
    (tmp_path / "empty").mkdir()
    (run_folder / "README.md").unlink(missing_ok=True)
    for repo, files in ON_THE_HUB.items():
        hub.put(repo, files)
    folders = {"RUN": str(run_folder), "EMPTY": str(tmp_path / "empty")}
    folders |= {"OUT": str(tmp_path / "out")}
    before = set(hub.repos)
    status, text = client.run(NO_TOKEN, words=[folders.get(word, word) for word in words])
    assert status == 2 and text.startswith("hfgen: error: ") and text.count("\n") == 1, text
    assert said in text
    assert set(hub.repos) == before and not list((tmp_path / "empty").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "runs"}


def test_training_starts_only_with_an_account_that_may_push(hub, client, tmp_path):
    words = [*TRAIN_AND_PUSH, "--hub.hub_model_id", "other/x"]
    words[words.index("OUT")] = str(tmp_path / "out")
    status, said = client.run(MAIN, words=words)
    assert status == 2 and said.count("\n") == 1 and "'other' is another account" in said
    assert not list(tmp_path.iterdir()) and "models/other/x" not in hub.repos


def test_training_starts_though_the_hub_is_away(hub, client):
    """The push comes later, when it may be back."""
    hub.fail("GET /api/whoami-v2", "status", times=99, status=503)
    said = client.run(
        """
        import contextlib, io, os
        from hfgen.hub import client
        from hfgen.run import _check_hub
        patient, said = client.Retry, io.StringIO()
        client.Retry = lambda: patient(attempts=2, first_wait=0.01)
        os.environ["HF_TOKEN"] = "hf_user"
        with contextlib.redirect_stderr(said):
            _check_hub("user/x")
        del os.environ["HF_TOKEN"]
        client.Retry = patient
        result = said.getvalue()
        """
    )
    assert "keeps answering 503" in said and said.endswith("the push is tried later\n")


def test_nothing_to_push_is_said(hub, client, run_folder):
    """Also of a pull request, which is then not opened."""
    told(client, "push", str(run_folder), "user/same")
    for words in ([], ["--create-pr"], ["--revision", "main"]):
        status, said = client.run(MAIN, words=["push", str(run_folder), "user/same", *words])
        note, url = said.strip().splitlines()
        assert status == 0 and note.endswith("these very files at main; nothing to push")
        assert "/user/same/commit/" in url
    assert hub.repos["models/user/same"].pull_requests() == []
