"""A split of a corpus with transcripts, as the task ``hubert_ctc`` opened it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.data.ctc_text import SplitTexts
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.data.plan import BatchConfig
from hubert_plugin.data.transcripts import Transcripts
from hubert_plugin.tasks.ctc_left_out import LeftOut


@dataclass
class CtcSplit:
    """Audio, transcripts, and what of them takes part."""

    manifest: Manifest

    transcripts: Transcripts

    candidates: NDArray[np.int64]
    """The positions that take part if their transcripts can be used."""

    left_out: LeftOut
    """How many do not."""

    batching: BatchConfig

    texts: SplitTexts | None = None

    @property
    def minutes(self) -> float:
        """The minutes of audio that take part."""
        assert self.texts is not None

        return frames.seconds(int(self.manifest.sizes[self.texts.usable].sum())) / 60
