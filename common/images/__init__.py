"""Images: readers, data sets, batches, sources, features, export."""
