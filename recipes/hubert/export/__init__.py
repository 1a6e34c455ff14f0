"""Export a HuBERT to Hugging Face Transformers, torchaudio, fairseq or ONNX, and measure what arrives there."""
