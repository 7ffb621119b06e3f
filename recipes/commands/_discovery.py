"""Find the recipes and read their Config, without slow imports."""

from __future__ import annotations

import ast
import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from common.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """One folder with a recipe.py; its docstring is read from the source, nothing is executed."""

    name: str
    file: Path

    def docstring(self) -> str:
        """The docstring of recipe.py, or a note in parentheses on why there is none."""
        try:
            tree = ast.parse(self.file.read_bytes())
        except (SyntaxError, ValueError, OSError) as problem:
            # One broken recipe must not hide the others.
            return f"(recipe.py cannot be read: {problem})"
        return ast.get_docstring(tree) or "(no description)"

    def defines_function(self, function: str) -> bool:
        """Whether recipe.py has a top-level function of that name."""
        statements = ast.parse(self.file.read_bytes()).body
        return any(isinstance(node, ast.FunctionDef) and node.name == function for node in statements)

    def literal(self, name: str, default=None):
        """Return the literal that recipe.py assigns to a name at its top level: a string, a tuple, a dict ..."""
        for node in ast.parse(self.file.read_bytes()).body:
            if isinstance(node, ast.Assign) and name in _names_bound_by(node):
                return ast.literal_eval(node.value)
        return default


def find_recipes(root: Path) -> list[Recipe]:
    """All folders under `root` that hold a recipe.py, by name."""
    files = sorted(root.glob("*/recipe.py"))
    return [Recipe(file.parent.name, file) for file in files if not file.parent.name.startswith((".", "_"))]


def find_recipe(root: Path, name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none; the message names the closest one and all others.
    """
    recipes = {recipe.name: recipe for recipe in find_recipes(root)}
    if name in recipes:
        return recipes[name]
    raise UserError(
        f"there is no recipe {name!r}."
        + did_you_mean(name, recipes)
        + f" Recipes: {', '.join(recipes) or f'none in {root}'}. Type: python -m recipes list"
    )


def named_recipe(command: str, arguments: list[str], root: Path) -> tuple[Recipe, list[str]]:
    """Return the recipe that the first argument names, and the arguments after it.

    Raises:
        UserError: no recipe is named, or one that does not exist.
    """
    if not arguments or arguments[0].startswith("-"):
        names = ", ".join(recipe.name for recipe in find_recipes(root))
        raise UserError(f"{command} needs the name of a recipe first: {names or 'there is none'}.")
    return find_recipe(root, arguments[0]), arguments[1:]


def asks_for_help(arguments: list[str], about: str, typed: str) -> bool:
    """Print the help of a command where its first argument is -h or --help, and return whether it is."""
    if arguments[:1] not in (["-h"], ["--help"]):
        return False
    print(f"usage: python -m recipes {typed}\n\n{about}")
    return True


def recipe_of_run(root: Path, run: Path, export: Path | None = None) -> Recipe:
    """The recipe that made a run, by its metrics.json; without one, by the name of its export.

    A recipe that replaces another one declares it: REPLACES = {"recipe": NAME, SETTING: VALUE}.

    Raises:
        UserError: the recipe does not exist here.
    """
    known = {}
    for file in ("config.json", "metrics.json"):
        with contextlib.suppress(OSError, ValueError):
            content = json.loads((run / file).read_text("utf-8"))
            known |= content if file == "config.json" else {"recipe": content.get("recipe")}
    name = known.get("recipe") or (export.parent.name if export else "")
    known["recipe"] = name
    for recipe in find_recipes(root):
        replaced = recipe.literal("REPLACES", {})
        if replaced and replaced.items() <= known.items():
            return recipe
    if not name:
        raise UserError(f"The recipe of {run} is unknown: it has no metrics.json. Let the run finish first.")
    return find_recipe(root, name)


def config_class(recipe_file: Path) -> type:
    """The Config class of a recipe, obtained without importing the recipe; see `load_only`.

    Returns:
        A class equal to the recipe's own Config, but not the same object: pass the recipe its own.

    Raises:
        UserError: recipe.py cannot be parsed or has no class Config.
    """
    return load_only(recipe_file, "Config", "a frozen dataclass").Config


def load_only(recipe_file: Path, name: str, needed: str = "") -> ModuleType:
    """Execute only the part of a recipe.py that one of its top-level names needs.

    Importing recipe.py imports TensorFlow, which takes seconds, and a wrong flag must be reported in milliseconds.
    So recipe.py is parsed, and only the name is executed, with the top-level imports, constants and helper functions
    that it uses. Those of Config must not import TensorFlow.

    Line numbers are kept, and the module is in `sys.modules` with recipe.py as its `__file__`: tyro reads the help
    of flags with `inspect.getsource`, which finds the source that way.

    Args:
        recipe_file: path of a recipe.py.
        name: of a class, a function or a constant.
        needed: description of the name, for the error.

    Returns:
        A module with the name in it.

    Raises:
        UserError: recipe.py cannot be parsed, or does not define the name.
    """
    try:
        tree = ast.parse(recipe_file.read_bytes(), filename=str(recipe_file))
    except SyntaxError as problem:
        raise UserError(f"{recipe_file} is not valid Python: {problem}. Correct it first.") from problem
    defining = [node for node in tree.body if not _is_import(node) and name in _names_bound_by(node)]
    if not defining:
        kind = "class " if name == "Config" else ""
        raise UserError(f"{recipe_file} has no {kind}{name}. A recipe needs {needed or 'a definition'} of that name.")

    used, waiting = {name, "annotations"}, defining
    while waiting:
        loaded = {node.id for node in ast.walk(waiting.pop()) if _reads_a_name(node)} - used
        used |= loaded
        waiting += [node for node in tree.body if not _is_import(node) and loaded & _names_bound_by(node)]

    kept = []
    for node in tree.body:
        if _is_import(node):
            # `from common import specs, training` must not import `training` when only `specs` is used.
            node.names = [alias for alias in node.names if _name_bound_by(alias) in used]
            if node.names:
                kept.append(node)
        elif _names_bound_by(node) & used:
            kept.append(node)

    module = ModuleType(f"_{name}_of_{recipe_file.parent.name}", ast.get_docstring(tree))
    module.__file__ = str(recipe_file)
    sys.modules[module.__name__] = module
    code = compile(ast.Module(body=kept, type_ignores=[]), str(recipe_file), "exec", dont_inherit=True)
    exec(code, module.__dict__)  # the same lines of the recipe that `import` would execute
    return module


def _reads_a_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _name_bound_by(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


def _names_bound_by(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return set()
