"""The files written beside an export: requests, clients, deployment files."""
