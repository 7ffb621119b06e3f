"""The code of the fresh process of a proof: it imports tensorflow and nothing of this project."""
