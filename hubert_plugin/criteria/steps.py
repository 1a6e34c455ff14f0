"""What fairseq2's trainer and validator run on a batch: the criterion, and the metrics they publish."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, final, runtime_checkable

from fairseq2.metrics import MetricBag, Sum
from fairseq2.recipe import EvalUnit, TrainUnit
from fairseq2.trainer import Trainer
from torch import Tensor
from typing_extensions import override

from hubert_plugin.registry import Criterion

NO_TARGETS: Final = 1e-20
"""What a batch without anything to predict counts: more than nothing, and nothing beside one target in float32."""


@runtime_checkable
class FollowsSteps(Protocol):
    """A criterion that wants to know which update the next batches belong to."""

    def set_step_nr(self, step_nr: int) -> None: ...


@dataclass
class ProcessedBatch:
    """A batch of the current update."""

    batch: Any

    loss: Tensor
    """The summed loss, without gradient. *Shape:* ()."""


@final
class TrainStep(TrainUnit[Any]):
    """Applies a criterion to training batches."""

    def __init__(self, criterion: Criterion, read_wait_seconds: Callable[[], float]) -> None:
        """
        :param read_wait_seconds: Returns the time spent waiting for data since it was last called.
        """
        self._criterion = criterion
        self._read_wait_seconds = read_wait_seconds

        self._trainer: Trainer | None = None

        self._metric_bag: MetricBag | None = None

        self.step_nr = 0
        """The number of the current update."""

        self.current: Any = None
        """The batch that was taken up last."""

        self.processed: list[ProcessedBatch] = []
        """The batches of the current update whose loss is known."""

        self.count_skipped: Callable[[], int] | None = None
        """Returns the number of updates that were skipped since it was last called; set by who skips them."""

        self.share_of_peak: Callable[[float], float] | None = None
        """Returns which share of the devices' peak a throughput (seconds of audio a second, of all ranks) is."""

    def observe(self, trainer: Trainer) -> None:
        """Take the time of reading and computing, from which the throughput follows, from ``trainer``."""
        self._trainer = trainer

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._criterion.prepare_metric_bag(metric_bag)

    @override
    def set_step_nr(self, step_nr: int) -> None:
        self.step_nr = step_nr

        self.processed.clear()

        if isinstance(self._criterion, FollowsSteps):
            self._criterion.set_step_nr(step_nr)

    @override
    def process_batch(self, batch: Any, metric_bag: MetricBag) -> tuple[Tensor, int | None]:
        """Return the summed loss of ``batch`` and by what the trainer divides the gradients.

        fairseq2's trainer adds the numbers of targets of all ranks, but a rank that has none does not take part, so
        that the others wait for it for ever (`trainer.py`, ``if num_targets > 0``). So every rank has some. What is
        lost where there are none has no gradient: divided by next to nothing, it would have one without measure.
        """
        self.current, self._metric_bag = batch, metric_bag

        loss, num_targets = self._criterion(batch, metric_bag)

        self.processed.append(ProcessedBatch(batch, loss.detach()))

        if num_targets is None:
            return loss, None

        # On all ranks a float, as they add tensors of one type.
        if num_targets == 0:
            return 0.0 * loss, NO_TARGETS  # type: ignore[return-value]

        return loss, float(num_targets)  # type: ignore[return-value]

    def forget_nonfinite_metrics(self) -> None:
        """Let metrics that are not finite any more begin anew; else one bad batch would spoil a whole report."""
        metrics = {} if self._metric_bag is None else self._metric_bag.metrics

        for metric in metrics.values():
            state = metric.state_dict().values()

            if not all(bool(v.isfinite().all()) for v in state if isinstance(v, Tensor)):
                metric.reset()

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        self._criterion.process_metric_values(values)  # type: ignore[arg-type]

        if self.count_skipped is not None:
            num_skipped = self.count_skipped()

            values["num_skipped_updates"] = num_skipped

            if self._trainer is not None and 0 < num_skipped >= self._trainer._num_batches_read:
                self._drop_means(values)

        values["data_wait_seconds"] = self._read_wait_seconds()

        # Criteria of other packages need not count audio.
        if self._trainer is None or "audio_seconds" not in values:
            return

        # fairseq2 publishes these two itself, but only after this hook.
        busy = self._trainer._data_watch.get_elapsed_time() + self._trainer._compute_watch.get_elapsed_time()

        if busy > 0.0:
            throughput = float(str(values["audio_seconds"])) / busy

            values["audio_seconds_per_second"] = throughput

            if self.share_of_peak is not None:
                values["share_of_peak"] = self.share_of_peak(throughput)

    def _drop_means(self, values: MutableMapping[str, object]) -> None:
        """Leave out what tells of updates that were made, where none was; sums tell what was read."""
        metrics = {} if self._metric_bag is None else self._metric_bag.metrics

        for name, metric in metrics.items():
            if not isinstance(metric, Sum):
                values.pop(name, None)


@final
class EvalStep(EvalUnit[Any]):
    """Applies a criterion to validation batches and keeps the last values."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion = criterion

        self.last_values: dict[str, float] = {}
        """The values of the last validation, on rank 0."""

        self.current: Any = None
        """The batch that was taken up last; ``None`` outside of validation."""

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._criterion.prepare_metric_bag(metric_bag)

    @override
    def process_batch(self, batch: Any, metric_bag: MetricBag) -> None:
        self.current = batch

        self._criterion(batch, metric_bag)

    @override
    def finalize(self, metric_bag: MetricBag) -> None:
        self.current = None

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        self._criterion.process_metric_values(values)  # type: ignore[arg-type]

        for name, value in values.items():
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.item()

            if isinstance(value, (int, float)):
                self.last_values[name] = float(value)
