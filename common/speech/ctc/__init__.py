"""CTC: characters, decoding, language models."""
