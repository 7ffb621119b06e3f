"""The wing of images: readers, data sets, batches, sources, features, export."""
