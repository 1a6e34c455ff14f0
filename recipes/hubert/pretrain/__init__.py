"""Train a HuBERT to predict the units of masked frames; without a config, on the embedded corpus."""
