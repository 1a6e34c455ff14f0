from __future__ import annotations

from hubert_plugin.cli import run_recipe

run_recipe(__package__, "recipe:ManifestRecipe")
