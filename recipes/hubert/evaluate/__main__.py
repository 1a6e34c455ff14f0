"""``python -m hubert_plugin.recipes.hubert.evaluate OUT …``"""

from __future__ import annotations

from hubert_plugin.cli import run_recipe

if __name__ == "__main__":
    run_recipe(__package__, "recipe:EvaluateRecipe")
