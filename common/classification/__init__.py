"""Classification: metrics, calibration, export, report."""
