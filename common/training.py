"""Training stages: compile, fit with warm-up and cosine decay, keep the best epoch on validation, show time left."""

from __future__ import annotations

import contextlib
import functools
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from common.progress import ProgressLine, format_seconds


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Build layers under a Keras dtype policy such as `mixed_bfloat16`, then restore the previous one."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@functools.cache
def _mirrored_strategy() -> tf.distribute.MirroredStrategy:
    # One for the whole process: a second one fails as soon as its models have other shapes.
    return tf.distribute.MirroredStrategy()


def devices(mirrored: bool) -> contextlib.AbstractContextManager:
    """Return the scope in which to build and train a model: all devices of this host, or the default one.

    Args:
        mirrored: whether every GPU (or logical device) holds a copy of the model and processes its share of each
            batch (tf.distribute.MirroredStrategy); set their number with CUDA_VISIBLE_DEVICES.

    Returns:
        A context manager.
    """
    if not mirrored:
        return contextlib.nullcontext()
    strategy = _mirrored_strategy()
    print(f"mirrored on {strategy.num_replicas_in_sync} device(s)")
    return strategy.scope()


# How Keras, KerasHub, TF Hub's modules and Sonnet name biases and the parameters of normalisation and scaling layers.
_UNDECAYED = re.compile(r"((.*_)?(bias|biases|beta|gamma|scale|offset|scalar|lambda)|b)(_table)?_?\d*")


def decays(variable: keras.Variable) -> bool:
    """Return whether weight decay applies to a variable: not to biases and the parameters of normalisation layers.

    As in BERT's optimizer, whose exceptions are given by name as well (arXiv:1810.04805): kernels and embeddings decay.
    The shape does not decide, since the biases of an attention layer have two dimensions; only a vector of a SavedModel
    without any name is taken for a bias.

    Args:
        variable: its path names its layer and its role: `query/bias`, `bn.gamma`, `kernel:0`.
    """
    *_, layer, role = ["", *re.split(r"[/.]", variable.path.partition(":")[0].lower())]
    if re.fullmatch(r"variable(_\d+)?", role):
        return len(variable.shape) > 1
    of_norm = "norm" in layer and re.fullmatch(r"w|weight(_\d+)?", role)  # T5's, and those converted from PyTorch
    return not (of_norm or _UNDECAYED.fullmatch(role))


class DiscriminativeAdamW(keras.optimizers.Adam):
    """AdamW with a learning rate per layer (discriminative fine-tuning, arXiv:1801.06146).

    Decay is decoupled (arXiv:1711.05101; done here, since that of Keras supports only one learning rate), and leaves
    out biases and the parameters of normalisation layers (`decays`).

    Args:
        slower: pairs of variables and the factor of their learning rate.
        weight_decay: factor of the weight that is subtracted at each step, times the learning rate.
        **arguments: as for keras.optimizers.Adam.
    """

    def __init__(self, *, slower=(), weight_decay: float = 0.0, **arguments):
        super().__init__(**arguments)
        self._factor_of = {id(variable): factor for variables, factor in slower for variable in variables}
        self._decay = weight_decay
        self._factors: list[float] = []
        self._decays: list[float] = []

    def build(self, variables):
        super().build(variables)
        self._factors = [self._factor_of.get(id(variable), 1.0) for variable in variables]
        self._decays = [self._decay * decays(variable) for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        number = self._get_variable_index(variable)
        rate, decay = learning_rate * self._factors[number], self._decays[number]
        if decay:
            self.assign_sub(variable, variable * keras.ops.cast(rate * decay, variable.dtype))
        if not isinstance(gradient, tf.Tensor) or self.amsgrad or tf.distribute.has_strategy():
            super().update_step(gradient, variable, rate)
            return
        # The same as Keras' update, in one operation: for large networks on a CPU, a dozen passes over all weights cost
        # a good part of a step.
        var, m, v = (
            (one.value if isinstance(one, keras.Variable) else one).handle
            for one in (variable, self._momentums[number], self._velocities[number])
        )
        step = tf.cast(self.iterations.value + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=var, m=m, v=v, beta1_power=self.beta_1**step, beta2_power=self.beta_2**step, grad=gradient,
            lr=tf.cast(rate, tf.float32), beta1=self.beta_1, beta2=self.beta_2, epsilon=self.epsilon,
        )  # fmt: skip


def warmup_cosine(peak: float, steps: int, warmup_share: float = 0.1) -> keras.optimizers.schedules.CosineDecay:
    """Return a schedule that rises linearly to `peak` over the first share of the steps, then falls to 0."""
    warmup = max(1, int(steps * warmup_share))
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0, decay_steps=max(1, steps - warmup), warmup_target=peak, warmup_steps=warmup
    )


class KeepBest(keras.callbacks.Callback):
    """Keep the weights of the best epoch on validation; stop when there is no improvement.

    Args:
        patience: epochs without improvement before stopping; None never stops early.
        rival: (logs, weights) of the model before this stage: kept where no epoch improves on it.
        rank: logs of an epoch -> numbers to compare, higher is better, the first one first.
    """

    def __init__(
        self,
        patience: int | None,
        rival: tuple[dict[str, float], list[np.ndarray]] | None = None,
        rank: Callable[[dict], tuple[float, ...]] | None = None,
    ):
        super().__init__()
        self.patience, self.best_epoch = patience, 0
        self.rank = rank or by_accuracy
        logs, self.weights = rival or (None, None)
        self.best = self.rank(logs) if logs else (-np.inf,)

    def on_train_begin(self, logs=None):
        if self.weights is None:
            self.weights = self.model.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        rank = self.rank(logs)
        if rank > tuple(self.best):
            self.best, self.best_epoch, self.weights = rank, epoch + 1, self.model.get_weights()
        elif self.patience is not None and epoch + 1 - self.best_epoch >= self.patience:
            self.model.stop_training = True


class StopIfHopeless(keras.callbacks.Callback):
    """Stop fine-tuning that does not approach the frozen source: half-way, its loss is still far above.

    That is half as much again, and 0.5 above, since label smoothing lifts the loss of a good model too. Warm-up lets
    the loss rise at first, so nothing is decided before half of the epochs.

    Args:
        epochs: planned.
        limit: cross-entropy of the frozen source on validation.
    """

    def __init__(self, epochs: int, limit: float):
        super().__init__()
        self.half, self.limit = epochs / 2, max(1.5 * limit, limit + 0.5)

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 >= self.half and logs["val_cross_entropy"] > self.limit:
            print("  finetune: stopped, its loss stays far above that of the frozen source")
            self.model.stop_training = True


def by_accuracy(logs: dict[str, float]) -> tuple[float, float]:
    """Rank an epoch by its validation accuracy, ties by the lowest cross-entropy."""
    return round(float(logs["val_accuracy"]), 6), -float(logs["val_cross_entropy"])


class EpochLines(keras.callbacks.Callback):
    """Print one line per epoch with the time left, and collect the rows of history.csv.

    Args:
        stage: name of the stage.
        epochs: planned number of epochs.
        steps: steps per epoch.
        scores: validation scores to print.
    """

    def __init__(self, stage: str, epochs: int, steps: int, scores: Sequence[str] = ("accuracy",)):
        super().__init__()
        self.stage, self.epochs, self.steps, self.scores = stage, epochs, steps, scores
        self.rows: list[dict] = []

    def on_train_begin(self, logs=None):
        # A resumed stage estimates the time left from the epochs of this process.
        self.first_epoch = len(self.rows)
        self.progress = ProgressLine(self.stage, (self.epochs - self.first_epoch) * self.steps)

    def on_train_batch_end(self, batch, logs=None):
        done = (len(self.rows) - self.first_epoch) * self.steps + batch + 1
        self.progress.update(done, f" steps, loss {logs['loss']:.3f}")

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({"stage": self.stage, "epoch": epoch + 1, **{k: float(v) for k, v in logs.items()}})
        seconds = (time.monotonic() - self.progress.started) / (epoch + 1 - self.first_epoch)
        left = seconds * (self.epochs - epoch - 1)
        start = "\r\033[K" if sys.stdout.isatty() else ""
        shown = ("loss", "val_loss", *(f"val_{score}" for score in self.scores))
        scores = ", ".join(f"{name} {logs[name]:.4f}" for name in shown if name in logs)
        text = f"{start}  {self.stage} {epoch + 1}/{self.epochs}: {scores}, {format_seconds(left)} left"
        print(text, flush=True)


def use_xla() -> bool | str:
    """Return Keras' own choice on an accelerator, and False where XLA slows down (CPU) or fails (several devices)."""
    return "auto" if tf.config.list_physical_devices("GPU") and not tf.distribute.has_strategy() else False


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copy all weights by position between two builds of one architecture, whatever their dtype policies."""
    target.set_weights(source.get_weights())


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return a pipeline that keeps the parallelism it was written with, and ends at once.

    tf.data's autotuning sleeps longer and longer in a thread of its own, for which whoever drops an iterator waits: a
    training of a minute may end half a minute late. See tests/test_pipelines.py.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def pipeline_of(batches: Callable[[], Iterator], signature, ahead: int = 8) -> tf.data.Dataset:
    """Return the batches of a generator function as a pipeline that prepares some of them ahead, of this signature."""
    return without_autotune(tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(ahead))


def speedup_of_bfloat16(rows: int = 1024, width: int = 768, repeats: int = 9) -> float:
    """Return how many times as fast products of matrices are in bfloat16, by timing both in turn.

    Args:
        rows: tokens of a batch.
        width: of the left matrix; the right one is four times as wide, as in the feed-forward layers of an encoder.
        repeats: of each; medians count.
    """
    seconds = {"float32": [], "bfloat16": []}
    pairs = {name: (tf.ones((rows, width), name), tf.ones((width, 4 * width), name)) for name in seconds}
    for repeat in range(repeats + 1):
        for name, (left, right) in pairs.items():
            began = time.monotonic()
            float(tf.cast(tf.linalg.matmul(left, right)[0, 0], tf.float32))  # waits for the product, copies no more
            if repeat:  # the first prepares kernels
                seconds[name].append(time.monotonic() - began)
    return statistics.median(seconds["float32"]) / statistics.median(seconds["bfloat16"])
