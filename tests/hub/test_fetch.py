"""Downloading: verified, without pickles, and every refusal one line."""

from __future__ import annotations

import pytest
from hub_client import QUICK

FETCH = """
from hfgen.hub.fetch import fetch
folder = fetch(repo, token=token, **options)
result = {path.relative_to(folder).as_posix(): path.read_bytes().hex()
          for path in folder.rglob("*") if path.is_file()}
"""
FILES = {"model_index.json": b"{}", "unet/weights.safetensors": bytes(range(256)) * 64}


def fetch(client, repo, token: str | bool = "hf_user", **options):
    return client.run(FETCH, repo=repo, token=token, options=options)


def fetch_fails(client, repo, token: str | bool = "hf_user", **options) -> str:
    return client.fails(FETCH, repo=repo, token=token, options=options)


def test_every_byte(hub, client):
    hub.put("user/whole", FILES)
    fetched = fetch(client, "user/whole")
    assert {name: bytes.fromhex(data) for name, data in fetched.items()} == FILES


@pytest.mark.parametrize("action", ["half", "cut", "corrupt"])
def test_a_broken_download_is_repaired(hub, client, action):
    repo = f"user/broken-{action}"
    hub.put(repo, FILES)
    hub.fail("GET .*weights.safetensors", action)
    assert (
        bytes.fromhex(fetch(client, repo)["unet/weights.safetensors"])
        == FILES["unet/weights.safetensors"]
    )


def test_a_download_that_stays_broken_is_refused(hub, client):
    hub.put("user/rotten", FILES)
    hub.fail("GET .*weights.safetensors", "corrupt", times=2)
    text = fetch_fails(client, "user/rotten")
    assert "arrived broken twice" in text and "unet/weights.safetensors" in text


def test_a_listing_with_wrong_digests_is_refused(hub, client):
    hub.put("user/wrong-sha", FILES)
    hub.fail("GET .*/tree/", "sha", times=9)
    assert "arrived broken twice" in fetch_fails(client, "user/wrong-sha")


@pytest.mark.parametrize("name", ["unet/model.bin", "old.ckpt", "x/y.pkl", "latents.npy"])
def test_a_pickle_is_refused_before_anything_is_downloaded(hub, client, name):
    hub.put("user/pickle", FILES | {name: b"\x80\x04."})
    assert f"{name} may hold a pickle" in fetch_fails(client, "user/pickle")
    assert hub.count("GET .*/resolve/") == 0


@pytest.mark.parametrize(
    ("repo", "token", "options", "text"),
    [
        ("user/nowhere", "hf_user", {}, "no such repository"),
        ("user/hidden", False, {}, "no such repository, or it is private"),
        ("user/hidden", "hf_other", {}, "no such repository, or it is private"),
        ("user/hidden", "hf_wrong", {}, "token is refused (401)"),
        ("user/hidden", "hf_user", {"revision": "v9"}, "no such revision"),
        ("not an id", "hf_user", {}, "is not valid"),
    ],
)
def test_refusals(hub, client, repo, token, options, text):
    hub.put("user/hidden", FILES, private=True)
    assert text in fetch_fails(client, repo, token, **options)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "token is refused"),
        (403, "may not write there (403)"),
        (404, "refused with status 404"),
        (409, "changed by somebody else"),
        (408, "keeps answering 408"),
        (429, "keeps answering 429"),
        (502, "keeps answering 502"),
        (504, "keeps answering 504"),
        (500, "keeps answering 500"),
    ],
)
def test_each_status_is_one_line(hub, client, status, text):
    hub.put("user/status", FILES)
    hub.fail("GET /api/models/user/status", "status", times=99, status=status)
    said = client.fails(
        QUICK
        + """
from huggingface_hub import HfApi
from hfgen.hub.client import hub_errors
with hub_errors("user/status"):
    retry(lambda: HfApi().model_info("user/status"))
"""
    )
    assert said.startswith("user/status: ") and text in said
