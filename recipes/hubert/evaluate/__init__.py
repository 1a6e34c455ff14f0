"""Compare transcripts with what was said: WER, CER, confidence intervals, confusions."""
