"""Checks the options of every step against its verb, and what they name against models and corpus (layers, phone times,
item files, transcripts), before the first hour of work: a typing error in the last round must not be found in the third
week.

Runs in a process of its own, since verbs import torch. Each step's command line is parsed by its verb as it will be;
where something is not known yet, such as a layer to be chosen, any value stands for it.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Final

from hubert_plugin.analysis.abx import read_items
from hubert_plugin.analysis.alignments import AlignmentConfig, read_alignments
from hubert_plugin.analysis.spaces import RATE as ITEM_RATE
from hubert_plugin.data.manifest import Manifest, read_manifest
from hubert_plugin.errors import HubertError, format_problems
from hubert_plugin.refinement.config import RefinementConfig
from hubert_plugin.refinement.demo import find_demo
from hubert_plugin.refinement.fit import head_problems, layer_problems, measure_problems, transcript_problems
from hubert_plugin.refinement.settings import structure
from hubert_plugin.refinement.steps import Step, Work, command_line
from hubert_plugin.refinement.store import open_workshop
from hubert_plugin.refinement.workshop import Workshop

_ANY_LAYER: Final = 1

_HEAD: Final = re.compile(r"^.*?(?:ERROR fairseq2 - |fairseq2: error: )")


def check_commands(config: RefinementConfig, out: Path) -> int:
    """Parse the command of every step; say on stderr what is wrong with them, and return the exit code."""
    shop = open_workshop(config, out, dry=True)

    if config.dataset.demo is not None:
        shop.manifest_dir = find_demo(config.dataset.demo)

    problems: list[str] = []

    refused: set[str] = set()

    seen: set[tuple[str, ...]] = set()

    for step in shop.steps.values():
        if step.verb == "iterate":
            continue

        argv = _parse_only(step, step.make(shop))

        if tuple(argv) in seen:
            continue

        seen.add(tuple(argv))

        if answer := _answer(argv):
            problems.append(f"{step.title}: {answer}")

            refused.add(step.key)

    problems += _times_problems(shop)

    problems += layer_problems(shop, refused)

    problems += head_problems(shop, refused)

    problems += measure_problems(shop, refused)

    problems += transcript_problems(shop, refused)

    if not problems:
        print(f"The options of all {len(shop.steps)} steps can be used. Nothing was run.")

        return 0

    print(
        f"fairseq2: error: {format_problems('The refinement cannot be run as it is configured:', problems)}",
        file=sys.stderr,
    )

    return 2


def _times_problems(shop: Workshop) -> list[str]:
    """Say what is wrong with phone times, word times and item files: they are used weeks later."""
    section = shop.config.dataset

    if shop.manifest_dir is None or section.demo is not None:
        return []

    problems: list[str] = []

    def attempt(read: Callable[[Manifest], object]) -> None:
        try:
            read(manifest)
        except HubertError as ex:
            problems.append(str(ex))

    try:
        manifest = read_manifest(shop.manifest_dir, section.valid_split)
    except HubertError as ex:
        return [str(ex)]

    if section.alignment:
        attempt(lambda m: read_alignments(structure(AlignmentConfig, section.alignment), m))

    if section.words:
        attempt(
            lambda m: read_alignments(structure(AlignmentConfig, {"tier": "words", **section.words}), m, may_lack=True)
        )

    for path in section.items:
        attempt(lambda m, path=path: read_items(path, m, ITEM_RATE))  # type: ignore[misc]

    return problems


def _parse_only(step: Step, work: Work) -> Sequence[str]:
    options = dict(work.options)

    features = options.get("features.config")

    if isinstance(features, dict) and features.get("layer") == "auto":
        options["features.config"] = {**features, "layer": _ANY_LAYER}

    # What stands before `recipe` starts a process; here, the command is called.
    argv = command_line(["-"], step, Work(options, {}, {}, work.preset))[1:]

    return [*argv[:4], "--dump-config", *argv[4:]]


def _answer(argv: Sequence[str]) -> str:
    """Return what the command answers to options that it cannot use; nothing if it can use them."""
    from hubert_plugin.cli import main

    stdout, stderr = io.StringIO(), io.StringIO()

    before = sys.argv

    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = main(argv)
    except SystemExit as ex:
        code = ex.code if isinstance(ex.code, int) else int(ex.code is not None)
    finally:
        sys.argv = before

    if not code:
        return ""

    text = " ".join((stderr.getvalue() or stdout.getvalue()).split())

    # What else was logged before says nothing of the options.
    return _HEAD.sub("", text) or f"the verb ended with exit code {code}."
