"""The wing of boxes: readers, data sets, detectors, metrics, export, report."""
