"""Classify short recordings: from folders of clips to a proved SavedModel that takes wav files and returns labels.

    python -m recipes run speech_commands                                                 # ten words of many people
    python -m recipes run speech_commands --data folder:WORDS --out runs/commands

WORDS has a folder per class; tables have the columns path and label, and preferably speaker and split. A
pretrained wav2vec 2.0 (arXiv:2006.11477) extracts features, and a head classifies the whole clip: first the head alone
is trained, then the transformer below it, at a lower learning rate, and validation decides how much of that is kept.
Where speakers are known, splits made here share none. The report plays the most confident mistakes and compares the
result with the baselines. The SavedModel takes wav files of any rate, and is proved in a fresh process to answer as
evaluated. To transcribe speech: speech_wav2vec.

Measured results, with commands and machine: `python -m recipes show speech_commands`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from common import exporting, freezing, linear_head, training
from common.classification import results
from common.classification.answers import LABELS
from common.classification.check import describe_counts
from common.classification.choice import best_on_validation, keep_what_helps
from common.data.splits import SPLITS
from common.exporting import Predictor
from common.flags import check_range, parse_baselines, parse_data, parse_list, parse_policy, parse_seeds
from common.progress import format_seconds
from common.proof.prove import FreshProcess
from common.results import Outcome
from common.runs import Run
from common.serving.kit.write import write_serving_files
from common.sources.specs import parse_source
from common.speech import batches, commands, models
from common.speech.audio.playback import players
from common.speech.batches import Augmentation, Clips
from common.speech.commands import CommandModel, build_command_classifier, export_commands, prove_commands
from common.speech.ctc_targets import draw_shots
from common.speech.dataset import DATA_KINDS, SYNTHETIC_DEMO, SpeechSet, load_speech_set
from common.speech.export import LONGEST_SECONDS, read_clip, served_wav
from common.speech.readers import SpeechColumns
from common.speech.samples import write_samples
from common.speech.sources import SpeechSource, load_speech_source
from common.speech.spectrogram import spectrogram_source
from common.speech.training import (
    FROM_SCRATCH,
    VALIDATIONS,
    how_it_ended,
    seconds_of_training,
    seconds_of_validation,
    stage_epochs,
    train_stage,
)

BASELINES = {"frozen": "Frozen source, trained head", "spectrogram": "Small log-mel network from scratch",
             "scratch": "From scratch"}  # fmt: skip
SCORES = ("accuracy", "macro_f1", "ece")
SOURCES = ("wav2vec2_mini", "wav2vec2_base_960h")
GALLERY = {"in": "clips in class folders", "out": "label, probabilities", "row": "spoken_commands"}
QUICK = "--limit 24 --epochs 1 --head-epochs 1 --baselines none"  # a run of seconds, for tests
EARLY = "common.speech.dataset:refuse_early"  # called before TensorFlow is imported
REPLACES = {"recipe": "speech_wav2vec", "task": "commands"}  # runs from before this recipe existed
INPUT = "audio"  # of the served model
PREDICTOR = Predictor(INPUT, read_clip, LABELS, batch=4)
AUGMENTATIONS = ("speed", "noise", "gain", "microphone")


@dataclass(frozen=True)
class Config:
    """Settings of speech_commands."""

    data: str = "demo"  # demo, demo:synthetic, folder:PATH (a folder per class), csv:, tsv: or manifest:PATH
    path_column: str | None = None  # Column of the paths in a table; found by its usual names by default
    label_column: str | None = None  # Column of the classes; found by its usual names by default
    speaker_column: str | None = None  # Column of the speakers; found by its usual names by default
    split_column: str | None = None  # Column of the splits train, val, test; found by its usual names by default
    encoding: str = "utf-8"  # Encoding of tables: utf-8, latin-1 ...
    share_speakers: bool = False  # Split by clip: test speakers may be in training, scores are for known speakers only
    source: str = "bundled:wav2vec2_mini"  # bundled:wav2vec2_mini, preset:FOLDER or preset:hf://OWNER/NAME
    out: str = "runs/speech_commands"  # Folder for everything this run writes
    resume: str | None = None  # Continue the run that was stopped in this folder; no other flag is needed
    save_every: float = 30.0  # Seconds between checkpoints: a killed run loses no more than that
    max_seconds: float = 40.0  # Longer clips are left out, of the test split as well: attention needs memory
    unfreeze: str = "encoder"  # What is trained after the head: encoder (all but the convolutions), all, last:N ...
    head_epochs: int | None = None  # Epochs in which only the head is trained, at most; more by default for few clips
    epochs: int | None = None  # Epochs in which the encoder is trained too, at most; 10 to 20 by default, or more
    batch_size: int = 16  # Clips per step, at most
    batch_seconds: float = 80.0  # Seconds of sound per step, padding included, at most: memory grows with it
    learning_rate: float = 1e-3  # Peak learning rate of the encoder, after warm-up; cosine decay
    head_rate: float = 2e-3  # Peak learning rate of the head
    weight_decay: float = 0.01  # Weight decay
    augment: str = "speed,noise,gain,microphone"  # Some of speed, noise, gain, microphone (another room), or none
    baselines: str = "frozen,spectrogram"  # To compare with: frozen, spectrogram, scratch (long), or none
    shots: int | None = None  # Train on this many clips per class, without choosing on validation
    limit: int | None = None  # Use at most this many clips of each split: a quick look
    strict: bool = False  # Stop at the first clip that cannot be used instead of skipping and counting it
    seed: int = 0  # Seed of initial weights, shuffling and augmentation; the split depends on the clips alone
    seeds: str | None = None  # Train with each of these seeds, such as 0,1,2: mean and spread; exports the best on val

    redefined: ClassVar[dict] = {"data": SYNTHETIC_DEMO}
    # Flags in config.json of runs from before this recipe existed, and the value they must have (...: any).
    retired: ClassVar[dict] = {"task": "commands"} | dict.fromkeys(
        ("text_column", "case", "outside", "language_model", "beams"), ...
    )

    def __post_init__(self) -> None:
        parse_data(self.data, DATA_KINDS)
        parse_source(self.source)
        parse_list("--augment", self.augment, AUGMENTATIONS, alone=("none",))
        if self.unfreeze != "encoder":
            parse_policy(self.unfreeze)
        parse_baselines(self.baselines or "frozen", BASELINES)
        if len(parse_seeds(self.seeds, self.seed)) > 1 and self.shots:
            raise ValueError(
                "--seeds cannot be used with --shots, which leaves no validation clips to choose a seed on. Received: "
                f"{self.seeds!r}. Try: --seed 1"
            )
        check_range(self, 0, inf, "save_every", "weight_decay", "seed", "head_epochs", "epochs", "learning_rate")
        check_range(self, 1, inf, "max_seconds", "batch_size", "batch_seconds", "limit", "shots")
        check_range(self, 1e-9, inf, "head_rate")


def load_data(config: Config) -> SpeechSet:
    """Read, check and split the clips."""
    columns = SpeechColumns(
        config.path_column, None, config.label_column, config.speaker_column, config.split_column, config.encoding
    )
    data = load_speech_set(
        config.data, task="commands", columns=columns, limit=config.limit, strict=config.strict,
        share_speakers=config.share_speakers, max_seconds=config.max_seconds,
    )  # fmt: skip
    return draw_shots(data, config.shots, config.seed) if config.shots else data


def build_model(source: SpeechSource, classes: int) -> keras.Model:
    """Put a head on the pretrained model that classifies the whole clip."""
    return commands.build_classifier(source, classes)


@dataclass(frozen=True)
class Trained:
    """The outcome of training with one seed: the model with its final weights, and the probabilities of the model and
    of the `frozen` source with its head for the test split, and of the model for validation, float32 [n, classes]."""

    source: SpeechSource
    model: keras.Model
    probabilities: np.ndarray
    frozen: np.ndarray
    val_probabilities: np.ndarray
    history: list[dict]
    parameters: dict[str, int]
    choice: str


def train_stages(run: Run, data: SpeechSet, clips: dict[str, Clips], seed: int) -> Trained:
    """Train the head, then the encoder with it, of which as much is kept as helps on validation."""
    config, clock, choice = run.config, run.clock, ""
    keras.utils.set_random_seed(seed)
    source = load_speech_source(config.source)
    model = build_model(source, len(data.class_names))
    predict, parameters = predictor(source, model, data, clips), {"total": model.count_params()}
    with clock("head"):
        history, parameters["trainable_head"] = train(run, source, model, data, clips, "head", seed)
    with clock("evaluate"):
        frozen = probabilities = predict("test", title="test clips")
        val_probabilities = predict("val")
    if not stays_frozen(config):
        start = model.get_weights()
        with clock("finetune"):
            rows, parameters["trainable_finetune"] = train(run, source, model, data, clips, "finetune", seed)
            if config.shots:
                val_probabilities = predict("val")
            else:
                labels, of_val = data.val.labels, lambda: predict("val")
                _, val_probabilities, choice = keep_what_helps(model, start, val_probabilities, of_val, labels)
        history += rows
        with clock("evaluate"):
            probabilities = predict("test", title="test clips")
    return Trained(source, model, probabilities, frozen, val_probabilities, history, parameters, choice)


def train(run: Run, source: SpeechSource, model: keras.Model, data: SpeechSet, clips, stage: str, seed: int):
    """Train one stage: `head`, `finetune`, or for a baseline `spectrogram` or `scratch`.

    The epoch is chosen on validation, except in fine-tuning, which ends with the weights of its last epoch.

    Returns:
        (history rows, number of trained parameters).
    """
    config = run.config
    policy = {"head": "frozen", **dict.fromkeys(FROM_SCRATCH, "all")}.get(stage, config.unfreeze)
    policy = models.ENCODER if policy == "encoder" else policy
    counts = freezing.freeze(model, source.backbone, policy, batch_norm="train")  # only the log-mel network has some
    print(f"{stage}: {counts}")
    steps, epochs = planned(data, config)

    def batches_from(epoch, step):
        return training_stream(data, clips, config, seed, first=(epoch, step)).map(
            models.as_inputs(source.normalises), 2
        )

    predict = predictor(source, model, data, clips)

    def validate():
        scores = linear_head.score(predict("val"), data.val.labels)
        return {name: scores[name] for name in ("accuracy", "cross_entropy")}

    history = train_stage(
        source, model, batches_from, validate, stage=stage, epochs=epochs[stage], steps=steps,
        head_rate=config.head_rate, encoder_rate=config.learning_rate, weight_decay=config.weight_decay, rank=rank,
        choose=not config.shots and stage != "finetune", score="accuracy",
        patience=max(3, ceil(epochs[stage] / 2)), **run.saves(stage, seed),
    )  # fmt: skip
    return history, counts.parameters


def main(config: Config) -> dict:
    """Run the whole story: data -> source -> head -> encoder -> evaluation -> export -> proof -> report."""
    run = Run(config)
    config, out, clock = run.config, run.out, run.clock
    with clock("data"):
        data = load_data(config)
    run.remember(data, load_speech_source(config.source))
    process = FreshProcess()  # of the proof; it imports TensorFlow meanwhile
    with clock("data"):
        clips = decode_clips(data)
    print(f"{config.data}: {data.counts()}, {len(data.class_names)} classes")

    seeds = parse_seeds(config.seeds, config.seed)
    trained = {seed: train_stages(run, data, clips, seed) for seed in seeds}
    best = best_on_validation(data.val.labels, {seed: one.val_probabilities for seed, one in trained.items()})
    chosen = trained[best]
    source, model, probabilities, history = chosen.source, chosen.model, chosen.probabilities, chosen.history

    with clock("export"):
        exporting.save_keras_model(model, out / "model.keras")
        models.save_source(out / "preset", model, source, None)  # a --source of other runs
        paths = data.test.paths
        version = export_commands(
            command_model(source, model, data), out / "serving" / "speech_commands", example=Path(paths[0]),
            longest_seconds=max(LONGEST_SECONDS, config.max_seconds),
        )  # fmt: skip
        example = served_wav(Path(paths[0]))
        write_serving_files(out / "serving", "speech_commands", input_name=INPUT, example=example)
        proof = prove_commands(version, paths, probabilities, data.class_names, process)

    baselines, endings = {}, []  # after the proof: a baseline that is stopped takes no export with it
    for name in wanted_baselines(config):
        if name == "frozen":
            baselines[name] = {seed: one.frozen for seed, one in trained.items()}, clock.report()["head"]
            continue
        with clock("baselines"), clock(f"baseline_{name}"):
            theirs = {seed: train_baseline(name, run, data, clips, seed) for seed in seeds}
        of_test = {seed: found for seed, (found, _, _) in theirs.items()}
        baselines[name], history = (of_test, clock.report()[f"baseline_{name}"]), history + theirs[best][1]
        endings.append(f"{BASELINES[name]}: {theirs[best][2]}.")

    card, size = {"spec": config.source, **source.card}, exporting.size_report(version, model)
    return results.conclude(
        "speech_commands", config, data, Outcome(history, clock.report(), chosen.parameters, card, proof, size),
        exported=best, probabilities={seed: one.probabilities for seed, one in trained.items()}, baselines=baselines,
        titles=BASELINES, what="clips", preview=players(data.test.paths),
        advice=[sentence for sentence in (chosen.choice, *endings) if sentence],
    )  # fmt: skip


def check(config: Config) -> None:
    """Print what a run would read and how long it would take; train nothing and write a page of sample clips."""
    data = load_data(config)
    print(f"{config.data}: {data.counts()}\n{describe_counts(data)}")
    source = load_speech_source(config.source)
    model, clips = build_model(source, len(data.class_names)), decode_clips(data)
    print(f"source: {source.card}\n{model.count_params():,} parameters")
    train, val = data.train, data.val
    print(f"{train.seconds.sum() / 60:.1f} minutes of training clips, median length {np.median(train.seconds):.1f} s")
    page = Path(config.out) / "samples.html"
    write_samples(page, clips["train"], train.texts, augmentation(config), config.seed)
    print(f"augmented training clips: {page}")

    _, epochs = planned(data, config)
    stream = training_stream(data, clips, config, config.seed).map(models.as_inputs(source.normalises))
    an_epoch = seconds_of_training(source, model, stream, train.seconds)
    classify = build_command_classifier(command_model(source, model, data))
    validation = seconds_of_validation(classify, val.paths, val.seconds)
    stages = [epochs[stage] for stage in ("head", "finetune")]
    whole = sum(stages) * an_epoch + sum(min(count, VALIDATIONS) for count in stages) * validation
    whole *= len(parse_seeds(config.seeds, config.seed))
    print(f"estimate: {format_seconds(whole)} of training and validation, then half a minute for export and proof")
    if set(wanted_baselines(config)) & set(FROM_SCRATCH):
        print("networks from scratch come on top: they train until validation stops improving")


# --- helpers of the steps above ------------------------------------------------------------------------------


def decode_clips(data: SpeechSet) -> dict[str, Clips]:
    """Return the decoded clips of each split."""
    return {split: Clips(getattr(data, split).paths, title=f"decoding {split}") for split in SPLITS}


def training_stream(data: SpeechSet, clips: dict[str, Clips], config: Config, seed: int, **options):
    """Stream augmented training clips with their class numbers."""
    return batches.training_batches(
        clips["train"], data.train.seconds, data.train.labels, config.batch_seconds, seed=seed,
        augmentation=augmentation(config), batch_size=config.batch_size, **options,
    )  # fmt: skip


def command_model(source: SpeechSource, model: keras.Model, data: SpeechSet) -> CommandModel:
    """Return the model with everything needed to turn its logits into labels."""
    return CommandModel(model, source.backbone.config, data.class_names, source.normalises)


def predictor(source: SpeechSource, model: keras.Model, data: SpeechSet, clips: dict[str, Clips]):
    """Return a function: name of a split -> probabilities by the current weights, float32 [n, classes]."""
    classify = build_command_classifier(command_model(source, model, data))
    return lambda split, title="": classify(clips[split], getattr(data, split).seconds, title=title)


def augmentation(config: Config) -> Augmentation | None:
    """Return the augmentation of training clips."""
    return Augmentation.of(parse_list("--augment", config.augment, AUGMENTATIONS, alone=("none",)))


def planned(data: SpeechSet, config: Config) -> tuple[int, dict[str, int]]:
    """Return the steps of an epoch, and the epochs of each stage: the head is trained as if it were exported."""
    steps = batches.steps_per_epoch(data.train.seconds, config.batch_seconds, config.seed, config.batch_size)
    return steps, stage_epochs(steps, config.head_epochs, config.epochs, choose=not config.shots, head_steps=400)


def rank(logs: dict[str, float]) -> tuple[float, ...]:
    """Rank an epoch by accuracy on validation, then by cross-entropy."""
    return training.by_accuracy(logs) if "val_accuracy" in logs else (-inf,)  # not every epoch is validated


def stays_frozen(config: Config) -> bool:
    """Return whether the head alone is trained."""
    return config.unfreeze == "frozen" or config.epochs == 0


def wanted_baselines(config: Config) -> list[str]:
    """Return the baselines to compare with, the cheapest first."""
    wanted = parse_baselines(config.baselines or "frozen", BASELINES)
    return [name for name in BASELINES if name in wanted]


def train_baseline(
    name: str, run: Run, data: SpeechSet, clips: dict[str, Clips], seed: int
) -> tuple[np.ndarray, list[dict], str]:
    """Train a network from scratch; return its probabilities for the test clips, its history, and how it ended."""
    keras.utils.set_random_seed(seed)
    if name == "spectrogram":
        source = spectrogram_source(recurrent=False)
    else:
        source = load_speech_source(run.config.source, random_weights=True)
    model = build_model(source, len(data.class_names))
    rows, _ = train(run, source, model, data, clips, name, seed)
    ending = how_it_ended(rows, planned(data, run.config)[1][name], not run.config.shots)
    return predictor(source, model, data, clips)("test"), rows, ending
