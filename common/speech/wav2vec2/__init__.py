"""wav2vec 2.0 in Keras (arXiv:2006.11477)."""
