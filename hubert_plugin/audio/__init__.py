"""Bytes to waveforms: files and archive slices, sample-rate policy, normalisation. Imports torch only to resample."""

from __future__ import annotations

from hubert_plugin.audio.archives import iter_archive_members as iter_archive_members
from hubert_plugin.audio.policy import AudioPolicy as AudioPolicy
from hubert_plugin.audio.waveform import AudioInfo as AudioInfo
from hubert_plugin.audio.waveform import normalize_waveform as normalize_waveform
from hubert_plugin.audio.waveform import probe_audio as probe_audio
from hubert_plugin.audio.waveform import read_waveform as read_waveform
