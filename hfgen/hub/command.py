"""Arguments of ``hfgen push | check | card | space | demo``, and what they call. Imports nothing
heavy until a command runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``hfgen push``."""
    parser.add_argument("folder", help="a run's folder or a saved pipeline")
    parser.add_argument("repo_id", help='the repository, as in "user/mnist-vae"')
    parser.add_argument("--private", action="store_true", help="create it as a private one")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("--revision", help="branch to commit to (default: main)")
    parser.add_argument("--message", help="the commit's message")
    parser.add_argument("--token", help="default: that of `hf auth login` or HF_TOKEN")
    parser.add_argument(
        "--checkpoint", action="store_true", help="the newest training checkpoint goes along"
    )


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``hfgen check``."""
    parser.add_argument("model", help="a run's folder, a pipeline's folder or a Hub id")
    parser.add_argument("--revision")
    parser.add_argument("--token")
    parser.add_argument("--trust-remote-code", action="store_true")


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``hfgen card``."""
    parser.add_argument("folder", help="a run's folder or a saved pipeline")
    parser.add_argument("--repo-id", help="for the lines that load it")


def add_space_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``hfgen space``."""
    parser.add_argument("folder", help="a run's folder or a saved pipeline")
    parser.add_argument("repo_id", help='the Space, as in "user/demo"')
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--token")


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``hfgen demo``."""
    parser.add_argument("model", help="a run's folder, a pipeline's folder or a Hub id")
    parser.add_argument("--port", type=int)
    parser.add_argument("--trust-remote-code", action="store_true")


def run_push(options: argparse.Namespace, _: list[str]) -> int:
    """Push, and print where it is; 0."""
    from hfgen.hub.client import check_account, check_repo_id
    from hfgen.hub.pictures import refresh_pictures
    from hfgen.hub.push import checked_files, push

    check_repo_id(options.repo_id)
    checked_files(options.folder)
    check_account(options.repo_id, options.token, create_pr=options.create_pr)
    refresh_pictures(Path(options.folder))
    given = vars(options)
    names = ("private", "create_pr", "revision", "message", "token", "checkpoint")
    pushed = push(options.folder, options.repo_id, **{name: given[name] for name in names})
    if not pushed.changed:
        text = f"{options.repo_id} holds these very files at {pushed.revision}; nothing to push"
        print(f"hfgen: {text}", file=sys.stderr)
    print(pushed.url)
    return 0


def run_check(options: argparse.Namespace, _: list[str]) -> int:
    """Print the table; 1 when a row failed."""
    from hfgen.hub.check import check

    report = check(
        options.model,
        revision=options.revision,
        token=options.token,
        trust_remote_code=options.trust_remote_code,
    )
    print(report.table())
    return report.status


def run_card(options: argparse.Namespace, _: list[str]) -> int:
    """Write or refresh the card, with pictures that are missing, and print its path; 0."""
    from hfgen.hub.card import write_card
    from hfgen.hub.pictures import refresh_pictures

    refresh_pictures(Path(options.folder))
    print(write_card(options.folder, repo_id=options.repo_id))
    return 0


def run_space(options: argparse.Namespace, _: list[str]) -> int:
    """Push a Space, and print where it is; 0."""
    from hfgen.hub.space import make_space

    pushed = make_space(
        options.folder, options.repo_id, private=options.private, token=options.token
    )
    print(pushed.url)
    return 0


def run_demo(options: argparse.Namespace, _: list[str]) -> int:
    """Serve the page until interrupted; 0."""
    from hfgen.hub.space import demo

    demo(options.model, port=options.port, trust_remote_code=options.trust_remote_code)
    return 0
