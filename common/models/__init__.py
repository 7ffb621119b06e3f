"""Networks that no library has for Keras 3."""
