"""Reading the data of each task: what the user has, streamed from disk."""
