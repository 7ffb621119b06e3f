"""Find the recipes and read their Config, without importing what makes a recipe slow to import."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from common.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """One folder with a recipe.py; its docstring is read from the text, nothing is executed."""

    name: str
    file: Path

    def docstring(self) -> str:
        """The docstring of recipe.py, or a remark in parentheses that says why there is none."""
        try:
            tree = ast.parse(self.file.read_bytes())
        except (SyntaxError, ValueError, OSError) as problem:
            # One broken recipe must not take the list of the others away.
            return f"(recipe.py cannot be read: {problem})"
        return ast.get_docstring(tree) or "(no description)"

    def defines_function(self, function: str) -> bool:
        """Whether recipe.py has a top-level function of that name."""
        statements = ast.parse(self.file.read_bytes()).body
        return any(isinstance(node, ast.FunctionDef) and node.name == function for node in statements)


def find_recipes(root: Path) -> list[Recipe]:
    """All folders under `root` that hold a recipe.py, by name."""
    files = sorted(root.glob("*/recipe.py"))
    return [Recipe(file.parent.name, file) for file in files if not file.parent.name.startswith((".", "_"))]


def find_recipe(root: Path, name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none; the message names the nearest one and all the others.
    """
    recipes = {recipe.name: recipe for recipe in find_recipes(root)}
    if name in recipes:
        return recipes[name]
    raise UserError(
        f"there is no recipe {name!r}."
        + did_you_mean(name, recipes)
        + f" Recipes: {', '.join(recipes) or f'none in {root}'}. Type: python -m recipes list"
    )


def config_class(recipe_file: Path) -> type:
    """The Config class of a recipe, obtained without importing the recipe.

    Why: importing recipe.py imports TensorFlow, which takes seconds, and a wrong flag must be answered in
    milliseconds. So recipe.py is parsed, and only Config is executed, with the top-level imports,
    constants and helper functions that it really uses. A recipe promises that these are TensorFlow-free.

    The lines keep their numbers, and the module they run in stands in `sys.modules` with recipe.py as its
    `__file__`: tyro reads a flag's help by `inspect.getsource`, which finds the text that way.

    Args:
        recipe_file: path of a recipe.py.

    Returns:
        A class equal to the recipe's own Config, but not the same object: give the recipe its own.

    Raises:
        UserError: recipe.py cannot be parsed or has no class Config.
    """
    try:
        tree = ast.parse(recipe_file.read_bytes(), filename=str(recipe_file))
    except SyntaxError as problem:
        raise UserError(f"{recipe_file} is not valid Python: {problem}. Correct it first.") from problem
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if "Config" not in classes:
        raise UserError(f"{recipe_file} has no class Config. A recipe needs a frozen dataclass of that name.")

    used, waiting = {"Config", "annotations"}, [classes["Config"]]
    while waiting:
        loaded = {node.id for node in ast.walk(waiting.pop()) if _reads_a_name(node)} - used
        used |= loaded
        waiting += [node for node in tree.body if not _is_import(node) and loaded & _names_bound_by(node)]

    kept = []
    for node in tree.body:
        if _is_import(node):
            # `from common import specs, training` must not bring `training` when only `specs` is used.
            node.names = [alias for alias in node.names if _name_bound_by(alias) in used]
            if node.names:
                kept.append(node)
        elif _names_bound_by(node) & used:
            kept.append(node)

    module = ModuleType(f"_config_of_{recipe_file.parent.name}", ast.get_docstring(tree))
    module.__file__ = str(recipe_file)
    sys.modules[module.__name__] = module
    code = compile(ast.Module(body=kept, type_ignores=[]), str(recipe_file), "exec", dont_inherit=True)
    exec(code, module.__dict__)  # our own recipe's lines, the same that `import` would execute
    return module.Config


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
