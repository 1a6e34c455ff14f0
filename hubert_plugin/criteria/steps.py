"""What fairseq2's trainer and validator run on a batch: the criterion, and the metrics they publish."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, final

from fairseq2.metrics import MetricBag
from fairseq2.recipe import EvalUnit, TrainUnit
from fairseq2.trainer import Trainer
from torch import Tensor
from typing_extensions import override

from hubert_plugin.registry import Criterion


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

    def observe(self, trainer: Trainer) -> None:
        """Take the time of reading and computing, from which the throughput follows, from ``trainer``."""
        self._trainer = trainer

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._criterion.prepare_metric_bag(metric_bag)

    @override
    def process_batch(self, batch: Any, metric_bag: MetricBag) -> tuple[Tensor, int | None]:
        return self._criterion(batch, metric_bag)

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        self._criterion.process_metric_values(values)  # type: ignore[arg-type]

        values["data_wait_seconds"] = self._read_wait_seconds()

        # Criteria of other packages need not count audio.
        if self._trainer is None or "audio_seconds" not in values:
            return

        # fairseq2 publishes these two itself, but only after this hook.
        busy = self._trainer._data_watch.get_elapsed_time() + self._trainer._compute_watch.get_elapsed_time()

        if busy > 0.0:
            values["audio_seconds_per_second"] = float(str(values["audio_seconds"])) / busy


@final
class EvalStep(EvalUnit[Any]):
    """Applies a criterion to validation batches and keeps the last values."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion = criterion

        self.last_values: dict[str, float] = {}
        """The values of the last validation, on rank 0."""

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._criterion.prepare_metric_bag(metric_bag)

    @override
    def process_batch(self, batch: Any, metric_bag: MetricBag) -> None:
        self._criterion(batch, metric_bag)

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        self._criterion.process_metric_values(values)  # type: ignore[arg-type]

        for name, value in values.items():
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.item()

            if isinstance(value, (int, float)):
                self.last_values[name] = float(value)
