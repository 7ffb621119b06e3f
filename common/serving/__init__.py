"""Serve exports: a local stand-in for TensorFlow Serving, and the files for the real one."""
