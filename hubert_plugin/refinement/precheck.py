"""When the options of all steps are checked (``check.py``), and by which command: once for each configuration, code,
phone times and transcripts. Before the first step of a run, and before a plan."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from hubert_plugin.errors import ConfigError
from hubert_plugin.files import write_text_atomic
from hubert_plugin.refinement.config import RefinementConfig
from hubert_plugin.refinement.plan import TRANSCRIPTS, times_digests
from hubert_plugin.refinement.ranks import World, child_env
from hubert_plugin.refinement.record import STATE_FOLDER
from hubert_plugin.refinement.steps import OWN_COMMAND
from hubert_plugin.refinement.store import CONFIG_FILE, config_text
from hubert_plugin.refinement.workshop import Workshop


def check_mark(shop: Workshop, code: Mapping[str, str]) -> str:
    """Return what tells whether a check that ended well still holds.

    :raises HubertError: A file that the configuration names cannot be read.
    """
    content = json.dumps(
        [config_text(shop.config, shop.out), dict(code), times_digests(shop), _transcript_digests(shop)]
    )

    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()


def is_checked(out: Path, mark: str) -> bool:
    """Return whether a check with this mark ended well."""
    try:
        return _mark_path(out).read_text(encoding="utf-8").strip() == mark
    except OSError:
        return False


def keep_mark(out: Path, mark: str) -> None:
    """Write down that a check ended well."""
    write_text_atomic(_mark_path(out), f"{mark}\n")


def check_command(config: RefinementConfig, out: str, file: Path | None = None) -> list[str]:
    """Return the command that checks.

    :param out: OUT as the command names it.
    :param file: The configuration. ``None``: that in OUT.
    """
    argv = [*(config.command or OWN_COMMAND), "recipe", "hubert", "iterate", out, "--check"]

    return argv if file is None else [*argv, "--config-file", str(file)]


def problems_in(lines: Sequence[str]) -> str:
    """Return what a check's output says of the options; nothing if it said nothing."""
    text = "\n".join(lines)

    # What else was logged before says nothing of the options.
    return text.partition("fairseq2: error: ")[2] or text


def check_before_plan(shop: Workshop, code: Mapping[str, str]) -> None:
    """Have the verbs look at the options of all steps, as a run does before its first step; nothing is written in OUT.

    :raises ConfigError: Some cannot be used; names all.
    """
    if is_checked(shop.out, check_mark(shop, code)):
        return

    with tempfile.TemporaryDirectory(prefix="hubert-plan-") as folder:
        # OUT may not be there yet, or hold another configuration.
        file = Path(folder, CONFIG_FILE)

        file.write_text(config_text(shop.config, shop.out), encoding="utf-8", errors="surrogateescape")

        argv = check_command(shop.config, str(shop.out), file)

        try:
            ended = subprocess.run(
                argv,
                env=child_env(World.of_env(), None),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as ex:
            # A container may only be there where the run will be; the plan is of use elsewhere, too.
            print(
                f"The options of the steps are not checked: '{argv[0]}' cannot be started here "
                f"({ex.strerror or ex}). It stands in `command`.",
                file=sys.stderr,
            )

            return

    if ended.returncode:
        raise ConfigError(
            problems_in(ended.stdout.strip().splitlines()[-60:])
            or f"The options of the steps could not be checked: the check ended with exit code {ended.returncode} and "
            f"said nothing. `iterate {shop.out} --check` with the same options repeats it."
        )


def _transcript_digests(shop: Workshop) -> dict[str, str]:
    """Return the digests of what transcripts are checked against, and of those that are found."""
    config = shop.config

    section = config.dataset

    if shop.manifest_dir is None or section.demo is not None or all(r.finetune is None for r in config.rounds):
        return {}

    found = {}

    for split in (section.train_split, section.valid_split):
        found[f"{split}.tsv"] = shop.manifest_digest(split)

        paths = [shop.manifest_dir / f"{split}.{suffix}" for suffix in TRANSCRIPTS]

        found |= {p.name: shop.file_digest(p) for p in paths if p.is_file()}

    return found


def _mark_path(out: Path) -> Path:
    return out / STATE_FOLDER / "checked"
