"""The options of `hfgen push | check | card | space`, given on the command line."""

from __future__ import annotations

import pytest
from hub_client import MAIN

NO_TOKEN = MAIN.replace('os.environ["HF_TOKEN"] = "hf_user"', "").replace(
    'del os.environ["HF_TOKEN"]', ""
)


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
    ],
)
def test_bad_input_is_one_line_status_2_and_nothing_is_made(
    hub, client, run_folder, tmp_path, words, said
):
    (tmp_path / "empty").mkdir()
    folders = {"RUN": str(run_folder), "EMPTY": str(tmp_path / "empty")}
    before = set(hub.repos)
    status, text = client.run(NO_TOKEN, words=[folders.get(word, word) for word in words])
    assert status == 2 and text.startswith("hfgen: error: ") and text.count("\n") == 1, text
    assert said in text
    assert set(hub.repos) == before and not list((tmp_path / "empty").iterdir())
