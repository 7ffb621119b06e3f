"""Write down what is said, or name it: from recordings of speech to a proven SavedModel that takes wav files.

    python -m recipes run speech_wav2vec                                                  # spoken demo words
    python -m recipes run speech_wav2vec --data tsv:CLIPS.tsv --source preset:hf://facebook/wav2vec2-base-960h
    python -m recipes run speech_wav2vec --task commands --data folder:WORDS --out runs/commands

CLIPS.tsv has the columns path and text, and better also speaker; Common Voice and LibriSpeech are read as they are. A
pretrained wav2vec 2.0 (arXiv:2006.11477) hears, and a head learns to write characters (CTC): first the head alone,
then the transformer below it, more slowly. With --task commands the head names the whole clip instead. Where the data
says who speaks, what is split here has no speaker in two parts. The report plays the worst clips and sets the result
beside the baselines. The SavedModel takes wav files of any rate, and has been proved in a fresh process to write what
the evaluation read.

What to expect, measured, with commands and machine: `python -m recipes show speech_wav2vec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

import keras
import numpy as np

from common import checking, exporting, freezing, runs, speech_models, speech_report, training
from common.characters import CASES, POLICIES, Characters, build_characters, samples_needed, with_more
from common.checkpoints import fit_with_checkpoints
from common.concluding import conclude
from common.data import speech_batches
from common.data.audio import SAMPLE_RATE
from common.data.labelled import PARTS
from common.data.speech_batches import Augmentation, Clips
from common.data.speech_lessons import draw_shots, writable_clips
from common.data.speech_rows import SpeechColumns
from common.data.speech_sets import DATA_KINDS, SpeechSet, load_speech_set
from common.progress import format_seconds
from common.recognising import CommandModel, Recogniser, Transcripts, build_answering
from common.specs import (
    check_choice,
    check_range,
    parse_baselines,
    parse_data,
    parse_list,
    parse_policy,
    parse_source,
)
from common.speech_decoding import read_language, write_with_beams
from common.speech_exporting import LONGEST_SECONDS, export_and_prove
from common.speech_metrics import count_errors
from common.speech_sources import SpeechSource, load_speech_source
from common.word_ngrams import WordNgrams

BASELINES = ("zero_shot", "frozen", "scratch")
AUGMENTATIONS = ("speed", "noise", "gain", "microphone")
LOOKS = 30  # at validation while a stage trains, about


@dataclass(frozen=True)
class Config:
    """Settings of speech_wav2vec."""

    task: str = "transcribe"
    """transcribe (write what is said) or commands (name the whole clip)."""
    data: str = "demo"
    """Clips: demo, folder:PATH (class folders; LibriSpeech, LJSpeech or Common Voice as they are), csv:PATH, tsv:PATH
    or manifest:PATH (JSON lines)."""
    path_column: str | None = None
    """Column of a table that holds the paths; found by its usual names where nothing is said. So are the next four."""
    text_column: str | None = None
    """Column that holds the transcripts."""
    label_column: str | None = None
    """Column that holds the classes."""
    speaker_column: str | None = None
    """Column that holds who speaks."""
    split_column: str | None = None
    """Column that says train, val or test."""
    encoding: str = "utf-8"
    """Of tables: utf-8, latin-1 ..."""
    share_speakers: bool = False
    """Split clip by clip: voices of the test may then be in training, and the result is for those voices only."""
    source: str = "bundled:wav2vec2_mini"
    """Pretrained model: bundled:wav2vec2_mini, preset:FOLDER or preset:hf://OWNER/NAME of a wav2vec 2.0."""
    out: str = "runs/speech_wav2vec"
    """Folder for everything this run writes."""
    resume: str | None = None
    """Go on with the run that was stopped in this folder, with its settings; no other flag is needed."""
    save_every: float = 30.0
    """Seconds between checkpoints: a killed run loses no more than that."""
    max_seconds: float = 40.0
    """A longer clip is left out, of the test as well: attention takes memory with the square of the length."""
    case: str | None = None
    """Letters of the transcripts: lower, upper or keep; as the source writes them where nothing is said, else lower."""
    outside: str = "drop"
    """What becomes of characters that cannot be written: drop (the character), skip (the clip) or error."""
    unfreeze: str = "encoder"
    """What learns after the head: encoder (all but the convolutions that read samples), all, or another policy."""
    head_epochs: int | None = None
    """Passes in which only the head learns; the default is 2, and more for few clips."""
    epochs: int | None = None
    """Passes in which the encoder learns as well; the default is 10, 20 for a thousand clips, and more for few."""
    batch_size: int = 16
    """Clips in a step, at most."""
    batch_seconds: float = 80.0
    """Seconds of sound in a step, padding included, at most: the memory it takes grows with them."""
    learning_rate: float = 1e-3
    """Peak learning rate of the encoder; it warms up, then falls along a cosine."""
    head_rate: float = 2e-3
    """Peak learning rate of the head."""
    weight_decay: float = 0.01
    """Pulls weights towards zero."""
    augment: str = "speed,noise,gain,microphone"
    """What changes the clips while training: some of speed, noise, gain, microphone (as another one in another room
    would have heard them), or none. Hiding spans is of the source."""
    language_model: str | None = None
    """A text file: words that follow each other in it are preferred by the beam search of the evaluation."""
    beams: int = 16
    """Beginnings that the beam search of the evaluation follows; 0 leaves it out. The export decodes greedily."""
    baselines: str | None = None
    """What the result is set beside: some of zero_shot (the source as it is), frozen (only the head learns), scratch
    (random weights), or none; the last two take as long again. The default is zero_shot, for commands frozen."""
    shots: int | None = None
    """Train on this many clips of each word or sentence that is said again and again, drawn by the seed: what would so
    few give? Nothing is chosen on validation then, whose clips would be labelled ones too: the last pass stays, and
    --language-model counts as it does by default."""
    limit: int | None = None
    """Use at most this many clips of each part: a quick look."""
    strict: bool = False
    """Stop at the first clip that cannot be used instead of skipping and counting it."""
    seed: int = 0
    """Decides initial weights, order and augmentation; the split depends on the clips alone."""

    def __post_init__(self) -> None:
        check_choice("--task", self.task, ("transcribe", "commands"))
        parse_data(self.data, DATA_KINDS)
        parse_source(self.source)
        if self.case is not None:
            check_choice("--case", self.case, CASES)
        check_choice("--outside", self.outside, POLICIES)
        parse_list("--augment", self.augment, AUGMENTATIONS, alone=("none",))
        if self.unfreeze != "encoder":
            parse_policy(self.unfreeze)
        if "zero_shot" in parse_baselines(self.baselines or "none", BASELINES) and self.task == "commands":
            raise ValueError("--baselines zero_shot is for --task transcribe: no source knows your classes.")
        if self.language_model and (self.task == "commands" or not self.beams):
            raise ValueError("--language-model is for --task transcribe with --beams 1 or more.")
        if self.language_model and not Path(self.language_model).expanduser().is_file():
            raise ValueError(f"--language-model {self.language_model!r} is no file. Give a file of sentences.")
        check_range(self, 0, inf, "save_every", "weight_decay", "seed", "head_epochs", "epochs", "learning_rate")
        check_range(self, 0, 1024, "beams")
        check_range(self, 1, inf, "max_seconds", "batch_size", "batch_seconds", "limit", "shots")
        check_range(self, 1e-9, inf, "head_rate")


def load_data(config: Config) -> SpeechSet:
    """Read, check and split the clips."""
    columns = SpeechColumns(
        config.path_column, config.text_column, config.label_column, config.speaker_column, config.split_column,
        config.encoding,
    )  # fmt: skip
    data = load_speech_set(
        config.data, task="commands" if config.task == "commands" else "transcripts", columns=columns,
        limit=config.limit, strict=config.strict, share_speakers=config.share_speakers, max_seconds=config.max_seconds,
    )  # fmt: skip
    return draw_shots(data, config.shots, config.seed) if config.shots else data


@dataclass(frozen=True)
class Lesson:
    """What is learned, and what is read.

    Attributes:
        data: without the clips that nothing can be learned from.
        clips: of each part.
        targets: of training: the numbers of each transcript, n int32 [characters], or class numbers, int64 [n].
        characters: that can be written; None where classes are named.
        references: what was really said in each part, as it is scored; {} where classes are named.
        ngrams: words of the language model, where there is one.
    """

    data: SpeechSet
    clips: dict[str, Clips]
    targets: list[np.ndarray] | np.ndarray
    characters: Characters | None
    references: dict[str, list[str]]
    ngrams: WordNgrams | None


def prepare(data: SpeechSet, source: SpeechSource, config: Config) -> Lesson:
    """Choose the characters: those of the training transcripts and those that the source can write. Leave out clips
    from which CTC cannot learn."""
    characters, targets, references, ngrams = None, data.train.labels, {}, None
    if config.task == "transcribe":
        case = config.case or (source.characters.case if source.characters else "lower")
        characters = build_characters(data.train.texts, case)
        if source.characters:  # what it can write, it shall be able to write when it knows another voice as well
            characters = with_more(characters, source.characters)
        if config.language_model:  # a file that cannot be read is told now, not after the training
            ngrams = read_language(config.language_model, characters)
        data, targets = writable_clips(
            data, characters, source.backbone.config.frame_lengths, config.outside, strict=config.strict
        )
        references = {part: [characters.normalise(text) for text in getattr(data, part).texts] for part in PARTS}
    clips = {part: Clips(getattr(data, part).paths, title=f"decoding {part}") for part in PARTS}
    return Lesson(data, clips, targets, characters, references, ngrams)


def build(source: SpeechSource, lesson: Lesson) -> keras.Model:
    """Put a head on the pretrained model."""
    if lesson.characters is None:
        return speech_models.build_classifier(source, len(lesson.data.class_names))
    return speech_models.build_recogniser(source, lesson.characters)


def train(source: SpeechSource, model: keras.Model, lesson: Lesson, config: Config, stage: str):
    """Train one stage: `head`, `finetune`, or for a baseline `frozen` or `scratch`.

    Returns:
        (history rows, number of parameters that trained).
    """
    policy = {"head": "frozen", "frozen": "frozen", "scratch": "all"}.get(stage, config.unfreeze)
    counts = freezing.freeze(model, source.backbone, speech_models.ENCODER if policy == "encoder" else policy)
    print(f"{stage}: {counts}")
    seconds, network = lesson.data.train.seconds, source.backbone.config
    steps = speech_batches.steps_per_epoch(seconds, config.batch_seconds, config.seed, config.batch_size)
    epochs, least = passes(config, steps)[stage], None
    if lesson.characters:  # a clip that is played faster still needs a frame for each character
        least = [samples_needed(labels, network.frame_lengths) for labels in lesson.targets]

    def batches_from(epoch, step):
        stream = speech_batches.training_batches(
            lesson.clips["train"], seconds, lesson.targets, config.batch_seconds, seed=config.seed,
            first=(epoch, step), augmentation=augmentation(config), least_samples=least,
            batch_size=config.batch_size,
        )  # fmt: skip
        return stream.map(speech_models.as_inputs(source.normalises), 2)

    answer = answering(source, model, lesson)
    between = max(1, epochs // LOOKS)  # passes; where clips are few there are hundreds

    def look() -> dict[str, float]:
        return {f"val_{name}": value for name, value in mark(answer("val"), lesson, "val").items()}

    def watch(epoch, logs):
        if (epoch + 1) % between == 0 or epoch + 1 == epochs:
            logs.update(look())

    checkpoint, keep = Path(config.out) / "checkpoints" / f"{stage}.npz", None
    if not config.shots:  # what is best is decided on validation, by what users will read
        rival = (look(), model.get_weights()) if stage == "finetune" and not checkpoint.exists() else None
        keep = training.KeepBest(None, rival, rank=best_of)

    # The head is new, the encoder has heard much: it learns more slowly. With random weights nobody has heard anything.
    scratch = stage == "scratch"
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(config.learning_rate if scratch else config.head_rate, epochs * steps),
        weight_decay=config.weight_decay, global_clipnorm=1.0,
        slower=[] if scratch else [(source.backbone.weights, config.learning_rate / config.head_rate)],
    )  # fmt: skip
    learner = speech_models.Learner(model, network)
    learner.compile(optimizer=optimizer, jit_compile=False)
    history = fit_with_checkpoints(
        learner, batches_from, epochs=epochs, lines=training.EpochLines(stage, epochs, steps),
        keep=keep, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=watch)], checkpoint=checkpoint,
        save_every=config.save_every,
    )  # fmt: skip
    return history, counts.parameters


def main(config: Config) -> dict:
    """Run the whole story: data -> source -> head -> the encoder -> evaluation -> export -> proof -> report."""
    config = runs.start(config)
    out = Path(config.out)
    clock = runs.Stopwatch(out / "checkpoints" / "seconds.json")

    with clock("data"):
        data = load_data(config)
    keras.utils.set_random_seed(config.seed)
    source = load_speech_source(config.source)
    runs.remember_inputs(out, data.fingerprint() + source.fingerprint())
    with clock("data"):
        lesson = prepare(data, source, config)
    print(f"{config.data}: {lesson.data.counts()}")
    baselines, history = {}, []
    if "zero_shot" in wanted_baselines(config, source):
        with clock("baseline_zero_shot"):
            said = zero_shot(source, lesson)
        baselines["zero_shot"] = said, clock.report()["baseline_zero_shot"]

    model = build(source, lesson)
    parameters = {"total": model.count_params()}
    for stage in ("head", "finetune"):
        with clock(stage):
            rows, parameters[f"trainable_{stage}"] = train(source, model, lesson, config, stage)
        history += rows
    with clock("evaluate"):
        answer = answering(source, model, lesson)
        said = answer("test", title="test clips", keep_log_probabilities=config.beams > 0)
        decoders = decode_with_beams(said, answer, lesson, config) if config.beams and lesson.characters else {}
    for name in [name for name in ("frozen", "scratch") if name in wanted_baselines(config, source)]:
        with clock(f"baseline_{name}"):
            theirs, rows = baseline(name, lesson, config)
        baselines[name], history = (theirs, clock.report()[f"baseline_{name}"]), history + rows

    with clock("export"):
        exporting.save_keras_model(model, out / "model.keras")
        speech_models.save_source(out / "preset", model, source, lesson.characters)  # a --source of other runs
        version, proof = export_and_prove(
            spoken(source, model, lesson), lesson.data.test.paths, said, out / "serving" / "speech_wav2vec",
            longest_seconds=max(LONGEST_SECONDS, config.max_seconds),
        )  # fmt: skip

    told = dict(
        history=history, seconds=clock.report(), parameters=parameters, proof=proof, baselines=baselines,
        export=exporting.size_report(version, model), source_card={"spec": config.source, **source.card},
    )  # fmt: skip
    if lesson.characters is None:
        return conclude("speech_wav2vec", config, lesson.data, probabilities=said, **told)
    return speech_report.conclude(
        "speech_wav2vec", config, lesson.data, references=lesson.references["test"], hypotheses=said.texts,
        confidences=said.confidences, decoders=decoders, **told,
    )  # fmt: skip


def check(config: Config) -> None:
    """Say what a run would read and how long it would take; train nothing and write what is learned as a page."""
    data = load_data(config)
    source = load_speech_source(config.source)
    lesson = prepare(data, source, config)
    print(f"{config.data}: {lesson.data.counts()}")
    for path, reason in lesson.data.skipped[:10]:
        print(f"  {path}: {reason}")
    print(*(f"  {sentence}" for sentence in lesson.data.advice()), sep="\n")
    model = build(source, lesson)
    print(f"source: {source.card}\n{model.count_params():,} parameters")
    seconds = lesson.data.train.seconds
    print(f"{seconds.sum() / 60:.1f} minutes of training clips, {np.median(seconds):.1f} s in the median one")
    if lesson.characters:
        print(f"characters: {' '.join(lesson.characters.symbols[2:])}")
    page = speech_report.write_samples(
        Path(config.out) / "samples.html", lesson.clips["train"], lesson.data.train.texts, augmentation(config),
        config.seed,
    )  # fmt: skip
    print(f"clips as trained on: {page}")

    stream = speech_batches.training_batches(
        lesson.clips["train"], seconds, lesson.targets, config.batch_seconds, seed=config.seed,
        augmentation=augmentation(config), batch_size=config.batch_size,
    ).map(speech_models.as_inputs(source.normalises))  # fmt: skip
    learner = speech_models.Learner(model, source.backbone.config)
    learner.compile(optimizer=training.DiscriminativeAdamW(learning_rate=1e-9), jit_compile=False)
    inputs, targets = next(stream.as_numpy_iterator())
    step = checking.median_seconds(lambda: learner.train_on_batch(inputs, targets))  # the weights are thrown away
    an_epoch = step * seconds.sum() / (inputs["samples"].size / SAMPLE_RATE)  # batches are of clips of about one length
    steps = speech_batches.steps_per_epoch(seconds, config.batch_seconds, config.seed, config.batch_size)
    epochs = passes(config, steps)
    answer, val = build_answering(spoken(source, model, lesson)), lesson.data.val
    few, of_few = Clips(val.paths[:20], title=""), val.seconds[:20]
    look = checking.median_seconds(lambda: answer(few, of_few)) * val.seconds.sum() / of_few.sum()
    stages = [epochs[stage] for stage in ("head", "finetune", *(wanted_baselines(config, source) & set(epochs)))]
    whole = sum(stages) * an_epoch + sum(min(count, LOOKS) for count in stages) * look
    print(f"estimate: {format_seconds(whole)} of computing, then half a minute for export and proof")


# --- small things that the steps above share ----------------------------------------------------------------


def spoken(source: SpeechSource, model: keras.Model, lesson: Lesson) -> Recogniser | CommandModel:
    """Return the model with all that turns its logits into answers."""
    network = source.backbone.config
    if lesson.characters is None:
        return CommandModel(model, network, lesson.data.class_names, source.normalises)
    return Recogniser(model, network, lesson.characters, source.normalises)


def answering(source: SpeechSource, model: keras.Model, lesson: Lesson):
    """Return a function: name of a part -> what the model says of it as it is then, Transcripts or probabilities."""
    answer = build_answering(spoken(source, model, lesson))
    return lambda part, **options: answer(lesson.clips[part], getattr(lesson.data, part).seconds, **options)


def decode_with_beams(said: Transcripts, answer, lesson: Lesson, config: Config) -> dict[str, list[str]]:
    """Return what beam search writes of the test clips, with a language model where there is one."""
    tuned = lesson.ngrams and not config.shots
    val = answer("val", keep_log_probabilities=True).log_probabilities if tuned else ()
    return write_with_beams(
        said.log_probabilities, val, lesson.references["val"], lesson.characters, width=config.beams,
        ngrams=lesson.ngrams,
    )  # fmt: skip


def mark(said: Transcripts | np.ndarray, lesson: Lesson, part: str) -> dict[str, float]:
    """Return error rates of transcripts, or accuracy and cross-entropy of probabilities."""
    if isinstance(said, Transcripts):
        pairs = lesson.references[part], said.texts
        (words, of_words), (characters, of_characters) = (count_errors(*pairs, unit) for unit in ("word", "character"))
        return {"wer": words.sum() / of_words.sum(), "cer": characters.sum() / of_characters.sum()}
    labels = getattr(lesson.data, part).labels
    right = said[np.arange(len(said)), labels]
    return {
        "accuracy": float(np.mean(said.argmax(axis=1) == labels)),
        "cross_entropy": -float(np.mean(np.log(np.maximum(right, 1e-30)))),
    }


def best_of(logs: dict[str, float]) -> tuple[float, float]:
    """Rank an epoch by its word error rate on validation, then by that of characters; classes by accuracy."""
    if "val_accuracy" in logs:
        return training.by_accuracy(logs)
    if "val_wer" not in logs:  # nobody looked
        return -inf, -inf
    return -round(logs["val_wer"], 6), -logs["val_cer"]


def passes(config: Config, steps: int) -> dict[str, int]:
    """Return the passes of each stage: 10 to 20, as long as 20 are few steps, and more where clips are few."""
    head = max(2, ceil(60 / steps)) if config.head_epochs is None else config.head_epochs
    finetune = max(10, min(20, ceil(1500 / steps)), ceil(300 / steps)) if config.epochs is None else config.epochs
    return {"head": head, "finetune": finetune, "frozen": head + finetune, "scratch": head + finetune}


def augmentation(config: Config) -> Augmentation | None:
    """Return what happens to training clips."""
    names = parse_list("--augment", config.augment, AUGMENTATIONS, alone=("none",))
    if names == ("none",):
        return None
    kept = Augmentation()
    return Augmentation(
        speed=kept.speed if "speed" in names else (1.0, 1.0),
        noise_db=kept.noise_db if "noise" in names else None,
        gain_db=kept.gain_db if "gain" in names else (0.0, 0.0),
        microphone=0.5 if "microphone" in names else 0.0,
    )


def wanted_baselines(config: Config, source: SpeechSource) -> set[str]:
    """Return the baselines to set the result beside; a source that cannot write has no zero_shot."""
    default = "frozen" if config.task == "commands" else "zero_shot"
    wanted = set(parse_baselines(config.baselines or default, BASELINES))
    return wanted if source.characters else wanted - {"zero_shot"}


def zero_shot(source: SpeechSource, lesson: Lesson) -> list[str]:
    """Return what the source writes of the test clips before it learns anything, spelled as the lesson is."""
    answer = build_answering(speech_models.as_recogniser(source))
    return [lesson.characters.normalise(text) for text in answer(lesson.clips["test"], lesson.data.test.seconds).texts]


def baseline(name: str, lesson: Lesson, config: Config):
    """Train a baseline for as many passes, from the same start or from random weights; return its answers and rows."""
    keras.utils.set_random_seed(config.seed)
    source = load_speech_source(config.source, random_weights=name == "scratch")
    model = build(source, lesson)
    rows, _ = train(source, model, lesson, config, name)
    said = answering(source, model, lesson)("test")
    return said.texts if isinstance(said, Transcripts) else said, rows
