"""The command line of the recipes: `python -m recipes COMMAND`; each file in `commands/` is a command."""

from __future__ import annotations

import ast
import gc
import importlib
import os
import sys
from pathlib import Path

from common.errors import UserError, nearest
from recipes.commands._discovery import find_recipes
from recipes.commands._execution import complain

RECIPES = Path(__file__).resolve().parent
COMMANDS = tuple(sorted(file.stem for file in RECIPES.glob("commands/[a-z]*.py")))
HELP_FLAGS = ("-h", "--help")
LISTINGS = ("list", "show", "sources", "compare", "doctor")  # commands that only print


def main(arguments: list[str] | None = None, root: Path = RECIPES) -> int:
    """Run one command.

    Args:
        arguments: what follows `python -m recipes`; None reads the command line.
        root: the folder that holds the recipe folders.

    Returns:
        The exit code: 0 success, 1 a failure (of the proof, a file), 2 an error to be fixed by the user,
        130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # TensorFlow reads these once, at import. Values that are already set are kept.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # native errors reach Python as exceptions
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # TensorFlow leaves it off on CPUs without AVX-512: slower
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        return _dispatch(arguments, root)
    except UserError as problem:
        complain(problem)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if arguments[0] not in LISTINGS and not set(HELP_FLAGS) & set(arguments):
            raise
        # `show NAME | head` has read enough; Python would raise again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: list[str], root: Path) -> int:
    command, *rest = arguments or [""]
    if command in HELP_FLAGS:
        print(usage())
        return 0
    if command not in COMMANDS:
        print(usage(), file=sys.stderr)
        if command:
            suggestion = nearest(command, COMMANDS)
            recipe = nearest(command, [recipe.name for recipe in find_recipes(root)])
            suggestion = suggestion or (recipe and f"run {recipe}")
            ending = f" Did you mean: python -m recipes {suggestion}" if suggestion else ""
            complain(f"there is no command {command!r}.{ending}")
        return 2
    return importlib.import_module(f"recipes.commands.{command}").main(rest, root)


def usage() -> str:
    """Return one line per command: its usage and the first line of its docstring, without importing it."""
    lines = []
    for command in COMMANDS:
        tree = ast.parse((RECIPES / "commands" / f"{command}.py").read_bytes())
        takes = [
            node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "TAKES"
        ]
        about = ast.get_docstring(tree).splitlines()[0]
        lines.append(f"    python -m recipes {f'{command} {takes[0] if takes else str()}':28}{about}")
    return "\n".join(["The recipes: `python -m recipes COMMAND`", "", *lines])


if __name__ == "__main__":
    code = main()
    gc.freeze()  # else Python looks for garbage in all of TensorFlow before it ends: one to two seconds
    sys.exit(code)
