"""Sources: one spec string, parsed, fetched, cached."""
