"""The proof that an export answers as it was evaluated."""
