"""Readers of bounding boxes: every supported layout as rows."""
