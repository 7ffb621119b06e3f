"""A linear softmax head on stored features: fitted by L-BFGS, with a penalty chosen on validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

from common.progress import ProgressLine


def mean_and_std(features: Sequence[np.ndarray], chunk: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each feature, reading the memory map in chunks.

    Args:
        features: float32 [views, n, width], or arrays of any length, each [n, width].
        chunk: rows read at once.

    Returns:
        (mean, std), float32 [width]; a feature that never changes, but for rounding, has std 1.
    """
    count, total, squares = 0, 0.0, 0.0
    for view in features:
        for start in range(0, len(view), chunk):
            rows = np.asarray(view[start : start + chunk], np.float64)
            count, total, squares = count + len(rows), total + rows.sum(0), squares + np.square(rows).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    noise = 1e-6 * (np.abs(mean) + std.max())  # below float32 precision; dividing by it would amplify rounding
    return mean.astype("float32"), np.where(std > noise, std, 1.0).astype("float32")


# Strong to weak, per example and on standardised features: from a handful of images to hundreds of thousands.
PENALTIES = tuple(float(penalty) for penalty in np.geomspace(10.0, 1e-5, 13))

# Fine-tuning starts from a head with weights at least this small: an overconfident head gives the backbone small
# gradients at first and large ones later. Chosen on training splits: benchmarks/results/unfreeze_choice.json.
START_PENALTY = 3.0

# Fine-tuned features separate the training examples that they were tuned on: the head is fitted on them anew with a
# penalty at least this large.
REFIT_PENALTY = 0.1

FOLDS = 5  # of validation, in cross-fitting

_IN_MEMORY = 2**28  # bytes of features that are standardised once; more are read again in each iteration


def fit_linear_head(
    head: keras.layers.Dense,
    train: np.ndarray,
    train_labels: np.ndarray,
    val: np.ndarray,
    val_labels: np.ndarray,
    *,
    sample_weights: np.ndarray | None = None,
    penalties: Sequence[float] = PENALTIES,
    patience: int = 2,
) -> list[dict]:
    """Fit a linear softmax head on stored features and set the weights of the model's head.

    Multinomial logistic regression by L-BFGS on all features, for falling penalties on the squared weights, each
    starting from the previous solution; validation cross-entropy selects one. The features are standardised, so that
    the same penalties suit every backbone; the standardisation is folded into the head's weights.

    Args:
        head: the Dense layer of the model, [width] -> [classes]; its weights are set.
        train: float32 [views, n, width].
        train_labels: int [n].
        val: float32 [m, width].
        val_labels: int [m].
        sample_weights: float32 [n]; all 1 where None.
        penalties: falling.
        patience: penalties without improvement on validation before stopping.

    Returns:
        A history row per penalty: stage, epoch (its number), penalty, loss, val_loss, val_accuracy,
        val_cross_entropy.
    """
    weights = np.ones(train.shape[1], "float32") if sample_weights is None else sample_weights
    objective = _PenalisedRegression([(view, train_labels, weights) for view in train], head.units)
    progress = ProgressLine("head", len(penalties))
    solution, best, history = objective.start(), (np.inf, 0, None), []
    for number, penalty in enumerate(penalties, start=1):
        solution, loss = objective.minimise(solution, penalty)
        head.set_weights(objective.kernel_and_bias(solution))
        probabilities = predict_head(head, val)
        scores = {f"val_{name}": value for name, value in score(probabilities, val_labels).items()}
        cross_entropy = scores["val_cross_entropy"]
        history.append({"stage": "head", "epoch": number, "penalty": penalty, "loss": loss, **scores})
        progress.update(number)
        if cross_entropy < best[0]:
            best = (cross_entropy, number, head.get_weights())
        elif number - best[1] >= patience:
            break
    head.set_weights(best[2])
    chosen = history[best[1] - 1]
    progress.close(f"; penalty {chosen['penalty']:.3g}, validation accuracy {chosen['val_accuracy']:.4f}")
    return history


def linear_head_weights(
    pieces: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: int, penalty: float,
    start: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Return the weights of a linear softmax head on stored features for one penalty, as `fit_linear_head` finds them.

    Args:
        pieces: (features float32 [n, width], labels int [n], weights float32 [n]) of each split and view.
        classes: of the head.
        penalty: on the squared weights, for standardised features.
        start: kernel and bias of a head on similar pieces, from which the optimum is a few steps away.

    Returns:
        Kernel [width, classes] and bias [classes], as a Dense layer takes them.
    """
    objective = _PenalisedRegression(pieces, classes)
    solution, _ = objective.minimise(objective.start(start), penalty)
    return objective.kernel_and_bias(solution)


def fit_on_both(
    head: keras.layers.Dense, train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray, *,
    sample_weights: np.ndarray, val_weights: np.ndarray, penalty: float, val_groups: np.ndarray | None = None,
    start: Sequence[np.ndarray] | None = None,
) -> np.ndarray:  # fmt: skip
    """Fit the head that is exported: with a given penalty, on train and validation.

    Args:
        head, train, train_labels, val, val_labels, sample_weights: as for `fit_linear_head`.
        val_weights: of the validation examples, float32 [m]; they are repeated once per view of the training ones.
        penalty: on the squared weights, for standardised features.
        val_groups: number of the group of each validation example, int [m]: a group is in one fold, or its examples
            would be answered by a head that has seen others of it. None: each example is a group of its own.
        start: kernel and bias of a head that was fitted on train, where there is one.

    Returns:
        Probabilities for validation, float32 [m, classes], for all further choices. Each example is answered by a head
        that was fitted on train and on the other folds of validation (cross-fitting): with few labels, a head on train
        alone would be much worse than the one that is exported.
    """
    views = [(view, train_labels, sample_weights) for view in train]
    groups = np.arange(len(val)) if val_groups is None else np.unique(val_groups, return_inverse=True)[1]
    fold = (np.random.default_rng(0).permutation(groups.max() + 1) % FOLDS)[groups]
    probabilities = np.empty((len(val), head.units), "float32")
    on_train = linear_head_weights(views, head.units, penalty, start)  # all others are near it

    def fit(own: np.ndarray) -> None:
        more = [(val[own], val_labels[own], val_weights[own])] * len(views) if own.any() else []
        head.set_weights(linear_head_weights([*views, *more], head.units, penalty, on_train))

    for held_out in [fold == number for number in np.unique(fold)]:
        fit(~held_out)
        probabilities[held_out] = predict_head(head, val[held_out])
    fit(np.ones(len(val), bool))
    return probabilities


def fit_final_head(
    head: keras.layers.Dense,
    train: np.ndarray,
    train_labels: np.ndarray,
    val: np.ndarray,
    val_labels: np.ndarray,
    *,
    sample_weights: np.ndarray,
    val_weights: np.ndarray,
    val_groups: np.ndarray | None = None,
) -> tuple[list[dict], np.ndarray, list[np.ndarray]]:
    """Fit the head that is exported where nothing is fine-tuned: with the penalty chosen on validation, on both splits.

    Args:
        head, train, train_labels, val, val_labels, sample_weights: as for `fit_linear_head`.
        val_weights, val_groups: as for `fit_on_both`.

    Returns:
        (history of `fit_linear_head`; probabilities for validation, as of `fit_on_both`; the weights to start
        fine-tuning from, fitted on train alone and at least as regularised as START_PENALTY).
    """
    history = fit_linear_head(head, train, train_labels, val, val_labels, sample_weights=sample_weights)
    penalty, on_train = chosen_penalty(history), head.get_weights()
    views = [(view, train_labels, sample_weights) for view in train]
    start = linear_head_weights(views, head.units, max(penalty, START_PENALTY))
    val_probabilities = fit_on_both(
        head, train, train_labels, val, val_labels,
        sample_weights=sample_weights, val_weights=val_weights, penalty=penalty, val_groups=val_groups,
        start=on_train,
    )  # fmt: skip
    return history, val_probabilities, start


def chosen_penalty(history: Sequence[dict]) -> float:
    """Return the penalty with the lowest cross-entropy on validation, from the history of `fit_linear_head`."""
    return min(history, key=lambda row: row["val_cross_entropy"])["penalty"]


class _PenalisedRegression:
    """Weighted mean cross-entropy of a linear softmax model of standardised features, plus penalty / 2 * |kernel|^2.

    A solution is flat: the kernel [width, classes], row by row, and then the bias.
    """

    def __init__(self, pieces: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: int):
        self.pieces, self.shape = pieces, (pieces[0][0].shape[1] + 1, classes)
        self.mean, self.std = mean_and_std([rows for rows, _, _ in pieces])
        self.total = float(sum(weights.sum() for _, _, weights in pieces))
        small = sum(rows.nbytes for rows, _, _ in pieces) <= _IN_MEMORY
        self.kept = [(tf.constant(rows), *rest) for rows, *rest in self._read()] if small else None

    def _read(self, chunk: int = 4096) -> Iterator[tuple]:
        for rows, labels, weights in self.pieces:
            for start in range(0, len(rows), chunk):
                own = slice(start, start + chunk)
                yield (np.asarray(rows[own]) - self.mean) / self.std, labels[own], weights[own].astype("float32")

    def start(self, weights: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Return zeros, or the solution that is folded into weights, as `kernel_and_bias` does it."""
        if weights is None:
            return np.zeros(np.prod(self.shape))
        kernel, bias = (np.asarray(one, "float64") for one in weights)
        return np.concatenate([kernel * self.std[:, None], [bias + self.mean @ kernel]]).ravel()

    def minimise(self, start: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
        found = minimize(
            self._loss_and_slope,
            start,
            args=(penalty,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 200, "ftol": 1e-5},
        )
        return found.x, float(found.fun)

    def _loss_and_slope(self, flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        solution, loss, slope = tf.constant(flat.reshape(self.shape), tf.float32), 0.0, np.zeros(self.shape)
        for rows, labels, weights in self.kept or self._read():
            block_loss, block_slope = _cross_entropy_and_slope(rows, labels, weights, solution)
            loss += float(block_loss)
            slope += block_slope.numpy()
        kernel, slope = flat.reshape(self.shape)[:-1], slope / self.total
        slope[:-1] += penalty * kernel
        return loss / self.total + penalty / 2 * float(np.sum(kernel**2)), slope.ravel()

    def kernel_and_bias(self, flat: np.ndarray) -> list[np.ndarray]:
        """Fold the standardisation into the weights."""
        solution = flat.reshape(self.shape)
        kernel = solution[:-1] / self.std[:, None]
        return [kernel, solution[-1] - self.mean @ kernel]


@tf.function(reduce_retracing=True)
def _cross_entropy_and_slope(rows, labels, weights, solution):
    """Return the weighted sum of the cross-entropies of a block, and its slope in (kernel, then bias)."""
    logits = rows @ solution[:-1] + solution[-1]
    loss = weights * tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    slope = weights[:, None] * (tf.nn.softmax(logits) - tf.one_hot(labels, tf.shape(logits)[1]))
    return tf.reduce_sum(loss), tf.concat([tf.matmul(rows, slope, transpose_a=True), tf.reduce_sum(slope, 0)[None]], 0)


def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return loss, accuracy and cross_entropy (which is the loss) of probabilities float32 [n, classes]; int [n]."""
    of_true = probabilities[np.arange(len(labels)), labels]
    cross_entropy = -float(np.mean(np.log(np.maximum(of_true, 1e-30))))
    accuracy = float(np.mean(probabilities.argmax(axis=1) == labels))
    return {"loss": cross_entropy, "accuracy": accuracy, "cross_entropy": cross_entropy}


def predict_head(head: keras.layers.Dense, features: np.ndarray, chunk: int = 4096) -> np.ndarray:
    """Return the probabilities of a head for stored features, read in chunks.

    Args:
        head: [width] -> [classes].
        features: float32 [n, width].
        chunk: rows read at once.

    Returns:
        float32 [n, classes].
    """
    starts = range(0, len(features), chunk)
    return np.concatenate([keras.ops.convert_to_numpy(head(np.asarray(features[at : at + chunk]))) for at in starts])
