"""Tokenizers in TensorFlow ops, so that they are served with the model."""
