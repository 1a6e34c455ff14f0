"""HuBERT: from audio to units, masked prediction and back."""
