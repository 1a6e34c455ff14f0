"""From scores of frames to words, and how wrong they are: greedy and beam search, language models, error rates."""
