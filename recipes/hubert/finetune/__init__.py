"""Fine-tune a HuBERT for recognition with CTC; without a config, on 10 minutes of the embedded corpus."""
