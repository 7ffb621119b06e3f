"""Audio: decoded, resampled, played, in NumPy and in the graph."""
