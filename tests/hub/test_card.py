"""Model cards: what they say comes from the run's files; what the owner wrote stays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hub_client import QUICK
from huggingface_hub import ModelCard

from hfgen.errors import HfgenError
from hfgen.hub.card import BEGIN, END, write_card
from hfgen.hub.facts import Result, count_parameters
from hfgen.hub.folder import split_card


def metadata(path: Path) -> dict:
    return yaml.safe_load(split_card(path.read_text())[0])


def test_metadata_as_the_hub_reads_it(run_folder):
    card = ModelCard.load(write_card(run_folder, repo_id="user/tiny"))
    data = card.data.to_dict()
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["ylecun/mnist"]
    assert {"hfgen", "diffusion"} <= set(data["tags"])
    assert data["widget"] == [{"text": " ", "output": {"url": "samples/grid.png"}}]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("fd", 12.3456)
    assert result.metric_args["protocol"] == "efficientnet-lite0, 1000 samples, 10 steps"
    assert result.metric_args["standard_error"] == 0.21


def test_everything_a_reader_asks_for(run_folder):
    text = write_card(run_folder, repo_id="user/tiny").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    for said in (
        "# tiny-ddpm",
        "A tiny diffusion model.",
        "![Samples, not selected](samples/grid.png)",
        'DiffusionPipeline.from_pretrained("user/tiny")',
        "| data | mnist (train), 8×8 |",
        "| images seen | 1,000 |",
        "| time | 1 min 15 s |",
        "| hardware | a CPU, 2 cores |",
        "| fd ↓ | 12.35 ± 0.21 | ddof 1; efficientnet-lite0, 1000 samples, 10 steps |",
        "- `unet` (UNet2DModel): ",
        "The weights: apache-2.0.",
        "Denoising Diffusion Probabilistic Models",
        "## Limits",
    ):
        assert said in text, said


@pytest.mark.parametrize("family", ["vae", "gan", "diffusion"])
def test_each_family_has_its_template(run_folder, family):
    recipe = run_folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("family: diffusion", f"family: {family}"))
    text = write_card(run_folder).read_text()
    paper = {"vae": "Auto-Encoding", "gan": "Adversarial Nets", "diffusion": "Denoising Diffusion"}
    assert paper[family] in text
    assert "\n\n\n" not in split_card(text)[1]


def test_numbers_of_parameters_are_those_of_the_model(client, stock_pipeline):
    count = client.run(
        "from diffusers import UNet2DModel\n"
        "result = UNet2DModel.from_pretrained(folder, subfolder='unet').num_parameters()",
        folder=str(stock_pipeline),
    )
    assert count_parameters(stock_pipeline / "unet") == count


def test_a_refresh_keeps_what_was_written_by_hand(run_folder):
    path = write_card(run_folder, repo_id="user/tiny")
    text = path.read_text().replace("license: apache-2.0", "license: mit\nlanguage: en")
    text = text.replace("tags:\n", "tags:\n- mine\n").replace(BEGIN, f"Above.\n\n{BEGIN}")
    path.write_text(text.replace(f"{END}", f"{END}\n\n## Notes\n\nBelow.\n").replace("±", "+-"))
    numbers = json.loads((run_folder / "evaluation" / "metrics.json").read_text())
    numbers["scores"][0]["value"] = 9.0
    (run_folder / "evaluation" / "metrics.json").write_text(json.dumps(numbers))
    text = write_card(run_folder, repo_id="user/tiny").read_text()
    assert "Above." in text and "## Notes\n\nBelow." in text
    assert "9.00 ± 0.21" in text and "12.35" not in text
    data = metadata(path)
    assert (data["license"], data["language"]) == ("mit", "en")
    assert "mine" in data["tags"] and "hfgen" in data["tags"]
    assert [entry["metrics"][0]["value"] for entry in data["model-index"][0]["results"]] == [9.0]


def test_refreshing_twice_changes_nothing(run_folder):
    path = write_card(run_folder, repo_id="user/tiny")
    once = path.read_text()
    assert write_card(run_folder, repo_id="user/tiny").read_text() == once


def test_results_measured_elsewhere_stay(run_folder):
    path = write_card(run_folder)
    data = metadata(path)
    foreign = json.loads(json.dumps(data["model-index"][0]["results"][0]))
    foreign["metrics"] = [{"type": "fid", "value": 3.0, "name": "FID by others"}]
    data["model-index"][0]["results"].append(foreign)
    path.write_text(f"---\n{yaml.safe_dump(data)}---\n{split_card(path.read_text())[1]}")
    write_card(run_folder)
    results = metadata(path)["model-index"][0]["results"]
    assert [entry["metrics"][0]["type"] for entry in results] == ["fd", "fid"]


def test_a_card_written_by_hand_gets_the_generated_part_below(run_folder):
    (run_folder / "README.md").write_text("# Mine\n\nMy words.\n")
    text = write_card(run_folder).read_text()
    body = split_card(text)[1]
    assert body.lstrip().startswith("# Mine\n\nMy words.\n\n" + BEGIN)


def test_words_written_on_the_hub_survive_a_push(hub, client, run_folder):
    push = QUICK + "from hfgen.hub.push import push; push(folder, 'user/web', token='hf_user')"
    client.run(push, folder=str(run_folder))
    files = hub.files("user/web")
    edited = files["README.md"].replace(
        BEGIN.encode(), b"Written on the website.\n\n" + BEGIN.encode()
    )
    hub.put("user/web", files | {"README.md": edited})
    (run_folder / "evaluation" / "metrics.json").write_text('{"scores": []}')
    client.run(push, folder=str(run_folder))
    text = hub.files("user/web")["README.md"].decode()
    assert "Written on the website." in text and "12.35" not in text


def test_the_three_lines_run_where_hfgen_is_not(hub, client, stranger, run_folder):
    client.run(
        QUICK + "from hfgen.hub.push import push; push(folder, 'user/lines', token='hf_user')",
        folder=str(run_folder),
    )
    (lines,) = re.findall(
        r"```python\n(.*?)```", hub.files("user/lines")["README.md"].decode(), re.S
    )
    assert len(lines.strip().splitlines()) == 3
    assert stranger.run(lines + "result = [image.mode, *image.size]") == ["L", 8, 8]


def test_a_bare_pipeline_has_a_card_too(stock_pipeline, tmp_path):
    import shutil

    folder = shutil.copytree(stock_pipeline, tmp_path / "ddpm")
    text = write_card(folder, repo_id="user/bare").read_text()
    assert "# ddpm" in text and "The training is not recorded" in text
    assert metadata(folder / "README.md")["license"] == "unknown"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.3456, 0.21, "12.35 ± 0.21"),
        (0.00123, 0.0004, "0.0012 ± 0.0004"),
        (98.6, None, "98.6"),
        (123.4, 17.0, "123 ± 17"),
        (1.5, 0.0, "1.5"),
        (1.5, float("nan"), "1.5"),
        (-3376.98, 155.03, "-3377 ± 160"),
        (1.23456, 0.0000099, "1.2345600 ± 0.0000099"),
    ],
)
def test_digits_follow_the_error_bar(value, error, text):
    assert Result(metric="m", value=value, standard_error=error).text == text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("README.md", "---\nlicense: [\n---\n", "is not valid YAML"),
        ("README.md", "---\n- a\n---\n", "expected a YAML mapping"),
        ("recipe.yaml", "name: [", "is not valid YAML"),
        ("evaluation/metrics.json", "{", "not valid JSON"),
        (
            "evaluation/metrics.json",
            '{"scores": [{"name": "fd"}]}',
            "not written by hfgen evaluate",
        ),
    ],
)
def test_broken_files_are_named(run_folder, name, content, said):
    (run_folder / name).write_text(content)
    with pytest.raises(HfgenError, match=said) as caught:
        write_card(run_folder)
    assert name in str(caught.value) and "\n" not in str(caught.value)
