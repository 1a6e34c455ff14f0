"""Batch scripts for SLURM: one job for each part of a round, labelling as a job array, training on many nodes.

The scripts are to be read and edited: what a site needs (account, partition, modules) stands in ``settings.sh``.
"""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

from hubert_plugin.files import atomic_path, write_text_atomic
from hubert_plugin.refinement.config import RefinementConfig
from hubert_plugin.refinement.plan import plan_steps
from hubert_plugin.refinement.steps import Step
from hubert_plugin.refinement.store import CONFIG_FILE, config_text

_SETTINGS = """\
# What your site needs. Every script reads this.

# sbatch options of all jobs, such as --account=ME --partition=gpu --time=24:00:00
SBATCH_OPTIONS=()

# One process for each GPU.
NODES=4
GPUS_PER_NODE=8
CPUS_PER_GPU=8

# Jobs of the labelling array; each labels one shard with one GPU.
NUM_SHARDS=16

# How often a training that was stopped before its time was over is put back into the queue.
MAX_RESTARTS=50

# How the environment is set up on a node.
activate() {{
    : # source /path/to/venv/bin/activate
}}

OUT={out}
CONFIG={config}

# How verbs are started.
FAIRSEQ2=({command})
"""

_HEAD = """\
#!/bin/bash
# {purpose}
# Submitted by submit.sh, which gives its sbatch options; run again, it goes on where it was.
#SBATCH --job-name={name}
#SBATCH --output={logs}/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail
{folder}
activate
{guard}"""

_GUARD = """
# A training that was stopped is taken up by its own job alone, on all of its nodes.
"${{FAIRSEQ2[@]}}" recipe hubert iterate "$OUT" --config-file "$CONFIG" --is-done {training}
"""

_FOLDER = """\
FOLDER={folder}
source "$FOLDER/settings.sh\""""

_ALONE = """
"${{FAIRSEQ2[@]}}" recipe hubert iterate "$OUT" --config-file "$CONFIG"{until}
"""

_BEFORE_ARRAY = """
# All up to this step; and labels of another making are cleared away for the array, whose tasks run at the same time.
"${{FAIRSEQ2[@]}}" recipe hubert iterate "$OUT" --config-file "$CONFIG" --prepare {step}
"""

_ARRAY = """
# The labels of a shard; the job that finishes last joins them. The command is asked for here, since the layer that it
# names may have been chosen by a job before this one.
COMMAND=$("${{FAIRSEQ2[@]}}" recipe hubert iterate "$OUT" --config-file "$CONFIG" --print-command {step})

eval "$COMMAND" num_shards="$NUM_SHARDS" shard="$SLURM_ARRAY_TASK_ID"
"""

_SRUN = """
# A task for each GPU. SIGUSR1, sent by SLURM before the time is over, has the training write a checkpoint and end.
srun --kill-on-bad-exit=1 "${{FAIRSEQ2[@]}}" recipe hubert iterate "$OUT" --config-file "$CONFIG" --until {step}
"""

_GO_ON = """
# Stopped, it has ended well, but is not done (exit code 75): this job is put back into the queue, and goes on with as
# many processes as before. The jobs behind it wait: they are for after a good end.
STATE=0
"${{FAIRSEQ2[@]}}" recipe hubert iterate "$OUT" --config-file "$CONFIG" --is-done {step} || STATE=$?

if ((STATE == 75 && ${{SLURM_RESTART_COUNT:-0}} < ${{MAX_RESTARTS:-50}})); then
    scontrol requeue "$SLURM_JOB_ID"
fi

exit "$STATE"
"""

_TORCHRUN = """
# In place of the script of the same name without `-torchrun`: one launcher for each node, which starts the processes.
ENDPOINT=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29400

# SIGUSR1, sent by SLURM before the time is over, would end torchrun, which does not pass it on: torchrun ignores it
# here, and its processes are told by the shell around it. Each has the training write a checkpoint and end.
LAUNCH='
    (trap "" USR1; exec "$@") &
    LAUNCHER=$!

    trap "pkill -USR1 -P $LAUNCHER" USR1

    STATUS=0
    wait "$LAUNCHER" || STATUS=$?

    # The signal ends the waiting, too.
    while ((STATUS == 128 + $(kill -l USR1))); do
        STATUS=0
        wait "$LAUNCHER" || STATUS=$?
    done

    exit "$STATUS"
'

srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c "$LAUNCH" launch \\
    torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$GPUS_PER_NODE" \\
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$ENDPOINT" --no-python \\
    "${{FAIRSEQ2[@]}}" recipe hubert iterate "$OUT" --config-file "$CONFIG" --until {step}
"""

_SUBMIT_HEAD = """\
#!/bin/bash
# Submits all jobs, each waiting for the one before. Run again after a failure: what is done is not done again.
set -euo pipefail
{folder}

mkdir -p "$FOLDER/logs"

ONE=(--nodes=1 --ntasks=1 --gpus-per-node=1 --cpus-per-task="$CPUS_PER_GPU")
MANY=(--nodes="$NODES" --ntasks-per-node="$GPUS_PER_NODE" --gpus-per-node="$GPUS_PER_NODE"
    --cpus-per-task="$CPUS_PER_GPU" --signal=USR1@300)
AFTER=()

submit() {{
    local job

    job=$(sbatch --parsable "${{SBATCH_OPTIONS[@]}}" "${{AFTER[@]}}" "$@")
    job=${{job%%;*}}

    echo "$job $*"

    AFTER=(--dependency="afterok:$job")
}}

"""


def write_scripts(config: RefinementConfig, out: Path, folder: Path) -> list[Path]:
    """Write the scripts and return them.

    :param out: OUT, absolute.
    :param folder: Where they go, absolute.
    :raises StorageError: A file cannot be written.
    """
    files = {"settings.sh": _settings(config, out, folder), CONFIG_FILE: config_text(config, out)}

    jobs: list[tuple[str, str]] = []

    training: Step | None = None

    steps = plan_steps(config)

    following = {step.key: after for step, after in pairwise(steps)}

    for step in steps:
        name = step.key.replace("/", "-")

        if step.verb == "label":
            kind, bodies = "array", {name: (", as a job array", _ARRAY)}
        elif step.is_training:
            kind = "many"

            bodies = {
                name: (", on many nodes", _SRUN + _GO_ON),
                f"{name}-torchrun": (", on many nodes, by torchrun", _TORCHRUN + _GO_ON),
            }
        else:
            kind, bodies = "one", {name: (", on one GPU", _ALONE)}

        labels = following.get(step.key)

        if labels is not None and labels.verb == "label":
            bodies = {name: (", on one GPU", _BEFORE_ARRAY.replace("{step}", shlex.quote(labels.key)))}

        for file, (how, body) in bodies.items():
            files[f"{file}.sbatch"] = _script(folder, name, f"{step.title}{how}.", body, step, training)

        jobs.append((kind, name))

        training = step if step.is_training else training

    files["submit.sh"] = _submit(folder, jobs)

    written = []

    for name, text in files.items():
        path = folder / name

        if name.endswith((".sh", ".sbatch")) and name != "settings.sh":
            with atomic_path(path) as tmp:
                tmp.write_text(text, encoding="utf-8")

            path.chmod(path.stat().st_mode | 0o111)
        elif name != "settings.sh" or not path.exists():  # what a user has filled in stays
            write_text_atomic(path, text)

        written.append(path)

    return written


def _settings(config: RefinementConfig, out: Path, folder: Path) -> str:
    command = shlex.join(config.command) if config.command else "python -m hubert_plugin"

    return _SETTINGS.format(out=shlex.quote(str(out)), config=shlex.quote(str(folder / CONFIG_FILE)), command=command)


def _script(folder: Path, name: str, purpose: str, body: str, step: Step, training: Step | None) -> str:
    """Return a script.

    :param training: The last one before the step.
    """
    guard = "" if training is None else _GUARD.format(training=shlex.quote(training.key))

    head = _HEAD.format(purpose=purpose, name=name, logs=folder / "logs", folder=_source(folder), guard=guard)

    # The last step is the report, which is not until anything.
    until = "" if step.verb == "iterate" else f" --until {shlex.quote(step.key)}"

    return head + body.format(step=shlex.quote(step.key), until=until)


def _submit(folder: Path, jobs: list[tuple[str, str]]) -> str:
    lines = []

    for kind, name in jobs:
        script = f'"$FOLDER/{name}.sbatch"'

        match kind:
            case "array":
                lines.append(f'submit "${{ONE[@]}}" --array="0-$((NUM_SHARDS - 1))" {script}')
            case "many":
                lines.append(f'submit "${{MANY[@]}}" {script}')
            case _:
                lines.append(f'submit "${{ONE[@]}}" {script}')

    return _SUBMIT_HEAD.format(folder=_source(folder)) + "\n".join(lines) + "\n"


def _source(folder: Path) -> str:
    return _FOLDER.format(folder=shlex.quote(str(folder)))
