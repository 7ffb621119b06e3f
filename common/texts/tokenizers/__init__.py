"""Tokenizers in TensorFlow ops, exported and served with the model."""
