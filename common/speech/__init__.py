"""The wing of speech: readers, data sets, batches, sources, inference, export."""
