"""Transcribe audio with a fine-tuned HuBERT: greedily, or by beam search with a language model."""
