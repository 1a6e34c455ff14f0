"""Runs fairseq2's trainer, turns what a user can mend into sentences, and ends with the report."""

from __future__ import annotations

from typing import Protocol, final

from fairseq2.checkpoint.manager import CheckpointError as RestoreError
from fairseq2.checkpoint.manager import CheckpointStateNotValidError
from fairseq2.error import InternalError, OperationalError
from fairseq2.gang import Gangs
from fairseq2.recipe.config import TrainerSection
from fairseq2.recipe.error import MinimumLossScaleReachedError
from fairseq2.task import Task, TaskStopException
from fairseq2.trainer import Trainer
from torch.cuda import OutOfMemoryError
from typing_extensions import override

from hubert_plugin import frames
from hubert_plugin.criteria.steps import EvalStep, TrainStep
from hubert_plugin.data.batch import SpeechBatch
from hubert_plugin.errors import CheckpointError, HubertError, StorageError, TrainingError
from hubert_plugin.files import is_torch_write_error
from hubert_plugin.tasks.batching import BatchingTaskConfig


class Report(Protocol):
    """Tells what a finished run has learned; called on rank 0."""

    def __call__(self) -> None: ...


class DescribeMemoryError(Protocol):
    """Says what did not fit into the memory of the device, and what to lower."""

    def __call__(self) -> str: ...


class DescribeMissingScore(Protocol):
    """Says why a validation has no value of ``regime.score_metric``."""

    def __call__(self) -> str: ...


@final
class TrainingTask(Task):
    """A training run from start, or from its last checkpoint, to its report."""

    def __init__(
        self,
        trainer: Trainer,
        gangs: Gangs,
        report: Report | None,
        describe_memory_error: DescribeMemoryError | None = None,
        describe_missing_score: DescribeMissingScore | None = None,
    ) -> None:
        self._trainer = trainer
        self._report = report
        self._describe_missing_score = describe_missing_score
        self._describe_memory_error = describe_memory_error
        self._stop_requested = False

        # Asked now: the trainer closes the gangs when it is done.
        self._is_first = gangs.root.rank == 0

    @override
    def run(self) -> None:
        try:
            self._trainer.run()
        except TaskStopException:
            # The trainer ends an early stop like one that was asked for; but this one is the end of the run.
            if self._stop_requested:
                raise
        except MinimumLossScaleReachedError as ex:
            raise TrainingError(
                f"Training has stopped at step {ex.step_nr}: gradients overflow float16 even at the smallest loss "
                "scale. Go on from the last checkpoint with a lower `optimizer.config.lr`, or in bfloat16 "
                "(`trainer.mixed_precision.dtype=bfloat16`)."
            ) from ex
        except RestoreError as ex:
            raise CheckpointError(describe_restore_error(ex)) from ex
        except InternalError as ex:
            if self._describe_missing_score is None or "None of the evaluation units" not in str(ex):
                raise

            raise TrainingError(self._describe_missing_score()) from ex
        except (
            OSError,
            OperationalError,
            RuntimeError,
            # What fairseq2 makes of a write that PyTorch gave up.
            CheckpointStateNotValidError,
        ) as ex:
            if self._describe_memory_error is not None and is_memory_error(ex):
                raise TrainingError(self._describe_memory_error()) from ex

            error = find_storage_error(ex)
            if error is None:
                raise

            raise error from ex

        if self._report is not None and self._is_first:
            self._report()

    @override
    def request_stop(self) -> None:
        self._stop_requested = True

        self._trainer.request_stop()

    @override
    def close(self) -> None:
        self._trainer.close()

    @property
    @override
    def step_nr(self) -> int:
        return self._trainer.step_nr


def describe_memory_error(
    train_step: TrainStep, eval_step: EvalStep, task_config: object, section: TrainerSection
) -> str:
    """Say which batch did not fit into the memory of the device, and what to lower."""
    validating = eval_step.current is not None

    batch = eval_step.current if validating else train_step.current

    when = f"validation after step {train_step.step_nr}" if validating else f"step {train_step.step_nr}"

    text = f"The memory of the device was not enough in {when}"

    if isinstance(batch, SpeechBatch):
        num_rows, width = batch.waveforms.shape

        text += (
            f", for a batch of {num_rows} x {frames.seconds(width):.4g} s of audio (bucket of "
            f"{frames.num_frames(width)} frames, {frames.seconds(num_rows * width):.4g} s in all)"
        )

    remedies = []

    if isinstance(task_config, BatchingTaskConfig):
        key, seconds = "batching.batch_seconds", task_config.batching.batch_seconds

        if validating and task_config.valid_batch_seconds is not None:
            key, seconds = "valid_batch_seconds", task_config.valid_batch_seconds

        longest = task_config.batching.max_seconds

        if task_config.global_batch_seconds is not None and not validating:
            why = "accumulation grows, and the batch of an update stays"
        else:
            why = f"at least {longest:g}, the longest utterance"

        if seconds > longest:
            remedies.append(f"lower `task.config.{key}`, now {seconds:.4g}, to {max(seconds / 2, longest):.4g} ({why})")

        remedies.append(f"lower `task.config.batching.max_seconds`, now {longest:g}")

    if section.activation_checkpointing.mode == "off" and not validating:
        remedies.append("set `trainer.activation_checkpointing.mode=layerwise`")

    if section.data_parallelism != "fsdp":
        remedies.append("shard the model over several devices with `trainer.data_parallelism=fsdp`")

    return f"{text}. One of these helps: {'; '.join(remedies)}. The last checkpoint is untouched."


def describe_missing_score(eval_step: EvalStep, metric: str | None) -> str:
    """Say why the validation that has just ended has no value of ``metric`` (``regime.score_metric``)."""
    num_examples = eval_step.last_values.get("num_examples", 0.0)

    if num_examples == 0:
        return (
            "There was nothing to validate on: none of the audio of the validation split could be read "
            "(`dataset.on_bad_audio=skip` left it out). Mend the files, or choose another `dataset.valid_split`."
        )

    return (
        f"Validation has no value of '{metric}' (`regime.score_metric`): of {num_examples:g} utterances that were read "
        "none has anything that it counts, such as masked frames (`task.config.mask`) or text. Choose another "
        "`dataset.valid_split`, or another `regime.score_metric`; null is none."
    )


def is_memory_error(ex: BaseException) -> bool:
    """Return whether PyTorch found too little memory. On CPUs it has no class for that, but says so."""
    if isinstance(ex, OutOfMemoryError):
        return True

    return isinstance(ex, RuntimeError) and ("can't allocate memory" in str(ex) or "bad_alloc" in str(ex))


def describe_restore_error(ex: BaseException) -> str:
    """Say that a checkpoint, though whole, is not of the run that is to go on from it."""
    reason = str(ex.__cause__ or ex).strip().splitlines()[0].rstrip(".")

    return (
        f"The run cannot go on from its last checkpoint: {str(ex).rstrip('.')} ({reason}). Was the run begun with "
        "other options, of the optimizer for example? Run the command that began it, or choose another folder."
    )


def find_storage_error(ex: BaseException) -> HubertError | None:
    """Return the sentence for an error that comes from a file system that refused to write; ``None`` for others."""
    cause: BaseException | None = ex

    while cause is not None:
        if isinstance(cause, HubertError):
            return cause

        # The system's reason is behind what PyTorch's writer says.
        if isinstance(cause, RuntimeError) and isinstance(cause.__context__, OSError):
            cause = cause.__context__

        is_torch_writer = isinstance(cause, RuntimeError) and is_torch_write_error(cause)

        if isinstance(cause, OSError) or is_torch_writer:
            reason = getattr(cause, "strerror", None) or "the file system took only a part of it (is it full?)"

            where = f" '{cause.filename}'" if isinstance(cause, OSError) and cause.filename else ""

            return StorageError(
                f"A file{where} of the run could not be written: {reason}. The last complete checkpoint is untouched; "
                "free space, then run the same command again to go on from it."
            )

        cause = cause.__cause__ or cause.__context__

    return None
