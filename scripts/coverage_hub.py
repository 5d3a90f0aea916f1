"""The Hub in ``docs/coverage.md``: names from the code, a test and a page found by search."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args, get_type_hints

from hfgen.cli import build_parser
from hfgen.hub.check import FILE_CHECKS
from hfgen.hub.client import PASSING_STATUS
from hfgen.hub.config import HubConfig
from hfgen.hub.facts import CAPTIONS
from hfgen.hub.space import TEMPLATES

ROOT = Path(__file__).parents[1]
LOADING = (
    *("from_pretrained", "hfgen.load", "save_pretrained", "push_to_hub", "snapshot_download"),
    *("trust_remote_code", "variant", "dtype", "device_map", "max_shard_size"),
    *("safetensors", "main_process_first", "gradient_checkpointing"),
)
"""Doors of diffusers that a shared repository passes through, and what is promised of them."""
METADATA = (
    *("library_name", "pipeline_tag", "tags", "datasets", "license", "widget", "model-index"),
)
SHOWN_BY = {
    "snapshot_download": r"snapshot_download|loads_offline",
    "main_process_first": r"main_process_first|rank_0_first",
    "gradient_checkpointing": r"gradient_checkpointing",
    "How to load": r"(?i)how to load|three_lines_run",
    "Licence": r"(?i)licence|The weights: ",
    "Citation": r"(?i)citation|Denoising Diffusion Probabilistic Models",
}
"""Patterns of names that are called otherwise where they are tested."""
PROMISES = {
    "loads with diffusers alone, bit-identical, pushed on and loaded again": (
        "hub/test_loads_anywhere.py::test_pushed_loaded_pushed_and_loaded_again"
    ),
    "names of code files hash their content": "pipelines/test_self_contained.py"
    "::test_the_folder_is_what_the_design_says",
    "training that is to be pushed starts only with an account that may": (
        "hub/test_command_line.py::test_training_starts_only_with_an_account_that_may_push"
    ),
    "two repositories with files of one name in one process": (
        "hub/test_loads_anywhere.py::test_two_repositories_with_files_of_one_name_in_one_process"
    ),
    "concurrent loads in separate processes": (
        "hub/test_loads_anywhere.py::test_loads_at_once_in_separate_processes"
    ),
    "ranks load rank 0 first": "hub/test_resume.py"
    "::test_two_ranks_train_on_from_the_hub_rank_0_first",
    "variant, dtype, sharding": "pipelines/test_self_contained.py::test_variant_sharding_and_dtype",
    "device_map": "conformance/test_pipeline_conformance.py::test_variant_shards_and_device_map",
    "offline, from a snapshot": "hub/test_loads_anywhere.py::test_a_snapshot_loads_offline",
    "native classes need no remote code": "hub/test_card.py"
    "::test_the_three_lines_run_where_hfgen_is_not",
    "no pickle is written": "pipelines/test_self_contained.py::test_no_pickle_is_written",
    "no pickle is read": "pipelines/test_self_contained.py::test_no_pickle_is_read",
    "checkpoints load with weights_only, and are shared without a pickle": (
        "hub/test_background.py::test_optimizer_states_travel_without_a_pickle"
    ),
    "asks before foreign code runs, naming the files": "hub/test_check.py::test_a_person_is_asked",
    "without a terminal the flag is needed": (
        "hub/test_admit.py::test_without_a_terminal_the_flag_is_needed_and_nothing_is_left"
    ),
    "another hash is said, both are named": (
        "pipelines/test_load.py::test_other_code_is_named_and_waits_for_the_flag"
    ),
    "card: template per family": "hub/test_card.py::test_each_family_has_its_template",
    "card: models of texts": "hub/test_text_models.py"
    "::test_card_lines_and_check_of_a_model_of_texts",
    "card: lines that load it are run": "hub/test_card.py"
    "::test_the_three_lines_run_where_hfgen_is_not",
    "card: own edits survive a refresh": "hub/test_card.py"
    "::test_a_refresh_keeps_what_was_written_by_hand",
    "card: edits on the website survive a push": (
        "hub/test_card.py::test_words_written_on_the_hub_survive_a_push"
    ),
    "upload: one commit": "hub/test_push.py::test_one_commit_with_everything",
    "upload: retries with back-off": "hub/test_push.py::test_what_passes_is_tried_again",
    "upload: resumes after being killed": "hub/test_push.py"
    "::test_killed_in_the_middle_and_pushed_again",
    "upload: the remote is compared": "hub/test_push.py"
    "::test_the_remote_is_compared_after_the_commit",
    "upload: no half-written main": "hub/test_push.py"
    "::test_what_does_not_pass_leaves_main_as_it_was",
    "upload: pull request": "hub/test_push.py::test_create_pr_leaves_main_alone",
    "push while training: no step waits": "hub/test_background.py"
    "::test_a_slow_hub_does_not_hold_a_step",
    "push while training: failures told and retried": (
        "hub/test_background.py::test_an_unavailable_hub_is_tried_again"
    ),
    "resume on another machine": (
        "hub/test_resume.py::test_a_run_that_was_killed_goes_on_elsewhere_and_ends_the_same"
    ),
    "train on: weights travel, the discriminator too": (
        "hub/test_resume.py::test_recipe_and_weights_travel_the_discriminator_too"
    ),
    "train on: code of its own travels": "hub/test_admit.py::test_trained_on_with_its_own_code",
    "demo: sliders of seed, truncation, class": "hub/test_space.py"
    "::test_sliders_follow_the_pipeline",
    "demo: steps of a diffusion model": "hub/test_space.py"
    "::test_a_diffusion_pipeline_has_steps_and_no_walk",
    "demo: a walk between two latents": "hub/test_space.py"
    "::test_the_walk_begins_and_ends_at_its_seeds",
    "demo in a browser": "hub/test_demo_browser.py"
    "::test_an_image_appears_and_the_slider_changes_it",
    "docs: share in five minutes, as commands": "hub/test_docs.py::test_share_in_five_minutes",
    "docs: bring your own model, as commands": "hub/test_docs.py::test_bring_your_own_model",
    "bad input: one line, status 2, nothing half-done": (
        "hub/test_command_line.py::test_bad_input_is_one_line_status_2_and_nothing_is_made"
    ),
    "bad input: broken folders send nothing": (
        "hub/test_push.py::test_nothing_is_sent_when_the_folder_is_wrong"
    ),
    "bad input: a Space of code that cannot load alone": (
        "hub/test_space.py::test_code_that_is_not_ours_waits_for_the_flag"
    ),
    "bad input: code with a missing import": (
        "hub/test_check.py::test_trusted_code_that_imports_something_missing_is_one_line"
    ),
    "download: corrupted, cut, wrong sha": "hub/test_fetch.py::test_a_broken_download_is_repaired",
    "conformance: models": "conformance/test_model_conformance.py::test_save_and_load",
    "conformance: pipelines": "conformance/test_pipeline_conformance.py::test_save_and_load",
}
"""What is promised of sharing -> the test that shows it, which must exist."""
_OPTIONS = {
    ("push", "--private", "--message", "--token"): "test_push_private_with_a_message_and_a_token",
    ("push", "--create-pr", "--revision"): "test_push_to_a_branch_and_as_a_pull_request",
    ("check", "--revision", "--token"): "test_check_looks_at_the_revision_with_the_token",
    ("card", "--repo-id"): "test_card_with_a_repo_id",
    ("space", "--private", "--token"): "test_space_private_with_a_token",
}
SHOWN = {
    (command, option): f"hub/test_command_line.py::{test}"
    for (command, *options), test in _OPTIONS.items()
    for option in options
} | {
    ("push", "--checkpoint"): "hub/test_admit.py::test_resumed_elsewhere_with_its_own_code",
    ("check", "--trust-remote-code"): "hub/test_check.py"
    "::test_code_that_is_not_ours_runs_only_when_trusted",
    ("demo", "--port"): "hub/test_space.py::test_the_page_answers_here_too",
    ("demo", "--trust-remote-code"): "hub/test_space.py"
    "::test_code_that_is_not_ours_waits_for_the_flag",
    ("command", "hfgen demo"): "hub/test_space.py::test_the_page_answers_here_too",
    (
        "recipe",
        "hub.private",
    ): "hub/test_background.py::test_a_slow_hub_does_not_hold_a_step",
    ("loading", "safetensors"): "pipelines/test_self_contained.py::test_no_pickle_is_read",
    ("loading", "push_to_hub"): "hub/test_loads_anywhere.py"
    "::test_pushed_loaded_pushed_and_loaded_again",
    ("card", "Training"): "hub/test_card.py::test_everything_a_reader_asks_for",
    ("card", "Size"): "hub/test_card.py::test_numbers_of_parameters_are_those_of_the_model",
    ("refusal", "401"): "hub/test_push.py::test_wrong_token",
    ("refusal", "403"): "hub/test_push.py::test_no_write_permission_on_an_existing_repository",
    ("refusal", "409"): "hub/test_push.py::test_409_while_the_repository_is_made",
    ("refusal", "429"): "hub/test_push.py::test_what_passes_is_tried_again",
    ("refusal", "503"): "hub/test_push.py::test_what_passes_is_tried_again",
    ("refusal", "500"): "hub/test_push.py::test_what_does_not_pass_leaves_main_as_it_was",
    ("refusal", "private"): "hub/test_push.py::test_private",
    ("refusal", "corrupt"): "hub/test_fetch.py::test_a_download_that_stays_broken_is_refused",
    ("refusal", "cut"): "hub/test_push.py::test_what_passes_is_tried_again",
}
"""(kind, name) -> its test, where the one that says the name most often is another."""
REFUSALS = ("401", "403", "404", "409", *map(str, PASSING_STATUS), "private", "corrupt", "cut")


def hub_lines() -> list[str]:
    """The section's lines."""
    tests = texts(*(f"tests/{room}/test_*.py" for room in ("hub", "pipelines", "conformance")))
    pages = texts("docs/share.md")
    more = texts("docs/bring-your-own-model.md")
    rows = [
        (
            kind,
            name,
            shown(SHOWN[kind, name]) if (kind, name) in SHOWN else place(pattern, tests),
            place(pattern, pages) or place(pattern, more),
        )
        for kind, name, pattern in names()
    ]
    page = place("(?i)share", pages)
    rows += [("promise", name, shown(test), page) for name, test in PROMISES.items()]
    done = sum(bool(test) for _, _, test, _ in rows)
    lines = [f"## Hub ({done} of {len(rows)} tested)", "", "| kind | name | test | page |"]
    lines += ["|---|---|---|---|"]
    lines += [f"| {kind} | `{name}` | {test} | {page} |" for kind, name, test, page in rows]
    return [*lines, ""]


def names() -> Iterator[tuple[str, str, str]]:
    """Kind, name, and the pattern by which it is found."""
    for command, parser in commands():
        yield "command", f"hfgen {command}", rf'hfgen {command}\b|"{command}"|_{command}\('
        for option in options(parser):
            word = option.strip("-").replace("-", "_")
            yield f"{command}", option, rf"{option}\b|\b{word}="
    yield "command", "hfgen train user/name", r'hfgen train user/|"train", "user/'
    yield "command", "hfgen train user/name --resume latest", r'user/[\w-]+"?,? "?--resume'
    for setting in dataclasses.fields(HubConfig):
        yield "recipe", f"hub.{setting.name}", rf"\b{setting.name}\b"
    for strategy in get_args(get_type_hints(HubConfig)["strategy"]):
        yield "strategy", strategy, rf'"{strategy}"|strategy: .*\b{strategy}\b|# .*\b{strategy}\b'
    for name in LOADING:
        yield "loading", name, SHOWN_BY.get(name, rf"\b{re.escape(name)}\b")
    for name in FILE_CHECKS:
        yield "check", name, rf'"{name}"|✓ {name}\b'
    for name in CAPTIONS:
        yield "picture", name, rf"\b{name}\b"
    for heading in re.findall(r"^## (.+)$", (TEMPLATES / "card.md.jinja").read_text(), re.M):
        yield "card", heading, SHOWN_BY.get(heading, rf"(?i)\b{heading}\b")
    for name in METADATA:
        yield "metadata", name, rf"\b{name}\b"
    for name in dict.fromkeys(REFUSALS):
        yield "refusal", name, rf"\b{name}\b"


def shown(test: str) -> str:
    """A link to a test's file. Raises SystemExit where there is no such test."""
    file, _, function = test.partition("::")
    if f"def {function}(" not in (ROOT / "tests" / file).read_text():
        raise SystemExit(f"scripts/coverage_hub.py: no test {test}")
    return f"[{function.removeprefix('test_')}](../tests/{file})"


def commands() -> list[tuple[str, argparse.ArgumentParser]]:
    """The commands of the Hub with their parsers."""
    subparsers = next(
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return [
        (name, parser)
        for name, parser in subparsers.choices.items()
        if parser.get_default("command").__module__ == "hfgen.hub.command"
    ]


def options(parser: argparse.ArgumentParser) -> list[str]:
    found = [action.option_strings[-1] for action in parser._actions if action.option_strings]
    return [option for option in found if option != "--help"]


def texts(*patterns: str) -> dict[str, str]:
    """Path -> text."""
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def place(pattern: str, files: Mapping[str, str]) -> str:
    """A link to the file in which the pattern is found most often."""
    counts = {path: len(re.findall(pattern, text)) for path, text in files.items()}
    best = max(counts, key=lambda path: counts[path])
    return f"[{Path(best).stem}](../{best})" if counts[best] else ""
