"""``python -m hubert_plugin.recipes.hubert.iterate OUT …``"""

from __future__ import annotations

from hubert_plugin.cli import run_command

if __name__ == "__main__":
    run_command(__package__, "command:iterate")
