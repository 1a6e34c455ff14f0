"""Write features of a manifest to files (kaldi ark/scp or fairseq .npy/.len): MFCC, or any layer of any HuBERT."""
