"""README.md keeps its word: every command runs, every link leads somewhere, every table is as the machine wrote it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.__main__ import COMMANDS, RECIPES, main
from recipes.commands._discovery import config_class, find_recipes

ROOT = RECIPES.parent
README = ROOT / "README.md"
PAGES = [
    *sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("recipes/*/README.md")), *sorted(ROOT.glob("common/**/README.md")),
]  # fmt: skip
RECIPE_PAGES = [recipe.file.with_name("README.md") for recipe in find_recipes(RECIPES)]


@dataclass(frozen=True)
class Typed:
    """What is typed here for a line of README.md, and what has to be printed then.

    Attributes:
        line: with {url} and {grpc} for the addresses of the server that `serve` started.
        shows: a regular expression.
        slow: whether only the slow test types it.
    """

    line: str
    shows: str
    slow: bool = False


TINY = "'keras:MobileNet(alpha=0.25,size=32)@random'"
RUN_MINE = "python -m recipes run image_classification --data folder:PHOTOS --source keras:ResNet50 --out runs/mine"
TYPED = {
    "python -m recipes run image_classification --out runs/demo": Typed(
        "python -m recipes run image_classification --out runs/demo --limit 40 --epochs 1",
        "Proved: ", slow=True,
    ),
    "python -m recipes list": Typed("python -m recipes list", "image_classification  +Classify images"),
    "python -m recipes show image_classification": Typed(
        "python -m recipes show image_classification", r"(?s)--source.*Measured results.*accuracy 0\.\d+"
    ),
    "python -m recipes check image_classification --data folder:PHOTOS --source keras:ResNet50 --out runs/look": Typed(
        f"python -m recipes check image_classification --data folder:photos --source {TINY} --out runs/look",
        r"(?s)bright.*estimate: ",
    ),
    RUN_MINE: Typed(
        f"python -m recipes run image_classification --data folder:photos --source {TINY} --out runs/mine "
        "--unfreeze frozen --baselines none",
        "Proved: ",
    ),
    "python -m recipes predict runs/mine NEW_PHOTO.jpg": Typed(
        "python -m recipes predict runs/mine new_photo.jpg", r"new_photo\.jpg  (bright|dark)  [01]\.\d+"
    ),
    "python -m recipes run image_classification --resume runs/mine": Typed(
        "python -m recipes run image_classification --resume runs/stopped", "Proved: ", slow=True
    ),
    "python -m recipes compare runs/mine runs/other": Typed(
        "python -m recipes compare runs/mine runs/other", r"(?s)accuracy +\d\.\d+.*different settings\nseed"
    ),
    "python -m recipes fetch SOURCE": Typed(
        "python -m recipes fetch bundled:resnet_mini", "Without network: --source 'bundled:resnet_mini'"
    ),
    "python -m recipes doctor": Typed("python -m recipes doctor", r"(?s)tensorflow 2\.\d+.*network", slow=True),
    "python -m recipes serve runs/mine": Typed(
        "python -m recipes serve runs/mine --port 0 --grpc-port 0", r"/v1/models/image_classification:predict"
    ),
    "curl -d @runs/mine/serving/request.json http://127.0.0.1:8501/v1/models/image_classification:predict": Typed(
        "curl -sS -d @runs/mine/serving/request.json {url}/v1/models/image_classification:predict", '"probabilities"'
    ),
    "python runs/mine/serving/client.py PHOTO.jpg": Typed(
        "python runs/mine/serving/client.py --url {url} new_photo.jpg", r"new_photo\.jpg.*(bright|dark)"
    ),
    "python runs/mine/serving/grpc_client.py PHOTO.jpg": Typed(
        "python runs/mine/serving/grpc_client.py --address {grpc} new_photo.jpg", r"new_photo\.jpg.*(bright|dark)"
    ),
}  # fmt: skip
NOT_TYPED = {
    "make demo": "installs; what it runs is README's line without make, see below",
    "make test": "runs this very file; what it runs is README's line without make, see below",
    "pip install -r requirements.txt": "installs what this test runs on",
    'python -m pytest -n 2 --dist loadfile -m "not slow and not network and not release" --durations 40': (
        "runs this very file"
    ),
}


def commands(page: Path) -> list[str]:
    """Return the lines of the code blocks of a page that are typed in a shell, without their remarks."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    return [command for line in lines if (command := re.sub(r"\s+#.*", "", line).strip())]


# ---------------------------------------------------------------------------------------------------------------------
# commands


def test_every_command_of_the_readme_is_known_here_and_no_other():
    assert sorted(commands(README)) == sorted([*TYPED, *NOT_TYPED])


def test_what_is_typed_here_is_what_the_readme_says():
    """The same command with the same flags: only placeholders, addresses and what makes it small may differ."""
    for line, typed in TYPED.items():
        words, ours = shlex.split(line), shlex.split(typed.line)
        same = 4 if words[:4] == ["python", "-m", "recipes", "run"] else 2
        assert ours[:same] == words[:same] or words[0] == "curl" == ours[0]
        assert {word for word in words if word.startswith("-")} <= set(ours), line


def test_the_way_without_make_is_what_make_does():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in ("demo", "test"):
        recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
        runs = [line.strip().replace("$(RUN)", "python") for line in recipe.splitlines() if "\t$(RUN)" in line]
        assert runs and set(runs) <= set(commands(README)), target


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Iterator[Path]:
    """A current directory with photos in class folders, and in runs/mine what README's command on them wrote."""
    folder, rng = tmp_path_factory.mktemp("there"), np.random.default_rng(0)
    for name, level in (("dark", 60), ("bright", 190)):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(14):
            pixels = np.clip(rng.normal(level, 30, (24, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.jpg")
    shutil.copy(folder / "photos" / "bright" / "0.jpg", folder / "new_photo.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        printed = answer_to(TYPED[RUN_MINE].line)
        assert re.search(TYPED[RUN_MINE].shows, printed), printed
        settings = json.loads(Path("runs/mine/config.json").read_text("utf-8"))
        for name, changed in (("other", {"seed": 1}), ("stopped", {})):
            shutil.copytree("runs/mine", f"runs/{name}")
            Path(f"runs/{name}/config.json").write_text(json.dumps(settings | changed), "utf-8")
        Path("runs/stopped/metrics.json").unlink()  # which is written last: killed just before
        yield folder


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_commands(there: Path, slow: bool):
    with contextlib.ExitStack() as servers:
        addresses: dict[str, str] = {}
        for line in commands(README):
            typed = TYPED.get(line)
            if typed is None or typed.slow != slow or line == RUN_MINE:
                continue
            if line.startswith("python -m recipes serve"):
                printed, addresses = servers.enter_context(serving(typed.line))
            else:
                printed = answer_to(typed.line.format(**addresses))
            assert re.search(typed.shows, printed), f"{line}\n{printed}"


def answer_to(line: str) -> str:
    """Type a line in the current directory; return what it prints. It must end well."""
    words = shlex.split(line)
    if words[:3] == ["python", "-m", "recipes"]:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = main(words[3:])
        assert code == 0, f"{line}: exit code {code}\n{printed.getvalue()}"
        return printed.getvalue()
    command = [sys.executable, *words[1:]] if words[0] == "python" else words
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, f"{line}: exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@contextlib.contextmanager
def serving(line: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Type a line that serves; yield what it prints and its addresses, and stop it with Ctrl-C."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *shlex.split(line)[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            printed = ""
            while "metrics" not in printed:
                told = server.stdout.readline()
                assert told, f"{line} ended:\n{printed}"
                printed += told
            url = re.search(r"http://[\d.:]+", printed)[0]
            yield printed, {"url": url, "grpc": re.search(r"gRPC +([\d.]+:\d+)", printed)[1]}
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=60)


# ---------------------------------------------------------------------------------------------------------------------
# pages


def test_the_readme_is_short():
    assert len(README.read_text("utf-8").splitlines()) <= 160


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_of_the_repository(page: Path):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists() and file.is_relative_to(ROOT), target
        headings = re.findall(r"^#+ (.*)", file.read_text("utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor[1:] in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]


def test_every_recipe_has_a_page_and_the_readme_leads_to_it():
    for page in RECIPE_PAGES:
        assert f"]({page.relative_to(ROOT)})" in README.read_text("utf-8"), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_pages_exist_with_their_flags(page: Path):
    recipes = {recipe.name: recipe for recipe in find_recipes(RECIPES)}
    for line in commands(page):
        words = line.split()
        if words[:3] != ["python", "-m", "recipes"]:
            continue
        assert words[3] in COMMANDS, line
        if words[3] in ("run", "check", "show"):
            flags = flags_of(recipes[words[4]])
            assert {word for word in words if word.startswith("--")} <= flags, line


@pytest.mark.parametrize("page", RECIPE_PAGES, ids=lambda page: page.parent.name)
def test_flags_that_a_recipes_page_explains_exist(page: Path):
    [recipe] = [recipe for recipe in find_recipes(RECIPES) if recipe.name == page.parent.name]
    of_commands = {"--to"}  # of convert
    assert set(re.findall(r"`(--[a-z][\w-]*)", page.read_text("utf-8"))) <= flags_of(recipe) | of_commands


def flags_of(recipe) -> set[str]:
    names = [field.name.replace("_", "-") for field in dataclasses.fields(config_class(recipe.file))]
    return {f"--{name}" for name in names} | {f"--no-{name}" for name in names}


def test_tables_are_as_the_script_writes_them(tmp_path: Path):
    """No number between the markers was typed by hand, and the results that were measured last are shown.

    Which rows are stale is no failure of a test: `make docs-check` lists them.
    """
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    pages = tables["readmes"]()
    assert any("<!-- gallery -->" in page.read_text("utf-8") for page in pages)
    for page in pages:
        copy = tmp_path / "page.md"
        shutil.copy(page, copy)
        tables["write_tables"]([copy])
        written, committed = (tables["without_marks"](file.read_text("utf-8")) for file in (copy, page))
        assert written == committed, page
    copy.write_text("<!-- galery -->\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="no table 'galery'"):
        tables["write_tables"]([copy])
