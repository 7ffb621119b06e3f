"""What is written beside an export: requests, clients, deployment files."""
