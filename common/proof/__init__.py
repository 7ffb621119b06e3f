"""The proof that an export reproduces its evaluation."""
