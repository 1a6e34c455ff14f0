"""Any HuBERT out: to Hugging Face Transformers, torchaudio, fairseq and ONNX, each export measured where it arrives."""

from __future__ import annotations

from hubert_plugin.models.export.api import EXPORT_FORMATS as EXPORT_FORMATS
from hubert_plugin.models.export.api import ExportReport as ExportReport
from hubert_plugin.models.export.api import export_hubert as export_hubert

__all__ = ["EXPORT_FORMATS", "ExportReport", "export_hubert"]
