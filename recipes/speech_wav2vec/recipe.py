"""Transcribe speech: from recordings to a proved SavedModel that takes wav files and returns text.

    python -m recipes run speech_wav2vec                                                  # people reading sentences
    python -m recipes run speech_wav2vec --data tsv:CLIPS.tsv --source preset:hf://facebook/wav2vec2-base-960h

CLIPS.tsv has the columns path and text, and preferably speaker; Common Voice, LibriSpeech and LJSpeech are read as
they are. A pretrained wav2vec 2.0 (arXiv:2006.11477) extracts features, and a CTC head outputs characters: first the
head alone is trained, then the transformer below it, at a lower learning rate. Where speakers are known, splits made
here share none. The report plays the worst clips and compares the result with the baselines. The SavedModel takes wav
files of any rate, and is proved in a fresh process to return the same texts as the evaluation.

Measured results, with commands and machine: `python -m recipes show speech_wav2vec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from common import exporting, freezing
from common.data.splits import SPLITS
from common.exporting import Predictor
from common.flags import check_choice, check_range, parse_baselines, parse_data, parse_list, parse_policy
from common.progress import format_seconds
from common.proof.prove import FreshProcess
from common.results import Outcome
from common.runs import Run
from common.serving.kit.write import write_serving_files
from common.sources.specs import parse_source
from common.speech import batches, models, results
from common.speech.answers import BATCH, TRANSCRIPTS, read_recording
from common.speech.batches import Augmentation, Clips
from common.speech.ctc.beam_search import beam_transcripts, read_language
from common.speech.ctc.characters import CASES, POLICIES, build_characters, samples_needed, with_more
from common.speech.ctc_targets import Corpus, draw_shots, writable_clips
from common.speech.dataset import DATA_KINDS, SYNTHETIC_DEMO, SpeechSet, load_speech_set
from common.speech.export import LONGEST_SECONDS, export_recogniser, prove_recogniser, served_wav
from common.speech.inference import Recogniser, Transcripts, build_transcriber
from common.speech.metrics import error_rates
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

BASELINES = {"zero_shot": "No adaptation", "frozen": "Frozen source, trained head",
             "spectrogram": "Small log-mel network from scratch", "scratch": "From scratch"}  # fmt: skip
SCORES = ("wer", "cer")
SOURCES = ("wav2vec2_mini", "wav2vec2_base_960h")
GALLERY = {"in": "recordings with transcripts", "out": "text, confidence", "row": "fsdd"}
QUICK = "--limit 12 --epochs 1 --head-epochs 1 --baselines zero_shot"  # a run of seconds, for tests
EARLY = "common.speech.dataset:refuse_early"  # called before TensorFlow is imported
INPUT = "audio"  # of the served model
PREDICTOR = Predictor(INPUT, read_recording, TRANSCRIPTS, BATCH)
AUGMENTATIONS = ("speed", "noise", "gain", "microphone")


@dataclass(frozen=True)
class Config:
    """Settings of speech_wav2vec."""

    data: str = "demo"  # demo, demo:synthetic, folder:PATH (LibriSpeech, LJSpeech ...), csv:, tsv: or manifest:PATH
    path_column: str | None = None  # Column of the paths in a table; found by its usual names by default
    text_column: str | None = None  # Column of the transcripts; found by its usual names by default
    speaker_column: str | None = None  # Column of the speakers; found by its usual names by default
    split_column: str | None = None  # Column of the splits train, val, test; found by its usual names by default
    encoding: str = "utf-8"  # Encoding of tables: utf-8, latin-1 ...
    share_speakers: bool = False  # Split by clip: test speakers may be in training, scores are for known speakers only
    source: str = "bundled:wav2vec2_mini"  # bundled:wav2vec2_mini, preset:FOLDER or preset:hf://OWNER/NAME
    out: str = "runs/speech_wav2vec"  # Folder for everything this run writes
    resume: str | None = None  # Continue the run that was stopped in this folder; no other flag is needed
    save_every: float = 30.0  # Seconds between checkpoints: a killed run loses no more than that
    max_seconds: float = 40.0  # Longer clips are left out, of the test split as well: attention needs memory
    case: str | None = None  # Letters of the transcripts: lower, upper or keep; as the source's by default, else lower
    outside: str = "drop"  # Characters outside the vocabulary: drop (the character), skip (the clip) or error
    unfreeze: str = "encoder"  # What is trained after the head: encoder (all but the convolutions), all, last:N ...
    head_epochs: int | None = None  # Epochs in which only the head is trained; 2 by default, more for few clips
    epochs: int | None = None  # Epochs in which the encoder is trained too; 10 to 20 by default, more for few clips
    batch_size: int = 16  # Clips per step, at most
    batch_seconds: float = 80.0  # Seconds of sound per step, padding included, at most: memory grows with it
    learning_rate: float = 1e-3  # Peak learning rate of the encoder, after warm-up; cosine decay
    head_rate: float = 2e-3  # Peak learning rate of the head
    weight_decay: float = 0.01  # Weight decay
    augment: str = "speed,noise,gain,microphone"  # Some of speed, noise, gain, microphone (another room), or none
    language_model: str | None = None  # Text file: beam search prefers words that follow each other in it
    beams: int = 16  # Beam width of the evaluation; 0 leaves beam search out. The export decodes greedily
    baselines: str = "zero_shot"  # To compare with: zero_shot (seconds), frozen, spectrogram, scratch (minutes) or none
    shots: int | None = None  # Train on this many clips of each repeated sentence, without choices on validation
    limit: int | None = None  # Use at most this many clips of each split: a quick look
    strict: bool = False  # Stop at the first clip that cannot be used instead of skipping and counting it
    seed: int = 0  # Seed of initial weights, shuffling and augmentation; the split depends on the clips alone

    redefined: ClassVar[dict] = {"data": SYNTHETIC_DEMO}
    retired: ClassVar[dict] = {"task": "transcribe", "label_column": None}  # flags of before speech_commands

    def __post_init__(self) -> None:
        parse_data(self.data, DATA_KINDS)
        parse_source(self.source)
        if self.case is not None:
            check_choice("--case", self.case, CASES)
        check_choice("--outside", self.outside, POLICIES)
        parse_list("--augment", self.augment, AUGMENTATIONS, alone=("none",))
        if self.unfreeze != "encoder":
            parse_policy(self.unfreeze)
        parse_baselines(self.baselines or "zero_shot", BASELINES)
        if self.language_model and not self.beams:
            raise ValueError("--language-model needs beam search. Allowed: --beams 1 or more.")
        if self.language_model and not Path(self.language_model).expanduser().is_file():
            raise ValueError(f"--language-model must be a text file of sentences. Received: {self.language_model!r}.")
        check_range(self, 0, inf, "save_every", "weight_decay", "seed", "head_epochs", "epochs", "learning_rate")
        check_range(self, 0, 1024, "beams")
        check_range(self, 1, inf, "max_seconds", "batch_size", "batch_seconds", "limit", "shots")
        check_range(self, 1e-9, inf, "head_rate")


def load_data(config: Config) -> SpeechSet:
    """Read, check and split the clips."""
    columns = SpeechColumns(
        config.path_column, config.text_column, None, config.speaker_column, config.split_column, config.encoding
    )
    data = load_speech_set(
        config.data, task="transcripts", columns=columns, limit=config.limit, strict=config.strict,
        share_speakers=config.share_speakers, max_seconds=config.max_seconds,
    )  # fmt: skip
    return draw_shots(data, config.shots, config.seed) if config.shots else data


def prepare(data: SpeechSet, source: SpeechSource, config: Config) -> Corpus:
    """Choose the characters (of the transcripts and the source), skip what CTC cannot be trained on, decode."""
    case = config.case or (source.characters.case if source.characters else "lower")
    characters = build_characters(data.train.texts, case)
    if source.characters:  # the characters of the source are kept
        characters = with_more(characters, source.characters)
    # A file that cannot be read is reported now, not after the training.
    ngrams = read_language(config.language_model, characters) if config.language_model else None
    frame_lengths = source.backbone.config.frame_lengths
    data, targets = writable_clips(data, characters, frame_lengths, config.outside, strict=config.strict)
    references = {split: [characters.normalise(text) for text in getattr(data, split).texts] for split in SPLITS}
    clips = {split: Clips(getattr(data, split).paths, title=f"decoding {split}") for split in SPLITS}
    return Corpus(data, clips, targets, characters, references, ngrams)


def build_model(source: SpeechSource, corpus: Corpus) -> keras.Model:
    """Put a CTC head on the pretrained model."""
    return models.build_recogniser(source, corpus.characters)


def train(run: Run, source: SpeechSource, model: keras.Model, corpus: Corpus, stage: str) -> tuple[list[dict], int]:
    """Train one stage: `head`, `finetune`, or alone `frozen`, `spectrogram` or `scratch`.

    Returns:
        (history rows, number of trained parameters).
    """
    config = run.config
    policy = {"head": "frozen", "frozen": "frozen", **dict.fromkeys(FROM_SCRATCH, "all")}.get(stage, config.unfreeze)
    policy = models.ENCODER if policy == "encoder" else policy
    counts = freezing.freeze(model, source.backbone, policy, batch_norm="train")  # only the log-mel network has some
    print(f"{stage}: {counts}")
    (steps, epochs), network = planned(corpus, config), source.backbone.config
    # An accelerated clip still needs a frame per character.
    least = [samples_needed(labels, network.frame_lengths) for labels in corpus.targets]

    def batches_from(epoch, step):
        stream = training_stream(corpus, config, first=(epoch, step), least_samples=least)
        return stream.map(models.as_inputs(source.normalises), 2)

    transcribe = transcriber(source, model, corpus)
    history = train_stage(
        source, model, batches_from, lambda: error_rates(corpus.references["val"], transcribe("val").texts),
        stage=stage, epochs=epochs[stage], steps=steps, head_rate=config.head_rate, encoder_rate=config.learning_rate,
        weight_decay=config.weight_decay, rank=best_of, choose=not config.shots, score="wer", **run.saves(stage),
    )  # fmt: skip
    return history, counts.parameters


def main(config: Config) -> dict:
    """Run the whole story: data -> source -> head -> encoder -> evaluation -> export -> proof -> report."""
    run = Run(config)
    config, out, clock = run.config, run.out, run.clock
    with clock("data"):
        data = load_data(config)
    keras.utils.set_random_seed(config.seed)
    source = load_speech_source(config.source)
    run.remember(data, source)
    process = FreshProcess()  # of the proof; it imports TensorFlow meanwhile
    with clock("data"):
        corpus = prepare(data, source, config)
    print(f"{config.data}: {corpus.data.counts()}")
    model, history = build_model(source, corpus), []
    parameters = {"total": model.count_params()}
    stages = ("frozen",) if stays_frozen(config) else ("head", "finetune")
    for stage in stages:
        with clock("head" if stage == "frozen" else stage):
            rows, parameters[f"trainable_{stage}"] = train(run, source, model, corpus, stage)
        history += rows
    with clock("evaluate"):
        transcribe = transcriber(source, model, corpus)
        transcripts = transcribe("test", title="test clips", keep_log_probabilities=config.beams > 0)
        decoders = decode_with_beams(transcripts, transcribe, corpus, config) if config.beams else {}

    with clock("export"):
        exporting.save_keras_model(model, out / "model.keras")
        models.save_source(out / "preset", model, source, corpus.characters)  # a --source of other runs
        paths = corpus.data.test.paths
        version = export_recogniser(
            recogniser(source, model, corpus), out / "serving" / "speech_wav2vec", example=Path(paths[0]),
            longest_seconds=max(LONGEST_SECONDS, config.max_seconds),
        )  # fmt: skip
        expected = transcripts.texts, transcripts.confidences
        example = served_wav(Path(paths[0]))
        write_serving_files(out / "serving", "speech_wav2vec", input_name=INPUT, example=example)
        proof = prove_recogniser(version, paths, *expected, process)

    baselines = {}  # after the proof: a baseline that is stopped takes no export with it
    for name in wanted_baselines(config, source):
        with clock("baselines"), clock(f"baseline_{name}"):
            texts, rows, ending = baseline(name, run, corpus, transcripts)
        baselines[name] = results.Baseline(texts, clock.report()[f"baseline_{name}"], ending)
        history += rows

    card, size = {"spec": config.source, **source.card}, exporting.size_report(version, model)
    return results.conclude(
        "speech_wav2vec", config, corpus.data, Outcome(history, clock.report(), parameters, card, proof, size),
        references=corpus.references["test"], hypotheses=transcripts.texts, confidences=transcripts.confidences,
        decoders=decoders, baselines=baselines, titles=BASELINES,
    )  # fmt: skip


def check(config: Config) -> None:
    """Print what a run would read and how long it would take; train nothing and write a page of sample clips."""
    data = load_data(config)
    source = load_speech_source(config.source)
    corpus = prepare(data, source, config)
    print(corpus.data.describe(config.data))
    model = build_model(source, corpus)
    print(f"source: {source.card}\n{model.count_params():,} parameters")
    train, val = corpus.data.train, corpus.data.val
    print(f"{train.seconds.sum() / 60:.1f} minutes of training clips, median length {np.median(train.seconds):.1f} s")
    print(f"characters: {' '.join(corpus.characters.symbols[2:])}")
    page = Path(config.out) / "samples.html"
    write_samples(page, corpus.clips["train"], train.texts, augmentation(config), config.seed)
    print(f"augmented training clips: {page}")

    _, epochs = planned(corpus, config)
    stream = training_stream(corpus, config).map(models.as_inputs(source.normalises))
    an_epoch = seconds_of_training(source, model, stream, train.seconds)
    transcribe = build_transcriber(recogniser(source, model, corpus))
    validation = seconds_of_validation(transcribe, val.paths, val.seconds)
    wanted = set(wanted_baselines(config, source))
    stages = [epochs[stage] for stage in ("head", "finetune", *(wanted & {"frozen"}))]
    whole = sum(stages) * an_epoch + sum(min(count, VALIDATIONS) for count in stages) * validation
    print(f"estimate: {format_seconds(whole)} of training and validation, then half a minute for export and proof")
    if wanted & set(FROM_SCRATCH):
        print("networks from scratch take longer: they train until validation stops improving")


# --- helpers of the steps above ------------------------------------------------------------------------------


def training_stream(corpus: Corpus, config: Config, **options):
    """Stream augmented training clips with their transcripts."""
    return batches.training_batches(
        corpus.clips["train"], corpus.data.train.seconds, corpus.targets, config.batch_seconds, seed=config.seed,
        augmentation=augmentation(config), batch_size=config.batch_size, **options,
    )  # fmt: skip


def recogniser(source: SpeechSource, model: keras.Model, corpus: Corpus) -> Recogniser:
    """Return the model with everything needed to decode its logits."""
    return Recogniser(model, source.backbone.config, corpus.characters, source.normalises)


def transcriber(source: SpeechSource, model: keras.Model, corpus: Corpus):
    """Return a function: name of a split -> its Transcripts by the current weights of the model."""
    transcribe = build_transcriber(recogniser(source, model, corpus))
    return lambda split, **options: transcribe(corpus.clips[split], getattr(corpus.data, split).seconds, **options)


def decode_with_beams(transcripts: Transcripts, transcribe, corpus: Corpus, config: Config) -> dict[str, list[str]]:
    """Return the transcripts of the test clips by beam search, and with a language model if there is one."""
    tuned = corpus.ngrams and not config.shots
    val = transcribe("val", keep_log_probabilities=True).log_probabilities if tuned else ()
    return beam_transcripts(
        transcripts.log_probabilities, val, corpus.references["val"], corpus.characters, width=config.beams,
        ngrams=corpus.ngrams,
    )  # fmt: skip


def best_of(logs: dict[str, float]) -> tuple[float, float]:
    """Rank an epoch by its word error rate on validation, then by that of characters; by the loss before any word."""
    if "val_wer" not in logs:  # not validated
        return -inf, -inf
    if logs["val_wer"] >= 1:  # at first CTC emits blanks only, and the loss alone shows progress
        return -1.0, -1.0 - logs.get("loss", inf)
    return -round(logs["val_wer"], 6), -logs["val_cer"]


def augmentation(config: Config) -> Augmentation | None:
    """Return the augmentation of training clips."""
    return Augmentation.of(parse_list("--augment", config.augment, AUGMENTATIONS, alone=("none",)))


def planned(corpus: Corpus, config: Config) -> tuple[int, dict[str, int]]:
    """Return the steps of an epoch, and the epochs of each stage."""
    seconds = corpus.data.train.seconds
    steps = batches.steps_per_epoch(seconds, config.batch_seconds, config.seed, config.batch_size)
    return steps, stage_epochs(steps, config.head_epochs, config.epochs, choose=not config.shots)


def stays_frozen(config: Config) -> bool:
    """Return whether the head alone is trained: then the baseline `frozen` is the exported model."""
    return config.unfreeze == "frozen" or config.epochs == 0


def wanted_baselines(config: Config, source: SpeechSource) -> list[str]:
    """Return the baselines to compare with; a source without characters has no zero_shot."""
    wanted = parse_baselines(config.baselines or "zero_shot", BASELINES)
    return [name for name in BASELINES if name in wanted and (source.characters or name != "zero_shot")]


def baseline(name: str, run: Run, corpus: Corpus, exported: Transcripts) -> tuple[Sequence[str], list[dict], str]:
    """Return what a baseline outputs for the test clips, its history, and how its training from scratch ended."""
    config = run.config
    keras.utils.set_random_seed(config.seed)
    if name == "frozen" and stays_frozen(config):
        return exported.texts, [], ""
    if name == "spectrogram":
        source = spectrogram_source(recurrent=True)
    else:
        source = load_speech_source(config.source, random_weights=name == "scratch")
    if name == "zero_shot":  # with its own characters, normalised as the references
        texts = build_transcriber(models.as_recogniser(source))(corpus.clips["test"], corpus.data.test.seconds).texts
        return [corpus.characters.normalise(text) for text in texts], [], ""
    model = build_model(source, corpus)
    rows, _ = train(run, source, model, corpus, name)
    ending = how_it_ended(rows, planned(corpus, config)[1][name], not config.shots) if name in FROM_SCRATCH else ""
    return transcriber(source, model, corpus)("test").texts, rows, ending
