"""Make your own small wav2vec 2.0 from recordings of speech, and use it as a source in every other recipe of speech.

    python -m recipes run pretraining_speech --data tsv:CLIPS.tsv --out runs/ears
    python -m recipes run speech_wav2vec --source preset:runs/ears/preset

Two ways to learn, by --objective. With transcripts (ctc), the network learns to write what is said, and what it hears
on the way serves other words, voices and languages. Without (contrastive, arXiv:2006.11477), spans of the sound are
hidden, and of several sounds it has to tell which one was there. Clips are changed as other microphones in other rooms
would have heard them, so that a few voices go further. What comes out is a folder that transformers reads as well,
half precision, with its card. It makes no SavedModel: the recipe that takes it as its source exports, and proves.

With no arguments it learns from the spoken demo words: far too few, but enough to see how it works.
`bundled:wav2vec2_mini`, the source that speech_wav2vec uses offline, was made like this; its card.json holds the
command, the seconds and the scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

import keras
import numpy as np

from common import checking, pretraining_report, runs, speech_models, speech_report, training
from common.characters import Characters, build_characters, samples_needed
from common.checkpoints import fit_with_checkpoints
from common.data import speech_batches
from common.data.labelled import PARTS
from common.data.speech_batches import Augmentation, Clips
from common.data.speech_lessons import writable_clips
from common.data.speech_rows import SpeechColumns
from common.data.speech_sets import DATA_KINDS, SpeechSet, load_speech_set
from common.models.wav2vec2 import CTCHead, Wav2Vec2Backbone, Wav2Vec2Config, build_recogniser
from common.models.wav2vec2_pretraining import Wav2Vec2Pretraining
from common.progress import format_seconds
from common.recognising import Recogniser, build_listener, transcribe
from common.specs import check_choice, check_range, parse_data
from common.speech_metrics import transcription_metrics
from common.speech_sources import load_speech_source
from common.wav2vec2_weights import save_wav2vec2

HEAD_WIDTH = 48  # of an attention head


@dataclass(frozen=True)
class Config:
    """Settings of pretraining_speech."""

    data: str = "demo"
    """Clips to learn from: demo, folder:PATH (LibriSpeech, LJSpeech or Common Voice as they are), csv:PATH, tsv:PATH or
    manifest:PATH (JSON lines)."""
    objective: str = "ctc"
    """ctc (learn to write the transcripts) or contrastive (learn from the sound alone)."""
    path_column: str | None = None
    """Column of a table that holds the paths; found by its usual names where nothing is said. So are the next three."""
    text_column: str | None = None
    """Column that holds the transcripts."""
    speaker_column: str | None = None
    """Column that holds who speaks."""
    split_column: str | None = None
    """Column that says train, val or test."""
    encoding: str = "utf-8"
    """Of tables: utf-8, latin-1 ..."""
    out: str = "runs/pretraining_speech"
    """Folder for everything this run writes; the model is in OUT/preset."""
    resume: str | None = None
    """Go on with the run that was stopped in this folder, with its settings; no other flag is needed."""
    save_every: float = 30.0
    """Seconds between checkpoints: a killed run loses no more than that."""
    width: int = 192
    """Width of the transformer, a multiple of 48; more is slower and stronger."""
    layers: int = 5
    """Blocks of the transformer; more is slower and stronger."""
    channels: int = 128
    """Width of the last convolutions that read samples, a multiple of 8; the first, which see most, are narrower."""
    epochs: int | None = None
    """Passes over the clips; the default is 10, and more for few clips."""
    batch_seconds: float = 64.0
    """Seconds of sound in a step, padding included."""
    learning_rate: float = 1.5e-3
    """Peak of the learning rate; it warms up and then falls along a cosine."""
    weight_decay: float = 0.01
    """Pulls the weights towards zero: more of it for fewer clips."""
    microphone: float = 0.7
    """Share of the clips that sound as if another microphone in another room had heard them."""
    val_share: float = 0.03
    """Share of the training clips held out to watch the training; the test part is apart from it."""
    limit: int | None = None
    """Use at most this many clips of each part: a quick look."""
    strict: bool = False
    """Stop at the first clip that cannot be used instead of skipping and counting it."""
    licence: str = "as the recordings"
    """Licence written into the card of the model."""
    seed: int = 0
    """Decides initial weights, order and augmentation; the parts depend on the clips alone."""

    def __post_init__(self) -> None:
        parse_data(self.data, DATA_KINDS)
        check_choice("--objective", self.objective, ("ctc", "contrastive"))
        if self.width < HEAD_WIDTH or self.width % HEAD_WIDTH:
            raise ValueError(f"--width must be a multiple of {HEAD_WIDTH}. Received: {self.width}. Try: --width 192")
        check_range(self, 1, inf, "layers", "epochs", "batch_seconds", "limit")
        if self.channels % 8:
            raise ValueError(f"--channels must be a multiple of 8. Received: {self.channels}. Try: --channels 128")
        check_range(self, 8, 1024, "channels")
        check_range(self, 0, inf, "save_every", "learning_rate", "weight_decay", "seed")
        check_range(self, 0, 1, "microphone")
        check_range(self, 0.001, 0.5, "val_share")


def load_data(config: Config) -> SpeechSet:
    """Read, check and split the clips."""
    columns = SpeechColumns(
        config.path_column, config.text_column, None, config.speaker_column, config.split_column, config.encoding
    )
    task = "transcripts" if config.objective == "ctc" else "sounds"  # which need no text
    return load_speech_set(
        config.data, task=task, columns=columns, limit=config.limit, strict=config.strict, val_share=config.val_share
    )


def prepare(data: SpeechSet, backbone: Wav2Vec2Backbone, config: Config):
    """Return (clips that can be learned from, the characters of their transcripts or None, what each is to say)."""
    if config.objective == "contrastive":
        return data, None, data.train.labels
    characters = build_characters(data.train.texts)
    data, targets = writable_clips(data, characters, backbone.config.frame_lengths, strict=config.strict)
    return data, characters, targets


def network(config: Config) -> Wav2Vec2Config:
    """Return the sizes of a small wav2vec 2.0; norms stand before each part (as in XLS-R), which learns more steadily.

    With transcripts short spans are hidden while it learns; no block is skipped, since there are few.
    """
    return Wav2Vec2Config(
        conv_dim=tuple(config.channels * share // 8 for share in (2, 3, 4, 6, 8, 8, 8)), conv_bias=True,
        feat_extract_norm="layer", do_stable_layer_norm=True,
        hidden_size=config.width, num_hidden_layers=config.layers, num_attention_heads=config.width // HEAD_WIDTH,
        intermediate_size=4 * config.width, num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=16,
        hidden_dropout=0.05, attention_dropout=0.05, activation_dropout=0.0, final_dropout=0.05, layerdrop=0.0,
        mask_time_prob=0.05, mask_time_length=4, mask_time_min_masks=0, num_codevectors_per_group=64,
        codevector_dim=64, proj_codevector_dim=64, num_negatives=50,
    )  # fmt: skip


def build_learner(config: Config, backbone: Wav2Vec2Backbone, characters: Characters | None) -> keras.Model:
    """Return what learns: the backbone with a CTC head, or with the quantizer and the contrastive loss."""
    if config.objective == "contrastive":
        return speech_models.ContrastiveLearner(Wav2Vec2Pretraining(backbone), seed=config.seed)
    return speech_models.Learner(build_recogniser(backbone, CTCHead(len(characters), name="head")), backbone.config)


def train(config: Config, learner: keras.Model, backbone, data: SpeechSet, clips, targets, score) -> list[dict]:
    """Train all weights from scratch; return a history row for each epoch.

    Args:
        config: the settings.
        learner: as `build_learner` gives it.
        backbone: inside of it.
        data: the clips.
        clips: of each part, decoded.
        targets: the numbers of each training transcript.
        score: measures the learner as it is on a part.
    """
    steps = speech_batches.steps_per_epoch(data.train.seconds, config.batch_seconds, config.seed)
    epochs = passes(config, steps)
    frames_of, least = backbone.config.frame_lengths, None
    if config.objective == "ctc":  # a clip that is played faster still needs a frame for each character
        least = [samples_needed(labels, frames_of) for labels in targets]
    compile_learner(config, learner, epochs * steps)

    def begin(epoch, logs):
        if config.objective == "contrastive":
            learner.cool(epoch / epochs)

    def watch(epoch, logs):
        logs.update({f"val_{name}": value for name, value in score("val").items()})

    return fit_with_checkpoints(
        learner,
        lambda *first: training_stream(config, data, clips["train"], targets, least, first),
        epochs=epochs,
        lines=training.EpochLines("pretraining_speech", epochs, steps),
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=watch)],
        checkpoint=Path(config.out) / "checkpoints" / "pretraining_speech.npz",
        save_every=config.save_every,
    )


def main(config: Config) -> dict:
    """Run the whole story: clips -> training -> preset -> evaluation -> report."""
    config = runs.start(config)
    out = Path(config.out)
    clock = runs.Stopwatch(out / "checkpoints" / "seconds.json")
    with clock("data"):
        data = load_data(config)
    print(f"{config.data}: {data.counts()}")
    runs.remember_inputs(out, data.fingerprint())
    keras.utils.set_random_seed(config.seed)
    backbone = Wav2Vec2Backbone(network(config))
    with clock("data"):
        data, characters, targets = prepare(data, backbone, config)
        clips = {part: Clips(getattr(data, part).paths, title=f"decoding {part}") for part in PARTS}
    learner = build_learner(config, backbone, characters)
    print(f"{backbone.count_params():,} parameters, {2 * backbone.count_params() / 1e6:.1f} MB as a preset")
    score = scorer(config, learner, backbone, characters, data, clips)
    with clock("baselines"):
        untrained = score("test")
    with clock("pretraining"):
        history = train(config, learner, backbone, data, clips, targets, score)

    preset = save_preset(config, learner, backbone, characters)
    with clock("evaluate"):  # the model as it was saved: half precision is part of the numbers
        load_saved(preset, learner, backbone)
        test = score("test")
    return conclude(config, data, test, untrained, learner, backbone, preset, history, clock.report())


def check(config: Config) -> None:
    """Say what a run would read and how long it would take; train nothing and write one page to listen to."""
    data = load_data(config)
    print(f"{config.data}: {data.counts()}, {data.train.seconds.sum() / 3600:.1f} hours of training clips")
    print(*(f"  {sentence}" for sentence in data.advice()), sep="\n")
    backbone = Wav2Vec2Backbone(network(config))
    data, characters, targets = prepare(data, backbone, config)
    learner = build_learner(config, backbone, characters)
    print(f"{backbone.count_params():,} parameters, {2 * backbone.count_params() / 1e6:.1f} MB as a preset")
    clips = Clips(data.train.paths, title="")
    page = speech_report.write_samples(
        Path(config.out) / "samples.html", clips, data.train.texts, augmentation(config), config.seed
    )
    print(f"clips as trained on: {page}")
    steps = speech_batches.steps_per_epoch(data.train.seconds, config.batch_seconds, config.seed)
    compile_learner(config, learner, steps)
    stream = training_stream(config, data, clips, targets, None, (0, 0))
    batch = next(stream.as_numpy_iterator())
    step = checking.median_seconds(lambda: learner.train_on_batch(*batch))  # the weights are thrown away
    print(f"estimate: {format_seconds(passes(config, steps) * steps * step)} of training")


# --- small things that the steps above share ----------------------------------------------------------------


def passes(config: Config, steps: int) -> int:
    """Return the number of passes over the clips: enough steps to learn something, where the clips are few."""
    return max(10, ceil(300 / steps)) if config.epochs is None else config.epochs


def training_stream(config: Config, data: SpeechSet, clips: Clips, targets, least, first: tuple[int, int]):
    """Stream changed clips with their transcripts, from (epoch, step) on."""
    stream = speech_batches.training_batches(
        clips, data.train.seconds, targets, config.batch_seconds, seed=config.seed, first=first,
        augmentation=augmentation(config), least_samples=least,
    )  # fmt: skip
    return stream.map(speech_models.as_inputs(normalises=True), 2)


def augmentation(config: Config) -> Augmentation:
    """Return what happens to training clips."""
    return Augmentation(speed=(0.85, 1.2), noise_share=0.7, microphone=config.microphone)


def compile_learner(config: Config, learner: keras.Model, steps: int) -> None:
    """Set the optimizer; the learner knows its loss."""
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(config.learning_rate, steps), weight_decay=config.weight_decay,
        global_clipnorm=1.0,
    )  # fmt: skip
    learner.compile(optimizer=optimizer, jit_compile=False)


def scorer(config: Config, learner, backbone, characters: Characters | None, data: SpeechSet, clips):
    """Return a function: name of a part -> the scores of the learner as it is then."""
    if config.objective == "contrastive":
        return lambda part: speech_models.contrastive_scores(
            learner, clips[part], getattr(data, part).seconds, config.batch_seconds
        )
    listen = build_listener(Recogniser(learner.network, backbone.config, characters, normalises=True))

    def score(part: str) -> dict:
        examples = getattr(data, part)
        said = transcribe(
            listen, clips[part], examples.seconds, characters, keep_log_probabilities=False, title=""
        )  # fmt: skip
        references = [characters.normalise(text) for text in examples.texts]
        found = transcription_metrics(references, said.texts, list(examples.speakers))
        return {name: found[name] for name in ("wer", "cer")} if part == "val" else found

    return score


def save_preset(config: Config, learner: keras.Model, backbone: Wav2Vec2Backbone, characters: Characters | None):
    """Write the model as a folder that `--source preset:` and transformers read, weights as float16; return it."""
    preset = Path(config.out) / "preset"
    if characters is None:
        return save_wav2vec2(preset, backbone, half=True)
    return save_wav2vec2(preset, backbone, learner.network.get_layer("head"), characters.to_json(), half=True)


def load_saved(preset: Path, learner: keras.Model, backbone: Wav2Vec2Backbone) -> None:
    """Put the weights as they were saved into the learner."""
    saved = load_speech_source(f"preset:{preset}")
    backbone.set_weights(saved.backbone.get_weights())
    if saved.head is not None:
        learner.network.get_layer("head").set_weights(saved.head.get_weights())


def conclude(config: Config, data: SpeechSet, test, untrained, learner, backbone, preset, history, seconds) -> dict:
    """Write the card of the model and what a run promises to write; return what metrics.json holds."""
    metrics = {
        "recipe": "pretraining_speech",
        "test": test,
        "baselines": {"random_weights": untrained},
        "seconds": seconds,
        "counts": data.counts(),
        "parameters": {"total": learner.network.count_params(), "backbone": backbone.count_params()},
        "proof": {},  # nothing is exported here: the recipe that takes the preset exports, and proves
        "peak_memory_mb": runs.peak_memory_mb(),
        "source": f"preset:{preset}",
        "objective": config.objective,
        "data": config.data,
        "seed": config.seed,
        "versions": runs.versions(),
    }
    card = {
        "licence": config.licence,
        "data": f"{config.data}: {len(data.train):,} clips, {data.train.seconds.sum() / 3600:.1f} hours",
        "objective": config.objective,
        "command": runs.command("pretraining_speech", config),
        "seconds": seconds,
        "test": {name: value for name, value in test.items() if np.isscalar(value)},
        "notes": data.advice(),
        "versions": metrics["versions"],
    }
    runs.write_json(preset / "card.json", card)
    sentences = [*data.advice(), f"Use it: python -m recipes run speech_wav2vec --source {metrics['source']}"]
    pretraining_report.write_report(
        Path(config.out), title="Pretraining speech", metrics=metrics, config=vars(config), history=history,
        sentences=sentences, skipped=data.skipped,
    )  # fmt: skip
    runs.finish(Path(config.out), metrics, history, data.skipped)
    print("\n".join(["", *pretraining_report.score_lines(metrics), "", *(f"  {line}" for line in sentences)]))
    print(f"  Report: {Path(config.out) / 'report.html'}\n")
    return metrics
