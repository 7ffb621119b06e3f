"""Boxes as people have them, as rows."""
