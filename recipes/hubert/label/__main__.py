"""``python -m hubert_plugin.recipes.hubert.label OUT …``"""

from __future__ import annotations

from fairseq2.recipe.cli import main

from hubert_plugin.recipes.hubert.label.recipe import LabelRecipe

if __name__ == "__main__":
    main(LabelRecipe())
