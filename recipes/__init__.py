"""The recipes: a folder with a recipe.py is one scenario; `python -m recipes` is their command line."""
