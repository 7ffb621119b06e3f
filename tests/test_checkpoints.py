"""Killed, interrupted and disturbed trainings end as if nothing had happened."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import checkpoints, progress, runs, training
from common.checkpoints import StageState, fit_with_checkpoints, load_stage, save_stage, stop_at_next_step
from common.classification.training import fit_stage
from common.errors import UserError
from common.images.features import extract_features
from common.images.pixels import read_images
from common.images.sources import Source

EPOCHS, STEPS, BATCH = 4, 5, 8
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(STEPS * BATCH, 6)).astype("float32")
TARGETS = np.eye(3, dtype="float32")[RNG.integers(0, 3, len(INPUTS))]


class Killed(Exception):
    """Stands for the end of the process."""


def batches_from(epoch: int, step: int) -> tf.data.Dataset:
    """Shuffled batches without end, from (epoch, step) on."""
    orders = np.concatenate([np.random.default_rng(e).permutation(len(INPUTS)) for e in range(epoch, EPOCHS + 1)])
    orders = orders[step * BATCH :]
    return tf.data.Dataset.from_tensor_slices((INPUTS[orders], TARGETS[orders])).batch(BATCH)


def fit(path: Path | None, *, killed_at: int | None = None, patience: int | None = None, rate=0.05, save_every=0.0):
    """Train a net with dropout and BatchNorm; `killed_at` counts the steps of this call."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(16, activation="relu")(inputs)
    hidden = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(hidden))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(hidden))
    steps = []

    def count(batch, logs):
        steps.append(batch)
        if len(steps) == killed_at:
            raise Killed

    rows = fit_stage(
        model, batches_from, stage="test", epochs=EPOCHS, steps=STEPS, checkpoint=path, patience=patience,
        validation=tf.data.Dataset.from_tensor_slices((INPUTS, TARGETS)).batch(64),
        optimizer=training.DiscriminativeAdamW(
            learning_rate=training.warmup_cosine(rate, EPOCHS * STEPS), weight_decay=0.1,
            slower=[(model.layers[1].variables, 0.3)],
        ),
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_begin=count)], save_every=save_every,
    )  # fmt: skip
    return model, rows, len(steps)


@pytest.fixture(scope="module")
def whole():
    """A stage that nobody disturbed."""
    return fit(None)


def assert_equal(first, second) -> None:
    assert first[1] == second[1]
    for a, b in zip(first[0].get_weights(), second[0].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("step", [2, 6, 13])  # in the first epoch, at the first step of an epoch, in a later one
def test_a_killed_stage_ends_at_the_same_weights_and_history(tmp_path, whole, step):
    with pytest.raises(Killed):
        fit(tmp_path / "stage.npz", killed_at=step)
    resumed = fit(tmp_path / "stage.npz")
    assert_equal(whole, resumed)
    assert resumed[2] <= EPOCHS * STEPS - step + 2  # the rest, and the step that makes the variables


def test_a_stage_of_no_passes_changes_nothing(tmp_path):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("adam", "mse")
    before = model.get_weights()
    for _ in range(2):  # and once more, from its checkpoint
        rows = checkpoints.fit_with_checkpoints(
            model, batches_from, epochs=0, lines=training.EpochLines("none", 0, STEPS), keep=training.KeepBest(None),
            checkpoint=tmp_path / "none.npz",
        )  # fmt: skip
        assert rows == []
        np.testing.assert_array_equal(model.get_weights()[0], before[0])


@pytest.mark.slow
def test_a_stage_killed_again_and_again_ends_at_the_same_weights(tmp_path, whole):
    for _ in range(2):
        with pytest.raises(Killed):
            fit(tmp_path / "stage.npz", killed_at=6)
    assert_equal(whole, fit(tmp_path / "stage.npz"))


def test_a_finished_stage_hands_on_its_best_weights_without_training(tmp_path):
    first = fit(tmp_path / "stage.npz")
    again = fit(tmp_path / "stage.npz")
    assert_equal(first, again)
    assert again[2] == 0


@pytest.mark.slow
def test_early_stopping_is_remembered(tmp_path):
    whole = fit(None, patience=1, rate=3.0)
    assert len(whole[1]) < EPOCHS
    path = tmp_path / "stage.npz"
    with pytest.raises(Killed):
        fit(path, patience=1, rate=3.0, killed_at=STEPS * (len(whole[1]) - 1) + 1)
    assert_equal(whole, fit(path, patience=1, rate=3.0))


def test_a_stage_that_stopped_early_and_was_killed_before_its_end_does_not_go_on(tmp_path):
    path = tmp_path / "stage.npz"
    monkey = pytest.MonkeyPatch()
    whole = fit(None, patience=1, rate=3.0)

    def die(model, weights):
        raise Killed

    monkey.setattr(keras.Model, "set_weights", die)  # what comes first after the last epoch
    with pytest.raises(Killed):
        fit(path, patience=1, rate=3.0)
    monkey.undo()
    assert load_stage(path)[0].stopped
    resumed = fit(path, patience=1, rate=3.0)
    assert_equal(whole, resumed)
    assert resumed[2] <= 1


@pytest.mark.parametrize("killed_at", [EPOCHS * STEPS, None])
def test_a_stage_that_keeps_its_last_weights_resumes_too(tmp_path, killed_at):
    def run(path, killed_at=0):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation="softmax")])
        model.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy")
        steps = []

        def count(batch, logs):
            steps.append(batch)
            if len(steps) == killed_at:
                raise Killed

        rows = fit_with_checkpoints(
            model, batches_from, epochs=EPOCHS, lines=training.EpochLines("test", EPOCHS, STEPS), checkpoint=path,
            save_every=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_begin=count)],
        )  # fmt: skip
        return model, rows, len(steps)

    whole, path = run(None), tmp_path / "stage.npz"
    if killed_at:
        with pytest.raises(Killed):
            run(path, killed_at)
    else:  # after the last epoch, before the stage was marked as over
        monkey = pytest.MonkeyPatch()
        original = checkpoints.save_stage
        monkey.setattr(
            checkpoints, "save_stage", lambda path, state, **rest: None if state.done else original(path, state, **rest)
        )
        run(path)
        monkey.undo()
        assert load_stage(path)[0].epoch == EPOCHS and not load_stage(path)[0].done
    assert_equal(whole, run(path))


def test_without_time_between_saves_nothing_is_written_but_the_end(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path / "stage.npz", killed_at=12, save_every=60)
    assert not (tmp_path / "stage.npz").exists()
    fit(tmp_path / "stage.npz", save_every=60)
    assert load_stage(tmp_path / "stage.npz")[0].done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_at_the_next_step_and_saves(tmp_path, capsys, number):
    path = tmp_path / "stage.npz"
    before = signal.getsignal(number)
    send = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: os.kill(os.getpid(), number) if batch == 2 else None
    )
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "categorical_crossentropy")
    with pytest.raises(KeyboardInterrupt):
        fit_with_checkpoints(
            model, batches_from, epochs=EPOCHS, lines=training.EpochLines("test", EPOCHS, STEPS),
            checkpoint=path, save_every=60, callbacks=[send],
        )  # fmt: skip
    state, _ = load_stage(path)
    assert (state.epoch, state.step, state.done) == (0, 3, False)
    assert "Ctrl-C again stops at once" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_the_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), stop_at_next_step() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        pytest.fail("went on")


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "stage.npz"
    save_stage(path, StageState(), model=[np.zeros(1000)])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"cannot be read.*rm .*stage\.npz"):
        load_stage(path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "stage.npz"
    save_stage(path, StageState(epoch=1, done=True), model=[np.zeros((2, 2))])
    with pytest.raises(UserError, match="belongs to another model"):
        fit(path)


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(tmp_path):
    """RLIMIT_FSIZE makes the kernel refuse what is written beyond it, as a full disk does."""
    script = f"""
import resource, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from pathlib import Path
import test_checkpoints as t
path = Path({str(tmp_path / "stage.npz")!r})
t.save_stage(path, t.StageState(epoch=0), model=[])
before = path.read_bytes()
path.unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
model, rows, steps = t.fit(path)
assert len(rows) == t.EPOCHS and not list(path.parent.glob("*")), list(path.parent.glob("*"))
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("checkpoint not written: File too large; there is none yet; training continues") == 1


def test_an_interrupted_save_leaves_the_one_before(tmp_path):
    path = tmp_path / "stage.npz"
    save_stage(path, StageState(epoch=1), model=[np.arange(3.0)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            save_stage(path, StageState(epoch=2), model=[np.zeros(10_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    state, arrays = load_stage(path)
    assert state.epoch == 1 and list(arrays["model"][0]) == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["stage.npz"]


# --- features ---------------------------------------------------------------------------------------------------


def test_features_go_on_where_they_were_stopped(two_classes, tmp_path):
    images = read_images(sorted(str(path) for path in two_classes.rglob("*.png")), (8, 8))
    pixels = keras.Input((8, 8, 3))
    looked = []

    class Watch(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.mean(inputs, axis=(1, 2))

    extractor = keras.Model(pixels, Watch()(pixels))
    source = Source("toy", extractor, extractor, (8, 8), {})
    options = dict(batch_size=8, views=2, augment=("flip", "color"), save_every=0)
    whole = np.array(extract_features(source, images, tmp_path / "whole", **options))

    class Dying:
        """An extractor whose process ends after seven batches."""

        def __init__(self):
            self.output, self.get_config, self.weights = extractor.output, extractor.get_config, extractor.weights

        def __call__(self, images, training):
            looked.append(1)
            return extractor(images, training=training)

    dying = dataclasses.replace(source, extractor=Dying())
    original = checkpoints.StopRequest
    assert not original.asked
    sent = []

    def send_after_seven(progress, done, note=""):
        sent.append(done)
        if len(sent) == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkey = pytest.MonkeyPatch()
    monkey.setattr(progress.ProgressLine, "update", send_after_seven)
    try:
        with pytest.raises(KeyboardInterrupt):
            extract_features(dying, images, tmp_path / "cut", **options)
        monkey.setattr(progress.ProgressLine, "update", lambda progress, done, note="": sent.append(done))
        resumed = np.array(extract_features(dying, images, tmp_path / "cut", **options))
    finally:
        monkey.undo()
    np.testing.assert_array_equal(resumed, whole)
    assert len(sent) == 10  # 5 batches of 2 views: no batch was looked at twice
    assert [file.suffix for file in (tmp_path / "cut").iterdir()] == [".npy"]


# --- the run folder ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    out: str = "runs/toy"
    resume: str | None = None
    epochs: int = 3
    filters: tuple[int, ...] = (1, 2)


def stopped_run(tmp_path: Path, **settings) -> Path:
    out = tmp_path / "run"
    runs.start(Config(out=str(out), **settings))
    save_stage(out / "checkpoints" / "head.npz", StageState(), model=[])
    return out


def test_resume_takes_the_settings_of_the_run(tmp_path):
    out = stopped_run(tmp_path, epochs=7, filters=(3,))
    settings = runs.start(Config(resume=str(out)))
    assert settings == Config(out=str(out), resume=str(out), epochs=7, filters=(3,))


def test_resume_removes_an_export_that_was_never_proved(tmp_path):
    out = stopped_run(tmp_path)
    (out / "serving" / "toy" / "1").mkdir(parents=True)
    runs.start(Config(resume=str(out)))
    assert not (out / "serving").exists()


@pytest.mark.parametrize(
    ("prepare", "config", "told"),
    [
        (lambda out: None, {"epochs": 5}, r"Leave out --epochs"),
        (lambda out: (out / "metrics.json").write_text("{}"), {}, "this run is finished"),
        (lambda out: (out / "config.json").unlink(), {}, "holds no run that was stopped"),
        (lambda out: (out / "config.json").write_text("{"), {}, "config.json is not of this recipe"),
        (lambda out: (out / "config.json").write_text('{"colour": 1}'), {}, "config.json is not of this recipe"),
    ],
)
def test_what_cannot_be_resumed_is_said(tmp_path, prepare, config, told):
    out = stopped_run(tmp_path)
    prepare(out)
    with pytest.raises(UserError, match=told):
        runs.start(Config(resume=str(out), **config))


def test_a_stopped_run_is_not_overwritten_and_a_started_one_is(tmp_path):
    out = stopped_run(tmp_path)
    with pytest.raises(UserError, match=r"holds a run that was stopped. Continue it: --resume"):
        runs.start(Config(out=str(out)))
    (out / "checkpoints" / "head.npz").unlink()  # nothing learned yet
    assert runs.start(Config(out=str(out), epochs=9)).epochs == 9


def test_changed_inputs_are_refused(tmp_path):
    out = stopped_run(tmp_path)
    runs.remember_inputs(out, "abc")
    runs.remember_inputs(out, "abc")
    with pytest.raises(UserError, match="changed since this run was started"):
        runs.remember_inputs(out, "abd")


def test_the_stopwatch_goes_on(tmp_path):
    path = tmp_path / "checkpoints" / "seconds.json"
    watch = runs.Stopwatch(path)
    with watch("head"):
        time.sleep(0.05)
    later = runs.Stopwatch(path)
    assert later.report()["head"] == pytest.approx(0.05, abs=0.04) and later.report()["total"] >= 0.05


def test_a_finished_run_keeps_no_checkpoints(tmp_path):
    out = stopped_run(tmp_path)
    runs.finish(out, {"test": {}}, [{"stage": "head", "epoch": 1}])
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "history.csv", "metrics.json"]
