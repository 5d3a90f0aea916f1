"""The coverage page is computed: a cell is filled when, and only when, something was found."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from hfgen.evaluation import backbones
from hfgen.evaluation.model_metrics import MODEL_METRICS
from hfgen.evaluation.table import METRICS

ROOT = Path(__file__).parents[2]
EVERYTHING = {
    "everything": {
        "scores": [
            {"name": score, "value": 1.25, "standard_error": None}
            for names in (
                [score for name, metric in METRICS.items() for score in metric.scores(name)],
                [score for metric in MODEL_METRICS.values() for score in metric.functions],
            )
            for score in names
        ]
    }
}


@pytest.fixture(scope="module")
def coverage():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield import_module("coverage_metrics")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def tests():
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for path in ROOT.glob("tests/**/test_*.py")
        if path != Path(__file__)
    }


def awaited(cells) -> bool:
    return cells[5].startswith(("not measured: ", "no weights at hand"))


def test_every_name_is_a_row_and_every_row_has_a_test(coverage, tests):
    found = list(coverage.rows({}, tests))
    names = [cells[1] for cells in found]
    wanted = [*METRICS, *(s for m in MODEL_METRICS.values() for s in m.functions)]
    assert names == [*wanted, *backbones.BACKBONES]
    assert [cells[1] for cells in found if not cells[3]] == []


def test_nothing_measured_leaves_the_cells_blank(coverage, tests):
    for cells in coverage.rows({}, tests):
        assert cells[2] == cells[4] == ""
        assert cells[5] == "" or awaited(cells)


def test_a_score_fills_its_row_and_no_weights_stay_no_weights(coverage, tests):
    for cells in coverage.rows(EVERYTHING, tests):
        if awaited(cells):
            assert cells[2] == "", "nothing can be measured without the network's weights"
        else:
            assert cells[2] == "everything" and "1.25" in cells[5]


def test_rows_that_await_weights_are_those_of_networks_that_no_package_brings(coverage, tests):
    missing = {cells[1] for cells in coverage.rows(EVERYTHING, tests) if awaited(cells)}
    networks = {name for name in backbones.BACKBONES if not coverage.packaged(name)}
    fixed = {name for name, metric in METRICS.items() if metric.backbone in networks}
    assert networks == {"inception", "dinov2", "clip"}
    assert missing == fixed | networks | {"lpips"}


def test_a_test_cell_names_a_file_that_names_the_function(coverage, tests):
    assert coverage.test_of(["frechet_distance"], tests).endswith("test_frechet_distance.py)")
    assert coverage.test_of(["no_such_function"], tests) == ""


def test_scores_of_a_recipe_that_changed_since_do_not_count(coverage, tmp_path, monkeypatch):
    folder = tmp_path / "results" / "metrics"
    folder.mkdir(parents=True)
    text = '{"recipe": "mnist-vae", "recipe_hash": "HASH", "scores": [{"name": "c_t", "value": 1}]}'
    digest = coverage.recipes.digest(coverage.recipes.load("mnist-vae"))
    monkeypatch.setattr(coverage, "DOCS", tmp_path)
    for written, measured in ((digest, True), ("0123456789", False)):
        (folder / "mnist-vae.json").write_text(text.replace("HASH", written))
        assert (coverage.find(coverage.all_metrics({}), "c_t") is not None) == measured
