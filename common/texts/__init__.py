"""The wing of texts: readers, data sets, batches, sources, export."""
