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
REFUSALS = ("401", "403", "404", "409", *map(str, PASSING_STATUS), "private", "corrupt", "cut")


def hub_lines() -> list[str]:
    """The section's lines."""
    tests = texts(*(f"tests/{room}/test_*.py" for room in ("hub", "pipelines", "conformance")))
    pages = texts(
        "docs/share.md", "docs/bring-your-own-model.md", "docs/evaluation.md", "README.md"
    )
    rows = [
        (kind, name, place(pattern, tests), place(pattern, pages))
        for kind, name, pattern in names()
    ]
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
        yield "loading", name, rf"\b{re.escape(name)}\b"
    for name in FILE_CHECKS:
        yield "check", name, rf'"{name}"|✓ {name}\b'
    for name in CAPTIONS:
        yield "picture", name, rf"\b{name}\b"
    for heading in re.findall(r"^## (.+)$", (TEMPLATES / "card.md.jinja").read_text(), re.M):
        yield "card", heading, rf"(?i)\b{heading}\b"
    for name in METADATA:
        yield "metadata", name, rf"\b{name}\b"
    for name in dict.fromkeys(REFUSALS):
        yield "refusal", name, rf"\b{name}\b"


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
