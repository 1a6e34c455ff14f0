"""The recipes, one folder per group; installed as ``hubert_plugin.recipes``."""
