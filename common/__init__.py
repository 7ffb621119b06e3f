"""Code that recipes share: sources, freezing, training, evaluation, exporting, serving and data."""
