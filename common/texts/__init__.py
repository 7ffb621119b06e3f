"""The wing for texts: readers, data sets, batches, sources, export."""
