"""The wing of classes: metrics, calibration, export, report."""
