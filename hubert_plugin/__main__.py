"""``python -m hubert_plugin`` is the ``fairseq2`` command."""

from __future__ import annotations

import sys

from hubert_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())
