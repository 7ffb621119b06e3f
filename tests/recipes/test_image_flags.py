"""Each flag of image_classification has an effect. A new flag needs a test here, or the name of one elsewhere."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from common.classification.calibration import apply_temperature
from common.classification.choice import best_on_validation
from common.images import scratch
from common.images.sources import load_source
from common.linear_head import predict_head, score
from common.runs import Run
from recipes.image_classification import recipe
from recipes.image_classification.recipe import Config
from tests.flag_effects import check_effects

TINY = "keras:MobileNet(alpha=0.25,size=32)@random"  # for whole runs
SIZES = {"train": (16, 4), "val": (4, 4), "test": (4, 4)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Four times as many red images as blue ones to train on, all 24 x 40 pixels, with little noise."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    for split, sizes in SIZES.items():
        for name, colour, count in zip(("blue", "red"), ((60, 120, 200), (200, 120, 60)), sizes[::-1], strict=True):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(rng.normal(colour, 15), 4, (24, 40, 3)), 1, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def settings(photos, tmp_path_factory):
    """Return the settings of a new run with these flags."""
    return lambda **flags: Config(
        **{"data": f"folder:{photos}", "image_size": 32, "out": str(tmp_path_factory.mktemp("run") / "run")} | flags
    )


@pytest.fixture(scope="module")
def loaded(settings):
    """The images, a source, its features, and a classifier whose head is not fitted."""
    keras.utils.set_random_seed(0)
    config = settings(views=2)
    data, source = recipe.load_data(config)
    features, _ = recipe.extract_features(source, data, config)
    return SimpleNamespace(data=data, source=source, features=features, model=recipe.build_model(source, 2, config))


UNSURE = [{"val_cross_entropy": 0.7}]  # what the head on the frozen source might have reached on validation


@pytest.fixture
def stage(loaded, settings, monkeypatch):
    """Return what fine-tuning would be given: all of `fit_stage`'s arguments, with real optimizer, loss and batches."""

    def given(**flags) -> SimpleNamespace:
        found = {}

        def fit_stage(model, **named):
            found.update(named, model=model, variables=model.trainable_variables, strategy=tf.distribute.get_strategy())
            for variable in model.get_layer("head").variables:
                variable.assign_add(keras.ops.ones_like(variable))
            return []

        monkeypatch.setattr(recipe, "fit_stage", fit_stage)
        config = settings(**flags)
        data = recipe.load_data(config)[0] if "resize" in flags else loaded.data
        recipe.fine_tune(Run(config), loaded.source, loaded.model, data, config.seed, UNSURE)
        return SimpleNamespace(**found)

    return given


def moved(stage: SimpleNamespace, gradient: float = 1.0) -> dict[str, float]:
    """Return how far one update at the peak of the learning rate moves some variables: the head's and the last ones."""
    variables = stage.variables[-6:]
    before = [np.array(variable) for variable in variables]
    stage.optimizer.build(variables)
    stage.optimizer.iterations.assign(max(1, stage.epochs * stage.steps // 10))
    stage.optimizer.apply([keras.ops.full(one.shape, gradient) for one in variables], variables)
    found = {
        variable.path: float(np.abs(np.array(variable) - old).max())
        for variable, old in zip(variables, before, strict=True)
    }
    for variable, old in zip(variables, before, strict=True):
        variable.assign(old)
    return found


LAST = "Conv_1/kernel"


def test_learning_rates_of_backbone_and_head(stage):
    plain, rate, factor = (
        moved(stage(weight_decay=0.0, **flags)) for flags in ({}, {"learning_rate": 4e-3}, {"backbone_factor": 0.6})
    )
    head = plain["head/kernel"]
    assert plain[LAST] == pytest.approx(0.3 * head, rel=0.02)
    for found, of_head, of_last in ((rate, 4, 1.2), (factor, 1, 0.6)):
        assert found["head/kernel"] == pytest.approx(of_head * head, rel=0.02)
        assert found[LAST] == pytest.approx(of_last * head, rel=0.02)


def test_weight_decay(stage):
    assert moved(stage(weight_decay=0.0), gradient=0.0)[LAST] == 0
    few, much = (moved(stage(weight_decay=decay, batch_norm="train"), gradient=0.0) for decay in (0.1, 0.2))
    assert 0 < few[LAST] == pytest.approx(much[LAST] / 2, rel=0.01)
    undecayed = {path for path, change in much.items() if change == 0}
    assert {path.rpartition("/")[2] for path in undecayed} == {"bias", "gamma", "beta"}


def test_batch_norm(stage):
    frozen, trains = ({path.path for path in stage(batch_norm=mode).variables} for mode in ("frozen", "train"))
    assert trains - frozen and all("bn" in path.lower() for path in trains - frozen) and frozen < trains


def test_label_smoothing(stage):
    target, probabilities = np.array([[1.0, 0.0]], "float32"), np.array([[0.8, 0.2]], "float32")
    for smoothing in (0.0, 0.2):
        expected = -(1 - smoothing / 2) * np.log(0.8) - smoothing / 2 * np.log(0.2)
        assert float(stage(label_smoothing=smoothing).loss(target, probabilities)) == pytest.approx(expected, rel=1e-4)


def epoch(given: SimpleNamespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the images, targets and weights of the first epoch."""
    batches = given.batches_from(0, 0).take(given.steps).as_numpy_iterator()
    return tuple(np.concatenate(part) for part in zip(*batches, strict=True))


def test_class_weights(stage, loaded, settings):
    """16 red images and 4 blue ones: four times as many, so auto means softened."""
    found = {}
    for chosen in ("none", "balanced", "softened", "auto"):
        weights = recipe.weights_of_images(loaded.data, settings(class_weights=chosen))  # the head is fitted with them
        found[chosen] = np.bincount(loaded.data.train.labels, weights)
    np.testing.assert_allclose(found["none"], [4, 16])
    np.testing.assert_allclose(found["balanced"], [10, 10], rtol=1e-5)
    np.testing.assert_allclose(found["softened"], [20 / 3, 40 / 3], rtol=1e-5)
    np.testing.assert_allclose(found["auto"], found["softened"])
    _, targets, weights = epoch(stage())
    np.testing.assert_allclose((targets * weights[:, None]).sum(axis=0), found["auto"], rtol=1e-5)


def test_augment_and_seed(stage):
    plain, flipped, coloured, other = (
        epoch(stage(**flags))[0]
        for flags in ({"augment": "none"}, {"augment": "flip"}, {"augment": "color"}, {"augment": "none", "seed": 1})
    )
    mirrored = [bool(np.allclose(one, two[:, ::-1], atol=1e-3)) for one, two in zip(flipped, plain, strict=True)]
    same = [bool(np.allclose(one, two, atol=1e-3)) for one, two in zip(flipped, plain, strict=True)]
    assert any(mirrored) and any(same) and all(one ^ two for one, two in zip(mirrored, same, strict=True))
    assert np.abs(coloured.mean(axis=(1, 2, 3)) - plain.mean(axis=(1, 2, 3))).max() > 5
    assert not np.array_equal(other, plain)  # the order follows from the seed
    np.testing.assert_allclose(np.sort(other.mean(axis=(1, 2, 3))), np.sort(plain.mean(axis=(1, 2, 3))), rtol=1e-4)


def test_views(loaded, settings):
    """Of each training image: the original, then augmented copies; of validation and test the original alone."""
    assert loaded.features["train"].shape == (2, 20, 1280) and loaded.features["val"].shape == (1, 8, 1280)
    assert np.abs(loaded.features["train"][0] - loaded.features["train"][1]).max(axis=1).min() > 1e-5
    small = dataclasses.replace(loaded.data, test=loaded.data.val, train=loaded.data.val)
    assert recipe.extract_features(loaded.source, small, settings(views=3, augment="none"))[0]["train"].shape[0] == 1


def test_resize(stage):
    """The images are 40 x 24 pixels."""
    pads, squashes, crops = (stage(augment="none", resize=mode) for mode in ("pad", "squash", "crop"))
    assert (epoch(pads)[0][:, :4] == 0).all() and epoch(squashes)[0][:, :4].min() > 0
    pads, squashes, crops = (next(iter(given.validation))[0].numpy() for given in (pads, squashes, crops))
    assert (pads[:, :4] == 0).all() and squashes[:, :4].min() > 0 and crops[:, :4].min() > 0
    assert not np.allclose(squashes, crops, atol=1)


def test_batches_epochs_patience_and_checkpoints(stage, loaded):
    given = stage(batch_size=8, epochs=7, patience=2, save_every=5.0)
    assert (given.steps, given.epochs, given.patience, given.save_every) == (3, 7, 2, 5.0)
    assert len(epoch(given)[0]) == 20 and len(next(iter(given.batches_from(0, 0)))[0]) == 8
    assert given.checkpoint.name == "finetune.npz"
    assert stage(batch_size=8).epochs == 20  # at least 60 steps
    assert stage(batch_size=8, seeds="3,4", seed=0).checkpoint.name == "finetune_seed0.npz"


def test_dropout_and_image_size(settings):
    source = load_source(TINY, settings(image_size=40).image_size)
    model = recipe.build_model(source, 2, settings(dropout=0.4))
    assert model.get_layer("dropout").rate == 0.4 and model.input_shape == (None, 40, 40, 3)


def test_unfreeze_what_is_named(stage):
    two, every = (stage(unfreeze=policy) for policy in ("last:2", "all"))
    assert {variable.path for variable in two.variables} == {LAST, "head/kernel", "head/bias"}
    assert len(every.variables) > 20 and len(stage(unfreeze="auto").variables) == len(every.variables)
    assert two.keep_best and every.keep_best and not every.callbacks
    auto = stage(unfreeze="auto", epochs=6)  # how much of it is kept is decided afterwards
    assert not auto.keep_best and [type(one).__name__ for one in auto.callbacks] == ["StopIfHopeless"]


def test_mirrored(stage):
    given = stage(mirrored=True)
    assert isinstance(given.strategy, tf.distribute.MirroredStrategy)
    assert not isinstance(stage().strategy, tf.distribute.MirroredStrategy)


def test_mixed_precision_trains_a_copy_in_bfloat16(stage, loaded):
    before = loaded.model.get_layer("head").get_weights()
    given = stage(mixed_precision=True)
    assert given.model is not loaded.model and keras.config.dtype_policy().name == "float32"
    assert loaded.source.backbone.compute_dtype == "float32"
    layers = [layer for layer in given.model.layers if layer.name == loaded.source.extractor.name]
    assert {one.compute_dtype for one in layers[0].layers if one.name.startswith("mobilenet")} == {"bfloat16"}
    for trained, was in zip(loaded.model.get_layer("head").get_weights(), before, strict=True):
        np.testing.assert_allclose(trained, was + 1, rtol=1e-6)  # as `stage` trained the copy
    shared = {id(one) for one in stage().model.weights}  # the folded model is not a copy
    assert shared == {id(one) for one in loaded.model.weights}


# --- train ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train(loaded, settings):
    """Train with these flags, and return the result."""

    def trained(features=loaded.features, **flags) -> recipe.Trained:
        config = settings(**flags)
        with pytest.MonkeyPatch.context() as patched:
            share(patched, loaded)
            return recipe.train(Run(config), loaded.data, features, config.seed)

    return trained


def share(patched: pytest.MonkeyPatch, loaded) -> None:
    """Load no source again, and predict from its features, which no test below changes: it saves seconds of tracing."""
    of_test = loaded.features["test"][0]
    for load in ("load_fitting", "load_source"):
        patched.setattr(recipe, load, lambda *_: loaded.source)
    patched.setattr(recipe, "predict", lambda model, _: predict_head(model.get_layer("head"), of_test))


@pytest.fixture(scope="module")
def frozen(train):
    return train(unfreeze="frozen")


def test_calibrate(frozen, train):
    raw = train(unfreeze="frozen", calibrate=False)
    assert raw.temperature is None and frozen.temperature != pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(
        apply_temperature(raw.probabilities, frozen.temperature), frozen.probabilities, atol=1e-3
    )
    of_frozen = apply_temperature(frozen.frozen["test"], frozen.temperature)
    np.testing.assert_allclose(of_frozen, frozen.probabilities, atol=1e-3)


def test_nothing_is_fine_tuned(frozen, loaded, settings):
    assert {row["stage"] for row in frozen.history} == {"head"} and frozen.choice == ""
    assert recipe.fine_tuning_epochs(loaded.data, settings(epochs=0)) == 0  # equals --unfreeze frozen


def test_unfreeze_auto_keeps_only_what_validation_supports(frozen, train, loaded, monkeypatch):
    """Fine-tuning is replaced by one that makes things worse. What is kept: tests/classification/test_choice.py."""

    def refit_head(head, source, data, *_, **__):
        head.set_weights([-weight for weight in head.get_weights()])
        return np.eye(2, dtype="float32")[1 - data.val.labels] * 0.8 + 0.1

    monkeypatch.setattr(recipe, "fine_tune", lambda *_: ([{"stage": "finetune", "epoch": 1}], 1))
    monkeypatch.setattr(recipe.features, "refit_head", refit_head)
    certain = train(unfreeze="auto")
    assert certain.choice.startswith(f"Fine-tuning was not tried: {len(loaded.data.val)} validation examples are too")
    np.testing.assert_array_equal(certain.probabilities, frozen.probabilities)
    monkeypatch.setattr(recipe, "too_few_errors", lambda *_: "")
    auto, every = (train(unfreeze=policy) for policy in ("auto", "all"))
    assert auto.choice.startswith("Fine-tuning was tried and is not kept") and every.choice == ""
    np.testing.assert_allclose(auto.probabilities, frozen.probabilities, atol=1e-5)
    labels = loaded.data.test.labels  # which of both is better, all does not ask
    assert score(auto.probabilities, labels)["accuracy"] == 1.0 and score(every.probabilities, labels)["accuracy"] == 0
    assert {row["stage"] for row in auto.history} == {"head", "finetune"}


# --- main -----------------------------------------------------------------------------------------------------------


def test_the_weights_of_a_random_source_are_those_that_its_features_come_from(settings, monkeypatch):
    """They follow from --seed, whichever of --seeds trains; a resumed run has them again."""
    sources, fitting, again = [], recipe.load_fitting, recipe.load_source

    def remember(load):
        def remembered(*arguments):
            sources.append(load(*arguments))
            return sources[-1]

        return remembered

    def features(source, data, config):
        empty = {part: np.zeros((1, len(getattr(data, part)), 256), "float32") for part in ("train", "val", "test")}
        return empty, {}

    monkeypatch.setattr(recipe, "load_fitting", remember(fitting))
    monkeypatch.setattr(recipe, "load_source", remember(again))
    monkeypatch.setattr(recipe, "extract_features", features)
    monkeypatch.setattr(recipe.exporting, "save_keras_model", lambda *_: pytest.fail("trained"))
    with pytest.raises(pytest.fail.Exception, match="trained"):
        recipe.main(settings(source=TINY, unfreeze="frozen", seeds="1,2", seed=0))
    keras.utils.set_random_seed(0)
    wanted = fitting(TINY, 32, None).extractor.get_weights()
    assert len(sources) == 3  # of main, and of each seed
    for source in sources:
        for weights, expected in zip(source.extractor.get_weights(), wanted, strict=True):
            np.testing.assert_array_equal(weights, expected)


@pytest.fixture(scope="module")
def main(loaded, settings):
    """Metrics of a run of main, and the order of its steps.

    The export and its proof are left out: they do not depend on these flags.
    """
    steps = []
    with pytest.MonkeyPatch.context() as patched:
        measure = recipe.baseline
        share(patched, loaded)
        patched.setattr(recipe, "baseline", lambda name, *rest: steps.append(name) or measure(name, *rest))
        patched.setattr(recipe.exporting, "save_keras_model", lambda *_: None)
        patched.setattr(recipe.export, "export_image_classifier", lambda *_, **__: steps.append("export"))
        patched.setattr(recipe, "write_serving_files", lambda *_, **__: None)
        patched.setattr(recipe.exporting, "size_report", lambda *_: {})
        patched.setattr(recipe, "FreshProcess", lambda: None)
        patched.setattr(
            recipe, "in_background", lambda prove, *arguments: SimpleNamespace(result=lambda: prove(*arguments))
        )
        proof = {"passed": True, "examples": 8, "max_abs_diff": 0.0}
        patched.setattr(recipe.export, "prove_image_classifier", lambda *_: steps.append("proof") or proof)
        metrics = recipe.main(settings(unfreeze="frozen", views=1, explain=False))
    return SimpleNamespace(steps=steps, metrics=metrics)


def test_baselines(main):
    """The cheap ones run by default; without any: tests/test_readme.py and others."""
    assert set(main.metrics["baselines"]) == {"frozen", "neighbours", "pixels"}
    assert main.metrics["baselines"]["frozen"]["accuracy"] == main.metrics["test"]["accuracy"] > 0.6


def test_the_export_is_proved_before_a_baseline_begins(main):
    assert main.steps == ["export", "proof", "frozen", "neighbours", "pixels"]


def test_seconds_of_the_baselines(main):
    seconds, baselines = main.metrics["seconds"], main.metrics["baselines"]
    spent = baselines["neighbours"]["seconds"] + baselines["pixels"]["seconds"]
    assert seconds["baselines"] == pytest.approx(spent, abs=0.05)
    assert baselines["frozen"]["seconds"] == pytest.approx(seconds["features"] + seconds["head"], abs=0.02)


def test_without_explain_and_seeds_the_metrics_hold_neither(main):
    assert not {"calibration", "data_quality", "seeds", "mean", "std"} & set(main.metrics)
    low, high = main.metrics["test"]["ece_if_calibrated95"]
    assert 0 <= low <= high <= 1


def test_scratch_epochs(loaded, settings, monkeypatch):
    given = {}
    monkeypatch.setattr(scratch, "train_from_scratch", lambda *_, **named: given.update(named) or ([], [], ""))
    recipe.baseline("scratch", loaded, Run(settings(scratch_epochs=7)), loaded.data, 0)  # which has the source
    assert given["epochs"] == 7
    assert given["save"]("scratch_0")["checkpoint"].name == "scratch_0.npz"


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_seeds_and_a_stop_between_them(settings, monkeypatch):
    trained, train = {}, recipe.train

    def remember(run, data, of, seed):
        trained[seed] = train(run, data, of, seed)
        return trained[seed]

    monkeypatch.setattr(recipe, "train", remember)
    flags = dict(
        source=TINY,
        seeds="0,1",
        epochs=2,
        unfreeze="all",
        views=1,
        explain=False,
        baselines="frozen",
        batch_size=4,
    )
    config = settings(**flags)
    whole = recipe.main(config)
    assert set(whole["seeds"]) == {"0", "1"} and whole["proof"]["passed"]
    each = [whole["seeds"][seed]["test"]["accuracy"] for seed in ("0", "1")]
    assert whole["mean"]["test"]["accuracy"] == pytest.approx(np.mean(each))
    assert whole["std"]["test"]["accuracy"] == pytest.approx(np.std(each, ddof=1))
    assert {"frozen", "neighbours", "pixels"} == set(whole["mean"]["baselines"])

    val = recipe.load_data(config)[0].val
    assert not np.allclose(trained[0].probabilities, trained[1].probabilities, atol=1e-3)
    best = best_on_validation(val.labels, {seed: one.val_probabilities for seed, one in trained.items()})
    assert whole["test"]["ece"] == pytest.approx(whole["seeds"][str(best)]["test"]["ece"], abs=1e-6)
    exported = tf.saved_model.load(str(Path(config.out) / "serving" / "image_classification" / "1"))
    paths = recipe.load_data(config)[0].test.paths
    answer = exported.signatures["serving_default"](image=tf.stack([tf.io.read_file(str(path)) for path in paths]))
    np.testing.assert_allclose(answer["probabilities"], trained[best].probabilities, atol=1e-4)

    def stopped(run, data, of, seed):
        if seed == 1:
            raise KeyboardInterrupt
        return train(run, data, of, seed)

    monkeypatch.setattr(recipe, "train", stopped)
    again = settings(**flags)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(again)
    assert (Path(again.out) / "checkpoints" / "finetune_seed0.npz").exists()
    monkeypatch.setattr(recipe, "train", train)
    resumed = recipe.main(Config(resume=again.out))
    for key in ("seeds", "mean", "std", "test"):
        np.testing.assert_allclose(numbers(resumed[key]), numbers(whole[key]), atol=1e-5, err_msg=key)


def numbers(found) -> list[float]:
    """Return all numbers of nested scores, in order, without the seconds, which differ from run to run."""
    if isinstance(found, dict):
        return [number for name, value in sorted(found.items()) if name != "seconds" for number in numbers(value)]
    return [number for value in found for number in numbers(value)] if isinstance(found, list) else [found]


@pytest.mark.slow
def test_a_stopped_baseline_leaves_the_proved_export_and_the_run_resumes(settings, monkeypatch):
    proofs, prove = [], recipe.export.prove_image_classifier

    def remember(*arguments):
        proofs.append(prove(*arguments))
        return proofs[-1]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe.export, "prove_image_classifier", remember)
    config = settings(source=TINY, unfreeze="frozen", views=1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(recipe, "baseline", interrupted)
        recipe.main(config)
    for _ in range(600):  # it runs in the background
        if proofs:
            break
        time.sleep(0.1)
    assert proofs[0]["passed"] and list((Path(config.out) / "serving").rglob("saved_model.pb"))
    found = recipe.main(Config(resume=config.out))
    assert set(found["baselines"]) == {"frozen", "neighbours", "pixels"} and found["proof"]["passed"]
    assert {"calibration", "data_quality"} <= set(found)  # --explain


@pytest.mark.slow
def test_from_scratch_both_networks_train_to_a_plateau(loaded, settings, monkeypatch):
    """With a source of another network than the small one; that one is replaced by a smaller one still."""
    monkeypatch.setattr(scratch, "SMALL", ("keras:MobileNet(alpha=0.25,size=32)", 32))
    run = Run(settings(source="bundled:resnet_mini", image_size=32, scratch_epochs=1))
    found, rows, sentence = recipe.baseline("scratch", loaded, run, loaded.data, 0)
    assert found["test"].shape == (8, 2) and len(found["val"]) == len(loaded.data.val)
    np.testing.assert_allclose(found["test"].sum(axis=1), 1, atol=1e-5)
    stages = ["scratch_0", "scratch_0_low_rate", "scratch_1", "scratch_1_low_rate"]
    assert list(dict.fromkeys(row["stage"] for row in rows)) == stages
    assert sentence.startswith("From scratch: the network of ") and sentence.endswith("after 2 epochs.")
    assert {path.stem for path in (run.out / "checkpoints").glob("*.npz")} == set(stages)
    # A source that is the small network itself is not trained twice.
    alone = Run(settings(source="keras:MobileNet(alpha=0.25,size=32)", scratch_epochs=1))
    _, rows, _ = recipe.baseline("scratch", loaded, alone, loaded.data, 0)
    assert {row["stage"] for row in rows} == {"scratch_0", "scratch_0_low_rate"}


def test_runs_from_before_resume_with_their_settings(settings):
    config = settings()
    before = dataclasses.asdict(config) | {"calibrate": False, "class_weights": "none", "unfreeze": "last_block"}
    Path(config.out).mkdir(parents=True)
    (Path(config.out) / "config.json").write_text(json.dumps(before), "utf-8")
    resumed = Run(Config(resume=config.out)).config
    assert (resumed.calibrate, resumed.class_weights, resumed.unfreeze) == (False, "none", "last_block")
    assert (Config().calibrate, Config().class_weights, Config().unfreeze) == (True, "auto", "auto")


# Where the effect of each flag is shown: a test of this file, or FOLDER/FILE.py::TEST below tests.
GROUPS = "images/test_groups_and_columns.py"
EFFECTS = {
    "data": "images/test_dataset.py::test_demo_digits",
    "path_column": f"{GROUPS}::test_columns_have_any_name", "label_column": f"{GROUPS}::test_columns_have_any_name",
    "split_column": f"{GROUPS}::test_columns_have_any_name",
    "group": f"{GROUPS}::test_a_pattern_on_the_path_keeps_bursts_together",
    "source": "images/test_sources.py::test_real_weights",
    "out": "recipes/test_recipes.py::test_finished_run_is_not_overwritten",
    "resume": "test_runs_from_before_resume_with_their_settings",
    "save_every": "test_batches_epochs_patience_and_checkpoints",
    "unfreeze": "test_unfreeze_auto_keeps_only_what_validation_supports",
    "epochs": "test_batches_epochs_patience_and_checkpoints",
    "batch_size": "test_batches_epochs_patience_and_checkpoints",
    "image_size": "test_dropout_and_image_size", "resize": "test_resize",
    "learning_rate": "test_learning_rates_of_backbone_and_head",
    "backbone_factor": "test_learning_rates_of_backbone_and_head", "batch_norm": "test_batch_norm",
    "weight_decay": "test_weight_decay", "dropout": "test_dropout_and_image_size",
    "label_smoothing": "test_label_smoothing", "class_weights": "test_class_weights",
    "augment": "test_augment_and_seed", "views": "test_views",
    "patience": "test_batches_epochs_patience_and_checkpoints", "baselines": "test_baselines",
    "scratch_epochs": "test_scratch_epochs", "calibrate": "test_calibrate",
    "explain": "test_a_stopped_baseline_leaves_the_proved_export_and_the_run_resumes",
    "tensorboard": "test_tracking.py::test_tensorboard_reads_the_curves_of_a_stage",
    "mlflow": "test_tracking.py::test_mlflow_holds_settings_curves_and_report",
    "mirrored": "test_tracking.py::test_two_devices_learn_what_one_learns",
    "mixed_precision": "test_mixed_precision_trains_a_copy_in_bfloat16",
    "shots": f"{GROUPS}::test_shots_draw_by_the_seed_and_leave_test_alone",
    "limit": "images/test_dataset.py::test_limit_keeps_classes_balanced_and_says_when_it_is_too_small",
    "strict": "images/test_dataset.py::test_bad_files_are_skipped_counted_and_explained",
    "seed": "test_augment_and_seed", "seeds": "test_two_seeds_and_a_stop_between_them",
}  # fmt: skip


def test_every_flag_has_a_test_of_its_effect():
    check_effects(EFFECTS, Config, Path(__file__))
