"""The files that asset cards name, where they are on this machine already.

fairseq2 0.8 makes an address of a path, in which blanks, umlauts and signs such as ``#`` are quoted (``%20``), and then
takes the quoted text for the path.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from fairseq2.assets import AssetCard
from fairseq2.utils.uri import Uri


def get_local_path(uri: Uri) -> Path:
    """Return the path that an address with the scheme ``file`` stands for."""
    quoted = uri.to_path()

    path = Path(unquote(str(quoted), errors="surrogateescape"))

    # Whoever writes `file://` may not quote, and have a file with a `%20` in its name.
    return quoted if quoted.exists() and not path.exists() else path


def with_plain_path(card: AssetCard, field_name: str) -> AssetCard:
    """Return ``card``; if a field names a file of this machine, as fairseq2 will find it: absolute, nothing quoted."""
    field = card.maybe_get_field(field_name)

    if field is None or (uri := field.as_uri()).scheme != "file":
        return card

    return AssetCard(card.name, {field_name: f"file://{get_local_path(uri)}"}, base=card)
