"""The strings that users type for --source, --data and --unfreeze: what is read, and what each mistake is told."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import UserError, did_you_mean, nearest
from common.flags import check_choice, check_range, parse_baselines, parse_data, parse_list, parse_policy, parse_seeds
from common.sources import specs
from common.sources.specs import KERAS_APPLICATIONS, SourceSpec, parse_source

REPOSITORY = Path(__file__).resolve().parent.parent


def refusal(function, *arguments) -> str:
    """Return what the user is told."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_specs_are_read_without_tensorflow():
    # A wrong flag must cost milliseconds.
    code = "import sys, common.flags, common.sources.specs; print({'tensorflow', 'keras', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- sources ------------------------------------------------------------------------------------------


def test_keras_sources_are_read(tmp_path):
    weights = tmp_path / "with @ and (brackets).weights.h5"
    weights.touch()
    assert parse_source("keras:ResNet50") == SourceSpec("keras", "ResNet50")
    assert parse_source("keras:ResNet50()") == SourceSpec("keras", "ResNet50")
    assert parse_source("keras:ResNet50@random").random
    assert parse_source("keras:MobileNet(alpha=0.25, size=128)") == SourceSpec(
        "keras", "MobileNet", {"alpha": 0.25, "size": 128}
    )
    assert parse_source(f"keras:MobileNetV2(size=96)@{weights}") == SourceSpec(
        "keras", "MobileNetV2", {"size": 96}, str(weights)
    )


def test_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notop.weights.h5").touch()
    (tmp_path / "preset").mkdir()
    assert parse_source("keras:VGG16@~/notop.weights.h5").weights == "~/notop.weights.h5"
    assert parse_source("preset:~/preset").name == "~/preset"


@pytest.mark.parametrize(
    ("typed", "options", "weights"),
    [
        ("hub:{}", {}, None),
        ("hub:{}@random", {}, "random"),
        ("hub:{}(range=-1..1)", {"range": (-1.0, 1.0)}, None),
        ("hub:{}(range=0..255, size=96,output=pooled,signature=embed)@random",
         {"range": (0.0, 255.0), "size": 96, "output": "pooled", "signature": "embed"}, "random"),
    ],
)  # fmt: skip
def test_hub_sources_are_read(typed, options, weights, tmp_path):
    folder = tmp_path / "a model (1)"  # parentheses that hold no option belong to the name
    folder.mkdir()
    spec = parse_source(typed.format(folder))
    assert (spec.kind, spec.name, spec.options, spec.weights) == ("hub", str(folder), options, weights)


@pytest.mark.parametrize(
    "typed", ["hub:https://tfhub.dev/google/yamnet/1", "kaggle:google/yamnet/tensorFlow2/yamnet/1"]
)
def test_handles_are_hub_sources(typed):
    spec = parse_source(f"{typed}(size=96)")
    assert (spec.kind, spec.name, spec.options) == ("hub", typed.removeprefix("hub:"), {"size": 96})


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("hub:", "needs the folder of a SavedModel, or a handle"),
        ("hub:no/such/folder", "needs the folder of a SavedModel, or a handle"),
        ("hub:.(range=1..0)", "range=LOW..HIGH"),
        ("hub:.(range=a..b)", "range=LOW..HIGH"),
        ("hub:.(range=nan..1)", "range=LOW..HIGH"),
        ("hub:.(size=0)", "size=PIXELS"),
        ("hub:.(rnage=0..1)", "Did you mean 'range'?"),
        ("hub:https://tfhub.dev", "The handle cannot be read"),
        ("kaggle:google/yamnet", "The handle cannot be read"),
    ],
)
def test_hub_mistakes_are_explained(typed, words):
    with pytest.raises(UserError, match=re.escape(words)):
        parse_source(typed)


def test_short_names_are_the_catalogue():
    spec = parse_source("mobilenet_v2")
    assert (spec.kind, spec.name, spec.entry.name) == ("bundled", "mobilenet_v2", "mobilenet_v2")
    assert parse_source("mobilenet_v2@random").random
    assert parse_source("minilm").name == str(parse_source("minilm").entry.folder)
    with pytest.raises(UserError, match="Did you mean 'minilm'"):
        parse_source("minilmm")


@pytest.mark.parametrize("name", KERAS_APPLICATIONS)
def test_every_supported_application_is_read(name):
    assert parse_source(f"keras:{name}").name == name


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("torch:resnet50", ("bundled:NAME, keras:NAME, preset:NAME", "Received: 'torch:resnet50'")),
        ("kears:ResNet50", ("Did you mean 'keras'?",)),
        ("ResNet50", ("--source is unknown", "--source keras:ResNet50")),  # the kind was forgotten
        ("MobileNet(alpha=0.25)@random", ("--source keras:MobileNet(alpha=0.25)@random",)),
        ("", ("--source is unknown", "Received: ''")),
        ("keras:", ("Received: 'keras:'", "Allowed: ResNet50")),
        ("keras:ResNet5O", ("Did you mean 'ResNet50'?", "MobileNetV2")),
        ("keras:mobilenetv2", ("Did you mean 'MobileNetV2'?",)),
        ("keras:ResNet50(size=96", ("Did you mean 'ResNet50'?",)),  # a bracket was forgotten
        ("keras:ResNet50(width=96)", ("size=PIXELS", "alpha=WIDTH", "'width=96'")),
        ("keras:ResNet50(96)", ("size=PIXELS", "'96'")),
        ("keras:ResNet50(alpha=0.5)", ("alpha=WIDTH for MobileNet and MobileNetV2", "'alpha=0.5'")),
        ("keras:MobileNetV3Small(alpha=0.5)", ("alpha=WIDTH for MobileNet and MobileNetV2",)),
        ("keras:ResNet50(size=large)", ("size needs a whole number above 0", "'large'")),
        ("keras:ResNet50(size=96.5)", ("size needs a whole number above 0", "'96.5'")),
        ("keras:ResNet50(size=-96)", ("size needs a whole number above 0", "'-96'")),
        ("keras:ResNet50(size=0)", ("size needs a whole number above 0",)),  # must not mean "its own size"
        ("keras:MobileNet(alpha=0)", ("alpha needs a number above 0",)),
        ("keras:MobileNet(alpha=nan)", ("alpha needs a number above 0", "'nan'")),
        ("keras:ResNet50@nowhere.h5", ("does not exist", "'nowhere.h5'", "'no top' weights file of ResNet50")),
        ("keras:ResNet50@", ("does not exist", "Without '@' the ImageNet weights are fetched")),
        ("preset:", ("hf://OWNER/NAME",)),
        ("preset:@random", ("hf://OWNER/NAME",)),
        ("preset:./nowhere", ("preset folder that does not exist", "config.json")),
        ("preset:runs/nowhere@random", ("preset folder that does not exist",)),
    ],
)  # fmt: skip
def test_source_mistakes_are_explained(typed, words):
    said = refusal(parse_source, typed)
    for word in words:
        assert word in said, said


def test_folder_is_no_weights_file(tmp_path):
    assert "is a folder" in refusal(parse_source, f"keras:ResNet50@{tmp_path}")


def test_file_is_no_preset_folder(tmp_path):
    (tmp_path / "config.json").touch()
    assert "is a file" in refusal(parse_source, f"preset:{tmp_path}/config.json")


def test_presets_are_read(tmp_path):
    assert parse_source("preset:resnet_50_imagenet") == SourceSpec("preset", "resnet_50_imagenet")
    assert parse_source("preset:hf://timm/resnet18.a1_in1k") == SourceSpec("preset", "hf://timm/resnet18.a1_in1k")
    assert parse_source(f"preset:{tmp_path}@random") == SourceSpec("preset", str(tmp_path), weights="random")


def test_bundled_models_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(specs, "BUNDLED_FOLDER", tmp_path)
    for name in ("apple_net", "pear_net"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    (tmp_path / "__pycache__").mkdir()  # not a model
    assert parse_source("bundled:pear_net@random") == SourceSpec("bundled", "pear_net", weights="random")
    said = refusal(parse_source, "bundled:aple_net")
    assert "Allowed: bundled:apple_net, bundled:pear_net." in said
    assert "Did you mean 'apple_net'?" in said


@pytest.mark.parametrize("exists", [True, False])
def test_no_bundled_model_at_all(exists, tmp_path, monkeypatch):
    # git keeps no empty folder: a checkout without models may not even have it.
    monkeypatch.setattr(specs, "BUNDLED_FOLDER", tmp_path if exists else tmp_path / "missing")
    said = refusal(parse_source, "bundled:resnet_mini")
    assert "this checkout has none" in said
    assert "keras:MobileNetV2" in said
    assert "Allowed: ." not in said


def test_nearest_keeps_silent_when_nothing_is_near():
    assert nearest("xyz", ("ResNet50", "VGG16")) is None and did_you_mean("xyz", ("ResNet50", "VGG16")) == ""
    assert nearest("vgg-16", ("ResNet50", "VGG16")) == "VGG16"
    assert did_you_mean("classification", ["image_classification"]) == " Did you mean 'image_classification'?"


# --- data, policies, lists, ranges ----------------------------------------------------------------------


def test_data_is_read(tmp_path):
    kinds = ("demo", "demo:digits", "folder", "csv", "tfds")
    table = tmp_path / "table.csv"
    table.touch()
    assert parse_data("demo", kinds) == ("demo", "") and parse_data("demo:digits", kinds) == ("demo", "digits")
    assert parse_data(f"folder:{tmp_path}", kinds) == ("folder", str(tmp_path))
    assert parse_data(f"csv:{table}", kinds) == ("csv", str(table))
    assert parse_data("tfds:cifar10", kinds) == ("tfds", "cifar10")
    for typed, words in {
        "demo:now": ("Allowed: demo, demo:digits, folder:PATH, csv:PATH, tfds:NAME", "Received: 'demo:now'"),
        "demo:digit": ("Did you mean 'demo:digits'?",),
        "demo:": ("Allowed: demo, demo:digits", "Received: 'demo:'"),
        "dmeo": ("Did you mean 'demo'?",),
        "folder:": ("folder:PATH",),
        "folder:nowhere": ("path that does not exist", "'nowhere'", str(Path.cwd())),
        str(tmp_path): (f"--data folder:{tmp_path}",),  # the kind was forgotten
        f"folder:{table}": ("this is a file", f"--data csv:{table}"),
    }.items():
        said = refusal(parse_data, typed, kinds)
        for word in words:
            assert word in said, said
    assert "Allowed: demo, folder:PATH." in refusal(parse_data, "demo:digits", ("demo", "folder"))
    assert "Did you mean 'demo:digits'?" in refusal(parse_data, "demo", ("demo:digits", "folder"))


@pytest.mark.parametrize("policy", ["frozen", "last_block", "all", "last:1", "last:200", "regex:conv5_|^bn$"])
def test_policies_are_read(policy):
    assert parse_policy(policy) == policy


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("last", ("last:N",)),
        ("last:0", ("last:N", "Received: 'last:0'")),
        ("last:-3", ("last:N",)),
        ("last:two", ("last:N",)),
        ("frozn", ("Did you mean 'frozen'?",)),
        ("lastblock", ("Did you mean 'last_block'?",)),
        ("regex:conv(", ("invalid regular expression", "'regex:conv('")),
        ("regex:", ("regex:PATTERN",)),  # an empty pattern matches every layer, which nobody means
        ("", ("Allowed: frozen, last_block, all, last:N (layers), regex:PATTERN",)),
    ],
)
def test_policy_mistakes_are_explained(policy, words):
    said = refusal(parse_policy, policy)
    for word in words:
        assert word in said, said


def test_lists_are_read():
    arguments = (("frozen", "scratch"), ("none",))
    assert parse_list("--baselines", " frozen ,scratch,", *arguments) == ("frozen", "scratch")
    assert parse_list("--baselines", "none", *arguments) == ("none",)
    for text in ("frozen,none", "scrach", "", ","):
        said = refusal(parse_list, "--baselines", text, *arguments)
        assert "--baselines" in said
        assert "or alone: none" in said
        assert repr(text) in said
    assert "Did you mean 'scratch'?" in refusal(parse_list, "--baselines", "scrach", *arguments)


def test_baselines_are_names_or_none():
    titles = {"frozen": "Frozen source", "words": "Counted words"}
    assert parse_baselines("words,frozen", titles) == ("frozen", "words")
    assert parse_baselines("none", titles) == ()
    assert parse_baselines("none", titles, always=("frozen",)) == ()
    assert parse_baselines("words", titles, always=("frozen",)) == ("frozen", "words")
    for text in ("frozen,none", "wrods"):
        said = refusal(parse_baselines, text, titles)
        assert "--baselines" in said and "Allowed: frozen, words, or alone: none" in said and repr(text) in said
    assert "Did you mean 'words'?" in refusal(parse_baselines, "wrods", titles)


def test_seeds_are_read():
    assert parse_seeds(None, 7) == (7,)
    assert parse_seeds("0, 1,2,1", 7) == (0, 1, 2)
    for text in ("", "0;1", "-1", "1.5", "²"):
        assert "--seeds" in refusal(parse_seeds, text, 0) and repr(text) in refusal(parse_seeds, text, 0)


def test_choices_and_ranges_are_checked():
    check_choice("--resize", "crop", ("crop", "pad"))
    assert "Did you mean 'crop'?" in refusal(check_choice, "--resize", "corp", ("crop", "pad"))
    config = SimpleNamespace(head_epochs=5, dropout=0.0, views=None, learning_rate=float("nan"))
    check_range(config, 0, 10, "head_epochs", "dropout", "views")
    assert "--head-epochs is out of range. Allowed: 0 to 4. Received: 5." in refusal(
        check_range, config, 0, 4, "head_epochs"
    )
    assert "Allowed: 6 or more." in refusal(check_range, config, 6, float("inf"), "head_epochs")
    assert "Received: nan" in refusal(check_range, config, 0, 1, "learning_rate")


@pytest.mark.parametrize("kind", ["hub:", "preset:", "keras:ResNet50@"])
@pytest.mark.parametrize("path", ["~nosuchuser/x", "a/" + "b" * 5000, "a\nb/c", "a\0b/c"])
def test_paths_that_cannot_be_are_mistakes(kind, path):
    with pytest.raises(UserError, match="Received"):
        parse_source(kind + path)


@pytest.mark.parametrize("path", ["~nosuchuser/x", "b" * 5000, "a\0b"])
def test_data_paths_that_cannot_be_are_mistakes(path):
    with pytest.raises(UserError, match="Received"):
        parse_data(f"folder:{path}", ("folder",))


def test_advice_names_flags_and_kinds_that_the_recipe_has(tmp_path):
    with pytest.raises(UserError) as told:
        parse_data(str(tmp_path), ("demo", "voc"))
    assert "folder:" not in str(told.value) and "voc:PATH" in str(told.value)
    with pytest.raises(UserError, match=r"^--teacher holds an invalid path"):
        parse_source("keras:ResNet50@~nobody_at_all/weights.h5", "--teacher")
