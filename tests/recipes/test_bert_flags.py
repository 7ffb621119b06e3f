"""Each flag of bert_sentiment has an effect. A new flag needs a test here, or the name of one elsewhere."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from common.errors import UserError
from common.runs import Run
from common.texts import batches, contrastive, models
from common.training import StopIfHopeless
from recipes.bert_sentiment import recipe
from recipes.bert_sentiment.recipe import Config
from tests.flag_effects import check_effects


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    """24 texts of class a and 6 of class b, of 4 to 32 words, with columns of unusual names."""
    file = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    with open(file, "w", encoding="latin-1", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["wording", "opinion", "split"])
        for split in ("train", "val", "test"):
            for number in range(30):
                text = f"{'good' if number % 5 else 'bad'} café " + f"{split} n{number} " * (1 + number // 2)
                rows.writerow([text, "ab"[number % 5 == 0], split])
    return file


@pytest.fixture(scope="module")
def loaded(reviews):
    """A source, its classifier, and the tokens and embeddings of the reviews."""
    config = settings(reviews)
    data = recipe.load_data(config)
    source, encoder, model = models.load_classifier(config.source, 2, config.dropout)
    tokens = recipe.tokenize(source, data, config)[1]
    embeddings = {split: batches.run_on_tokens(encoder, tokens[split]) for split in tokens}
    return SimpleNamespace(data=data, source=source, encoder=encoder, model=model, tokens=tokens, embeddings=embeddings)


def settings(reviews: Path, **flags) -> Config:
    named = {"text_column": "wording", "label_column": "opinion", "encoding": "latin-1", "max_length": 16}
    return Config(data=f"csv:{reviews}", **(named | flags))


@pytest.fixture
def stage(loaded, reviews, tmp_path, monkeypatch):
    """Return what fine-tuning would be given: all of `fit_stage`'s arguments, with real optimizer, loss and batches."""

    def given(of=loaded, train_with=0, **flags) -> SimpleNamespace:
        keras.utils.set_random_seed(0)
        found = {}
        monkeypatch.setattr(
            recipe, "fit_stage", lambda model, **named: found.update(named, batches=named["batches_from"], model=model)
        )
        run = Run(settings(reviews, out=str(tmp_path / f"{len(list(tmp_path.iterdir()))}"), **flags))
        of_head = [{"val_cross_entropy": 0.7}]
        precision = recipe.precision_of(run.config, of.tokens)
        recipe.fine_tune(
            run, of.source, of.model, of.encoder, of.tokens, of.data, train_with, of_head, precision=precision
        )
        found["variables"] = of.model.trainable_variables
        return SimpleNamespace(**found)

    return given


def moved(stage: SimpleNamespace, gradient: float = 1.0) -> dict[str, float]:
    """Return how far one update at the peak of the learning rate moves the first weight of each variable."""
    before = [np.array(variable) for variable in stage.variables]
    stage.optimizer.build(stage.variables)
    stage.optimizer.iterations.assign(max(1, stage.epochs * stage.steps // 10))
    stage.optimizer.apply([keras.ops.full(one.shape, gradient) for one in stage.variables], stage.variables)
    found = {
        variable.path: float(np.abs(np.array(variable) - old).max())
        for variable, old in zip(stage.variables, before, strict=True)
    }
    for variable, old in zip(stage.variables, before, strict=True):
        variable.assign(old)
    return found


LAST, FIRST = (f"transformer_layer_{number}/feedforward_output_dense/kernel" for number in (2, 0))


def test_learning_rates_of_encoder_and_head(stage):
    plain, encoder, head = moved(stage()), moved(stage(learning_rate=4e-4)), moved(stage(head_rate=2e-3))
    assert encoder[LAST] == pytest.approx(4 * plain[LAST], rel=0.02)
    assert encoder["head/kernel"] == pytest.approx(plain["head/kernel"], rel=1e-3)
    assert head["head/kernel"] == pytest.approx(2 * plain["head/kernel"], rel=0.02)
    assert head[LAST] == pytest.approx(plain[LAST], rel=0.02)


def test_layer_decay(stage):
    for decay in (0.9, 0.5):
        found = moved(stage(layer_decay=decay, weight_decay=0.0))
        assert found[FIRST] == pytest.approx(found[LAST] * decay**2, rel=0.01)


def test_weight_decay(stage):
    assert moved(stage(weight_decay=0.0), gradient=0.0)[LAST] == 0
    few, much = (moved(stage(weight_decay=decay), gradient=0.0) for decay in (0.1, 0.2))
    assert 0 < few[LAST] == pytest.approx(much[LAST] / 2, rel=0.01)
    assert not any(change for path, change in much.items() if path.endswith(("bias", "gamma", "beta")))


def test_gradient_norm(stage):
    for norm in (1.0, 5.0):
        given = stage(gradient_norm=norm)
        moved(given, gradient=3.0)
        first_moments = given.optimizer._momentums
        total = np.sqrt(sum(np.sum(np.square(np.array(one) / 0.1)) for one in first_moments))
        assert total == pytest.approx(norm, rel=1e-3)


def test_label_smoothing(stage):
    target, probabilities = np.array([[1.0, 0.0]], "float32"), np.array([[0.8, 0.2]], "float32")
    for smoothing in (0.0, 0.2):
        expected = -(1 - smoothing / 2) * np.log(0.8) - smoothing / 2 * np.log(0.2)
        assert float(stage(label_smoothing=smoothing).loss(target, probabilities)) == pytest.approx(expected, rel=1e-4)


def total_weights(given: SimpleNamespace) -> np.ndarray:
    """Return the total weight of each class in an epoch."""
    weighed = np.zeros(2)
    for _, (_, targets, weights) in zip(range(given.steps), given.batches(0, 0), strict=False):
        weighed += np.sum(np.array(targets) * np.array(weights)[:, None], axis=0)
    return weighed


def test_class_weights(stage):
    """24 texts of a class and 6 of the other: four times as many, so auto means softened."""
    found = {chosen: total_weights(stage(class_weights=chosen)) for chosen in ("none", "balanced", "softened", "auto")}
    np.testing.assert_allclose(found["none"], [24, 6])
    np.testing.assert_allclose(found["balanced"], [15, 15], rtol=1e-5)
    np.testing.assert_allclose(found["softened"], [20, 10], rtol=1e-5)
    np.testing.assert_allclose(found["auto"], found["softened"])


def test_batches_epochs_patience_and_checkpoints(stage):
    given = stage(batch_size=8, epochs=7, patience=2, save_every=5.0)
    assert (given.steps, given.epochs, given.patience, given.save_every) == (4, 7, 2, 5.0)
    assert len(next(iter(given.batches(0, 0)))[1]) <= 8
    assert given.checkpoint.name == "finetune.npz"
    assert stage(batch_size=8).epochs == 15  # at least 60 steps


def test_rank_and_method_lora(stage, loaded):
    source, encoder, model = models.load_classifier("bundled:bert_mini", 2, 0.1)  # of its own: adapters stay
    own = SimpleNamespace(**vars(loaded) | {"source": source, "encoder": encoder, "model": model})
    given = stage(own, method="lora", rank=2)
    adapters = [variable for variable in given.variables if "lora_kernel_a" in variable.path]
    assert len(adapters) == 15 and {variable.shape[-1] for variable in adapters} == {2}
    assert {one.path for one in given.variables if one.path.endswith("/kernel")} == {"head/kernel"}


def test_precision_trains_a_copy_and_leaves_a_float32_model(stage, loaded, reviews, tmp_path, monkeypatch):
    assert stage(precision="float32").model is loaded.model and stage().model is loaded.model  # a short training
    copied = stage(precision="bfloat16").model
    assert copied is not loaded.model and copied.get_layer("head").compute_dtype == "float32"
    assert "bfloat16" in {layer.compute_dtype for layer in copied._flatten_layers()}
    for ours, theirs in zip(loaded.model.get_weights(), copied.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    def fit(model, *_, stage, **named):
        model.set_weights([weight + 1 for weight in model.get_weights()])
        return [{"stage": stage}]

    monkeypatch.setattr(recipe, "fit_stage", fit)
    out = str(tmp_path / "run")
    trained = train_of(loaded, settings(reviews, method="finetune", precision="bfloat16", calibrate=False, out=out))
    assert {layer.compute_dtype for layer in trained.model._flatten_layers()} == {"float32"}
    for after, before in zip(trained.encoder.get_weights(), loaded.encoder.get_weights(), strict=True):
        np.testing.assert_allclose(after, before + 1, rtol=1e-6)
    for flags in (
        {"method": "lora"},
        {"method": "fewshot"},
        {"method": "frozen"},
        {"source": "hub:https://tfhub.dev/some/bert/1"},
    ):
        with pytest.raises(ValueError, match="--precision bfloat16 needs --method auto or finetune"):
            settings(reviews, precision="bfloat16", **flags)


def test_precision_auto_is_float32_where_there_is_one_model_only(loaded, reviews, monkeypatch):
    monkeypatch.setattr("common.texts.precision.speedup_of_bfloat16", lambda: 9.0)
    found = [
        recipe.precision_of(settings(reviews, epochs=1000, **flags), loaded.tokens)
        for flags in ({}, {"method": "lora"}, {"method": "fewshot"}, {"source": "hub:https://tfhub.dev/some/bert/1"})
    ]
    assert found == ["mixed_bfloat16", "float32", "float32", "float32"]


def train_of(loaded, config: Config):
    """Train by the method of the settings."""
    run, precision = Run(config), recipe.precision_of(config, loaded.tokens)
    given = loaded.encoder, loaded.data, loaded.tokens, loaded.embeddings
    return recipe.train(run, *given, config.seed, run.clock, precision)


def test_pair_steps_and_pair_rate(reviews, loaded, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(contrastive, "tune_if_better", lambda *_, **named: found.append(named) or [])
    monkeypatch.setattr(recipe, "predict", lambda *_: np.full((30, 2), 0.5, "float32"))  # of no interest here
    for number, flags in enumerate(({}, {"pair_steps": 3, "pair_rate": 0.5})):
        train_of(loaded, settings(reviews, method="fewshot", out=str(tmp_path / str(number)), **flags))
    assert (found[0]["steps"], found[0]["learning_rate"]) == (contrastive.default_steps(30), 1e-4)
    assert (found[1]["steps"], found[1]["learning_rate"]) == (3, 0.5)


def test_method_frozen_trains_the_head_alone_and_dropout(reviews, loaded, tmp_path):
    before = loaded.encoder.get_weights()
    trained = train_of(loaded, settings(reviews, method="frozen", dropout=0.4, out=str(tmp_path / "run")))
    assert trained.model.get_layer("dropout").rate == 0.4 and trained.choice == ""
    assert {row["stage"] for row in trained.history} == {"head"}
    for kept, was in zip(trained.encoder.get_weights(), before, strict=True):
        np.testing.assert_array_equal(kept, was)


def test_method_auto_ends_with_the_last_epoch_unless_hopeless(stage):
    tuned, auto = stage(method="finetune"), stage(method="auto")
    assert (tuned.start_counts, tuned.keep_best, tuned.callbacks) == (True, True, [])
    assert (auto.start_counts, auto.keep_best) == (False, False)
    assert [type(one) for one in auto.callbacks] == [StopIfHopeless]


def test_method_auto_does_not_keep_what_validation_refutes(reviews, loaded, tmp_path, monkeypatch):
    """Fine-tuning that ruins the encoder: the result is the frozen source with its head."""

    def ruin(model, *_, stage, **named):
        model.set_weights([-3 * weight for weight in model.get_weights()])
        return [{"stage": stage}]

    monkeypatch.setattr(recipe, "fit_stage", ruin)
    trained = train_of(loaded, settings(reviews, method="auto", calibrate=False, out=str(tmp_path / "run")))
    assert {row["stage"] for row in trained.history} == {"head", "finetune"}
    assert "tried and is not kept" in trained.choice and "on 30 validation examples" in trained.choice
    np.testing.assert_allclose(trained.probabilities, trained.frozen["test"], atol=1e-5)
    for kept, was in zip(trained.encoder.get_weights(), loaded.encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, was)


def test_seeds_have_checkpoints_and_an_order_of_texts_of_their_own(stage, loaded, reviews):
    single, several = stage(), stage(seeds="0,1")
    assert (single.checkpoint.name, several.checkpoint.name) == ("finetune.npz", "finetune_seed0.npz")
    first, other = (next(iter(stage(train_with=seed).batches(0, 0)))[1] for seed in (0, 1))
    assert first.shape == other.shape and not np.array_equal(first, other)
    with pytest.raises(UserError, match="--seeds cannot be read"):
        settings(reviews, seeds="0;1")


def test_columns_encoding_limit_and_shots(reviews):
    data = recipe.load_data(settings(reviews))
    assert data.class_names == ("a", "b") and "café" in data.train.texts[0] and len(data.train) == 30
    assert len(recipe.load_data(settings(reviews, limit=10)).train) == 10
    shots, other = (recipe.load_data(settings(reviews, shots=3, seed=seed)) for seed in (0, 1))
    assert np.bincount(shots.train.labels).tolist() == [3, 3] and len(shots.test) == 30
    assert set(shots.train.texts) != set(other.train.texts)


def test_max_length_and_long_text(reviews, loaded):
    cut = recipe.tokenize(loaded.source, loaded.data, settings(reviews))[1]["train"]
    whole = recipe.tokenize(loaded.source, loaded.data, settings(reviews, long_text="windows"))[1]["train"]
    short = recipe.tokenize(loaded.source, loaded.data, settings(reviews, max_length=8))[1]["train"]
    assert max(cut.row_lengths) == 16 and max(short.row_lengths) == 8
    assert set(cut.rows_of_text) == {1} and max(whole.rows_of_text) > 1


def test_word_vectors(reviews, loaded, tmp_path):
    (tmp_path / "vectors.txt").write_text("good 1 0\nbad 0 1\n", "utf-8")
    config = settings(reviews, baselines="vectors", word_vectors=str(tmp_path / "vectors.txt"))
    found, rows, _ = recipe.baseline("vectors", None, SimpleNamespace(config=config), loaded.data, None, 0)
    assert (found["test"].argmax(axis=1) == loaded.data.test.labels).all() and rows == []


@pytest.fixture(scope="module")
def runs(loaded, reviews, tmp_path_factory):
    """Two runs of main, without calibration (and without memory for word counts) and with it; the order of its steps.

    The export and its proof are left out: they do not depend on these flags.
    """
    steps, found = [], []

    def no_memory(*_):
        steps.append("words")
        raise MemoryError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recipe, "load_text_source", lambda _: loaded.source)
        patched.setattr(recipe.exporting, "save_keras_model", lambda *_: steps.append("export"))
        patched.setattr(recipe, "export_text_classifier", lambda *_, **named: None)
        patched.setattr(recipe, "write_serving_files", lambda *_, **named: None)
        patched.setattr(recipe.exporting, "size_report", lambda *_: {})
        proof = {"passed": True, "examples": 30, "max_abs_diff": 0.0}
        patched.setattr(recipe, "prove_text_classifier", lambda *_: steps.append("proof") or proof)
        for calibrate in (False, True):
            out = tmp_path_factory.mktemp("run")
            with pytest.MonkeyPatch.context() as again:
                if not calibrate:
                    again.setattr(recipe, "tfidf_probabilities", no_memory)
                found.append(
                    recipe.main(settings(reviews, method="frozen", explain=False, out=str(out), calibrate=calibrate))
                )
    return SimpleNamespace(raw=found[0], calibrated=found[1], steps=steps, report=out / "report.html")


def test_the_frozen_method_and_its_baseline_are_the_same_and_calibrated_alike(runs):
    assert runs.raw["test"]["ece"] != runs.calibrated["test"]["ece"]
    for found in (runs.raw, runs.calibrated):
        ours, theirs = found["test"], found["baselines"]["frozen"]
        for score in ("accuracy", "macro_f1", "ece"):
            assert theirs[score] == pytest.approx(ours[score], abs=1e-4)


def test_baselines_come_after_the_proof_and_may_fail(runs):
    assert runs.steps[:3] == ["export", "proof", "words"]
    assert set(runs.raw["baselines"]) == {"frozen"} and set(runs.calibrated["baselines"]) == {"frozen", "words"}


def test_seconds_of_the_baselines(runs):
    words = runs.calibrated["baselines"]["words"]["seconds"]
    assert runs.calibrated["seconds"]["baselines"] == pytest.approx(words, abs=0.05)
    assert not [stage for stage in runs.calibrated["seconds"] if stage.startswith("baseline_")]


@pytest.mark.slow
def test_two_seeds_resume_and_the_better_one_on_validation_is_exported(reviews, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    monkeypatch.setattr(recipe, "best_on_validation", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(settings(reviews, seeds="0,1", epochs=1, baselines="frozen,scratch", out=str(out)))
    assert {file.name for file in (out / "checkpoints").glob("*.npz")} == {"finetune_seed0.npz", "finetune_seed1.npz"}

    def second(labels, candidates):
        assert list(candidates) == [0, 1] and len(labels) == len(candidates[0]) == 30
        return 1

    monkeypatch.setattr(recipe, "best_on_validation", second)
    found = recipe.main(Config(resume=str(out)))
    assert found["proof"]["passed"] and set(found["seeds"]) == {"0", "1"}
    assert {name: found["test"][name] for name in ("accuracy", "ece")} == pytest.approx(
        {name: found["seeds"]["1"]["test"][name] for name in ("accuracy", "ece")}
    )
    of_scratch = [found["seeds"][seed]["baselines"]["scratch"] for seed in ("0", "1")]
    assert of_scratch[0] != of_scratch[1] and found["std"]["baselines"]["frozen"]["accuracy"] == 0
    assert found["mean"]["baselines"]["scratch"]["ece"] == pytest.approx(np.mean([one["ece"] for one in of_scratch]))
    assert found["baselines"]["scratch"]["ece"] == pytest.approx(of_scratch[1]["ece"])
    report = (out / "report.html").read_text("utf-8")
    assert "the seeds 0, 1" in report and "Fine-tuning" in report


@pytest.mark.slow
def test_an_interrupted_baseline_leaves_the_export_and_resumes(reviews, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    config = settings(reviews, method="frozen", out=str(tmp_path / "run"))
    with monkeypatch.context() as patched:
        patched.setattr(recipe, "tfidf_probabilities", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recipe.main(config)
    assert list((tmp_path / "run" / "serving").rglob("saved_model.pb"))
    found = recipe.main(Config(resume=str(tmp_path / "run")))
    assert set(found["baselines"]) == {"frozen", "words"} and found["proof"]["passed"]
    assert "calibration" in found  # --explain


def test_runs_from_before_resume_with_their_calibration(reviews, tmp_path):
    before = dataclasses.asdict(settings(reviews)) | {"calibrate": False, "class_weights": "none"}
    (tmp_path / "config.json").write_text(json.dumps(before), "utf-8")
    config = Run(Config(resume=str(tmp_path))).config
    assert (config.calibrate, config.class_weights) == (False, "none")
    assert (Config().calibrate, Config().class_weights) == (True, "auto")


# Where the effect of each flag is shown: a test of this file, or FOLDER/FILE.py::TEST below tests.
EFFECTS = {
    "data": "texts/test_dataset.py::test_the_same_texts_from_every_kind_of_file",
    "text_column": "test_columns_encoding_limit_and_shots",
    "split_column": "texts/test_dataset.py::test_a_split_column_of_another_name",
    "group": "texts/test_dataset.py::test_a_document_stays_in_one_split",
    "label_column": "test_columns_encoding_limit_and_shots", "encoding": "test_columns_encoding_limit_and_shots",
    "source": "texts/test_sources.py::test_roberta_loads_as_transformers_saves_it",
    "out": "recipes/test_recipes.py::test_finished_run_is_not_overwritten",
    "resume": "test_runs_from_before_resume_with_their_calibration",
    "save_every": "test_batches_epochs_patience_and_checkpoints",
    "method": "test_method_auto_does_not_keep_what_validation_refutes", "max_length": "test_max_length_and_long_text",
    "long_text": "test_max_length_and_long_text", "epochs": "test_batches_epochs_patience_and_checkpoints",
    "batch_size": "test_batches_epochs_patience_and_checkpoints",
    "learning_rate": "test_learning_rates_of_encoder_and_head", "layer_decay": "test_layer_decay",
    "head_rate": "test_learning_rates_of_encoder_and_head", "weight_decay": "test_weight_decay",
    "dropout": "test_method_frozen_trains_the_head_alone_and_dropout",
    "label_smoothing": "test_label_smoothing", "gradient_norm": "test_gradient_norm",
    "pair_steps": "test_pair_steps_and_pair_rate", "pair_rate": "test_pair_steps_and_pair_rate",
    "rank": "test_rank_and_method_lora",
    "precision": "test_precision_trains_a_copy_and_leaves_a_float32_model", "class_weights": "test_class_weights",
    "patience": "test_batches_epochs_patience_and_checkpoints",
    "baselines": "test_baselines_come_after_the_proof_and_may_fail", "word_vectors": "test_word_vectors",
    "calibrate": "test_the_frozen_method_and_its_baseline_are_the_same_and_calibrated_alike",
    "explain": "test_an_interrupted_baseline_leaves_the_export_and_resumes",
    "tensorboard": "test_tracking.py::test_tensorboard_reads_the_curves_of_a_stage",
    "mlflow": "test_tracking.py::test_mlflow_holds_settings_curves_and_report",
    "folds": "recipes/test_user_ways.py::test_long_texts_in_windows_and_cross_validation", 
    "strict": "texts/test_dataset.py::test_texts_without_visible_characters_are_skipped_and_counted",
    "shots": "test_columns_encoding_limit_and_shots", "limit": "test_columns_encoding_limit_and_shots",
    "seed": "test_columns_encoding_limit_and_shots",
    "seeds": "test_seeds_have_checkpoints_and_an_order_of_texts_of_their_own",
}  # fmt: skip


def test_every_flag_has_a_test_of_its_effect():
    check_effects(EFFECTS, Config, Path(__file__))
