"""``python -m hubert_plugin.recipes.hubert.cluster OUT …``"""

from __future__ import annotations

from fairseq2.recipe.cli import main

from hubert_plugin.recipes.hubert.cluster.recipe import ClusterRecipe

if __name__ == "__main__":
    main(ClusterRecipe())
