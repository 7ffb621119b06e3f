"""Pretrain your own small wav2vec 2.0 on recordings, and use it as a source in the other speech recipes.

    python -m recipes run pretraining_speech --data tsv:CLIPS.tsv --out runs/encoder
    python -m recipes run speech_wav2vec --source preset:runs/encoder/preset

There are two objectives. With transcripts (ctc), the network is trained to transcribe, and its features transfer to
other words, speakers and languages. Without (contrastive, arXiv:2006.11477), spans of the sound are masked, and the
network has to identify them among several candidates. Clips are augmented as if recorded with other microphones in
other rooms, to make more of few speakers. The result is a folder in half precision, with its card, that transformers
reads as well. It exports no SavedModel: the recipe that uses it as a source does.

Without arguments it trains on the synthetic demo words: far too few, but enough to see how it works.
`bundled:wav2vec2_mini`, the default source of speech_wav2vec, was made like this; its card.json has the command, the
seconds and the scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from pathlib import Path

import keras
import numpy as np

from common import results, training
from common.checkpoints import fit_with_checkpoints
from common.data.splits import SPLITS
from common.errors import UserError
from common.flags import check_choice, check_range, parse_data
from common.progress import format_seconds, median_seconds
from common.results import Outcome
from common.runs import Run
from common.sources import preset_card
from common.sources.specs import parse_source
from common.speech import batches, contrastive, models
from common.speech.batches import Augmentation, Clips
from common.speech.ctc.characters import Characters, build_characters, samples_needed
from common.speech.ctc_targets import writable_clips
from common.speech.dataset import DATA_KINDS, SpeechSet, load_speech_set
from common.speech.inference import Recogniser, build_forward, transcribe
from common.speech.metrics import transcription_metrics
from common.speech.pretraining_report import table, write_report
from common.speech.readers import SpeechColumns
from common.speech.samples import write_samples
from common.speech.sources import SpeechSource, load_speech_source
from common.speech.wav2vec2.config import Wav2Vec2Config
from common.speech.wav2vec2.heads import CTCHead, build_recogniser
from common.speech.wav2vec2.network import Wav2Vec2Backbone
from common.speech.wav2vec2.pretraining import Wav2Vec2Pretraining
from common.speech.wav2vec2.weights import save_wav2vec2

BASELINES = {"random_weights": "Random weights"}  # always there
SCORES = ("wer", "cer", "contrastive_loss", "codes_used")
GALLERY = {"in": "recordings", "out": "a source for speech recipes", "row": ""}
QUICK = "--limit 12 --epochs 1"  # a run of seconds, for tests
EARLY = "common.speech.dataset:refuse_early"  # called before TensorFlow is imported
HEAD_WIDTH = 48  # of an attention head
ARCHITECTURE = (
    "conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "intermediate_size", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups",
    "do_stable_layer_norm",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of pretraining_speech."""

    data: str = "demo:synthetic"  # demo:synthetic, folder:PATH (LibriSpeech, LJSpeech ...), csv:, tsv: or manifest:PATH
    objective: str = "ctc"  # ctc (train on transcripts) or contrastive (train on sound alone)
    start: str | None = None  # Model to begin with, of the same sizes: preset:RUN/preset of a run without transcripts
    path_column: str | None = None  # Column of the paths in a table; found by its usual names by default
    text_column: str | None = None  # Column of the transcripts; found by its usual names by default
    speaker_column: str | None = None  # Column of the speakers; found by its usual names by default
    split_column: str | None = None  # Column of the splits train, val, test; found by its usual names by default
    encoding: str = "utf-8"  # Encoding of tables: utf-8, latin-1 ...
    out: str = "runs/pretraining_speech"  # Folder for everything this run writes; the model is in OUT/preset
    resume: str | None = None  # Continue the run that was stopped in this folder; no other flag is needed
    save_every: float = 30.0  # Seconds between checkpoints: a killed run loses no more than that
    width: int = 192  # Width of the transformer, a multiple of 48; more is slower and stronger
    layers: int = 5  # Transformer layers; more is slower and stronger
    channels: int = 128  # Channels of the last convolutions, a multiple of 8; the first ones are narrower
    epochs: int | None = None  # Epochs; 10 by default, more for few clips
    batch_seconds: float = 64.0  # Seconds of sound per step, padding included
    learning_rate: float = 1.5e-3  # Peak learning rate, after warm-up; cosine decay
    weight_decay: float = 0.01  # Weight decay; increase it for few clips
    microphone: float = 0.7  # Share of the clips that are augmented as if recorded in another room
    val_share: float = 0.03  # Share of the training clips that becomes validation; the test split is separate
    limit: int | None = None  # Use at most this many clips of each split: a quick look
    strict: bool = False  # Stop at the first clip that cannot be used instead of skipping and counting it
    licence: str = "as the recordings"  # Licence written into the card of the model
    seed: int = 0  # Seed of initial weights, shuffling and augmentation; the split depends on the clips alone

    def __post_init__(self) -> None:
        parse_data(self.data, DATA_KINDS[1:])  # without the demo of people
        check_choice("--objective", self.objective, ("ctc", "contrastive"))
        if self.start:
            parse_source(self.start, "--start")
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


def load_start(config: Config) -> SpeechSource | None:
    """Return the model to begin with; None without one.

    Raises:
        UserError: it is not a speech model, or not a network of this recipe with the same sizes.
    """
    if not config.start:
        return None
    try:
        source = load_speech_source(config.start)
    except UserError as error:
        raise UserError(str(error).replace("--source", "--start")) from error
    theirs, ours = source.backbone.config, network(config)
    if not source.normalises or any(getattr(theirs, name) != getattr(ours, name) for name in ARCHITECTURE):
        raise UserError(
            "--start must be a model of pretraining_speech with the same --width, --layers and --channels: "
            f"{config.width}, {config.layers}, {config.channels}. Received: {config.start}, with width "
            f"{theirs.hidden_size}, {theirs.num_hidden_layers} layers and {theirs.conv_dim[-1]} channels."
        )
    return source


def prepare(data: SpeechSet, backbone: Wav2Vec2Backbone, config: Config):
    """Return (clips that can be trained on, the characters of their transcripts or None, the training targets)."""
    if config.objective == "contrastive":
        return data, None, data.train.labels
    characters = build_characters(data.train.texts)
    data, targets = writable_clips(data, characters, backbone.config.frame_lengths, strict=config.strict)
    return data, characters, targets


def network(config: Config) -> Wav2Vec2Config:
    """Return the sizes of a small wav2vec 2.0: pre-norm as in XLS-R, which trains more stably; without layer drop."""
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
    """Return the model to train: the backbone with a CTC head, or with the quantizer and the contrastive loss."""
    if config.objective == "contrastive":
        return contrastive.ContrastiveLearner(Wav2Vec2Pretraining(backbone), seed=config.seed)
    return models.Learner(build_recogniser(backbone, CTCHead(len(characters), name="head")), backbone.config)


def train(run: Run, learner: keras.Model, backbone, data: SpeechSet, clips, targets, score) -> list[dict]:
    """Train all weights; return a history row per epoch.

    Args:
        run: with the settings.
        learner: as returned by `build_learner`.
        backbone: inside it.
        data: the clips.
        clips: of each split, decoded.
        targets: the character numbers of each training transcript.
        score: returns the current scores of the learner on a split.
    """
    config = run.config
    steps = batches.steps_per_epoch(data.train.seconds, config.batch_seconds, config.seed)
    epochs, least = epochs_of(config, steps), None
    if config.objective == "ctc":  # an accelerated clip still needs a frame per character
        least = [samples_needed(labels, backbone.config.frame_lengths) for labels in targets]
    compile_learner(config, learner, epochs * steps)

    def cool(epoch, logs):
        if config.objective == "contrastive":
            learner.cool(epoch / epochs)

    def validate(epoch, logs):
        logs.update({f"val_{name}": value for name, value in score("val").items()})

    lines = training.EpochLines("pretraining_speech", epochs, steps, ("wer", "contrastive_loss"))
    return fit_with_checkpoints(
        learner, lambda *first: training_stream(config, data, clips["train"], targets, least, first), epochs=epochs,
        lines=lines, callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=cool, on_epoch_end=validate)],
        **run.saves("pretraining_speech"),
    )  # fmt: skip


def main(config: Config) -> dict:
    """Run the whole story: clips -> training -> preset -> evaluation -> report."""
    run = Run(config)
    config, clock = run.config, run.clock
    start = load_start(config)
    with clock("data"):
        data = load_data(config)
    print(f"{config.data}: {data.counts()}")
    run.remember(data, *([start] if start else []))
    keras.utils.set_random_seed(config.seed)
    backbone = Wav2Vec2Backbone(network(config))
    with clock("data"):
        data, characters, targets = prepare(data, backbone, config)
        clips = {split: Clips(getattr(data, split).paths, title=f"decoding {split}") for split in SPLITS}
    learner = build_learner(config, backbone, characters)
    print(f"{backbone.count_params():,} parameters, {2 * backbone.count_params() / 1e6:.1f} MB as a preset")
    score = scorer(config, learner, backbone, characters, data, clips)
    with clock("baselines"):
        baselines = {"random_weights": score("test")}
    if start:
        backbone.set_weights(start.backbone.get_weights())
    with clock("pretraining"):
        history = train(run, learner, backbone, data, clips, targets, score)

    preset = save_preset(config, learner, backbone, characters)
    with clock("evaluate"):  # the saved model, in half precision
        load_saved(preset, learner, backbone)
        test = score("test")
    parameters = {"total": learner.network.count_params(), "backbone": backbone.count_params()}
    use = f"Use it: python -m recipes run speech_wav2vec --source preset:{preset}"
    metrics = results.conclude(
        "pretraining_speech", config, Outcome(history, clock.report(), parameters, {"spec": f"preset:{preset}"}),
        {"test": test, "baselines": baselines, "objective": config.objective}, counts=data.counts(),
        skipped=data.skipped, sentences=[*data.advice(), use], table=partial(table, titles=BASELINES),
        write_files=partial(write_report, history=history, skipped=data.skipped, titles=BASELINES),
    )  # fmt: skip
    learned_from = f"{config.data}: {len(data.train):,} clips, {data.train.seconds.sum() / 3600:.1f} hours"
    scalars = metrics | {"test": {name: value for name, value in test.items() if np.isscalar(value)}}
    more = {"objective": config.objective, "notes": data.advice()}
    if start:
        more["start"] = start.card
    preset_card.write_preset_card(preset, "pretraining_speech", config, learned_from, scalars, **more)
    return metrics


def check(config: Config) -> None:
    """Print what a run would read and how long it would take; train nothing and write a page of sample clips."""
    load_start(config)
    data = load_data(config)
    print(f"{config.data}: {data.counts()}, {data.train.seconds.sum() / 3600:.1f} hours of training clips")
    print(*(f"  {sentence}" for sentence in data.advice()), sep="\n")
    backbone = Wav2Vec2Backbone(network(config))
    data, characters, targets = prepare(data, backbone, config)
    learner = build_learner(config, backbone, characters)
    print(f"{backbone.count_params():,} parameters, {2 * backbone.count_params() / 1e6:.1f} MB as a preset")
    clips = Clips(data.train.paths, title="")
    page = write_samples(Path(config.out) / "samples.html", clips, data.train.texts, augmentation(config), config.seed)
    print(f"augmented training clips: {page}")
    steps = batches.steps_per_epoch(data.train.seconds, config.batch_seconds, config.seed)
    compile_learner(config, learner, steps)
    stream = training_stream(config, data, clips, targets, None, (0, 0))
    batch = next(stream.as_numpy_iterator())
    step = median_seconds(lambda: learner.train_on_batch(*batch))  # the weights are discarded
    print(f"estimate: {format_seconds(epochs_of(config, steps) * steps * step)} of training")


# --- helpers of the steps above ------------------------------------------------------------------------------


def epochs_of(config: Config, steps: int) -> int:
    """Return the number of epochs, more for few clips."""
    return max(10, ceil(300 / steps)) if config.epochs is None else config.epochs


def training_stream(config: Config, data: SpeechSet, clips: Clips, targets, least, first: tuple[int, int]):
    """Stream augmented clips with their targets, from (epoch, step) on."""
    stream = batches.training_batches(
        clips, data.train.seconds, targets, config.batch_seconds, seed=config.seed, first=first,
        augmentation=augmentation(config), least_samples=least,
    )  # fmt: skip
    return stream.map(models.as_inputs(normalises=True), 2)


def augmentation(config: Config) -> Augmentation:
    """Return the augmentation of training clips."""
    return Augmentation(speed=(0.85, 1.2), noise_share=0.7, microphone=config.microphone)


def compile_learner(config: Config, learner: keras.Model, steps: int) -> None:
    """Set the optimizer; the learner has its own loss."""
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(config.learning_rate, steps), weight_decay=config.weight_decay,
        global_clipnorm=1.0,
    )  # fmt: skip
    learner.compile(optimizer=optimizer, jit_compile=False)


def scorer(config: Config, learner, backbone, characters: Characters | None, data: SpeechSet, clips):
    """Return a function: name of a split -> the current scores of the learner."""
    if config.objective == "contrastive":
        return lambda split: contrastive.contrastive_scores(
            learner, clips[split], getattr(data, split).seconds, config.batch_seconds
        )
    forward = build_forward(Recogniser(learner.network, backbone.config, characters, normalises=True))

    def score(split: str) -> dict:
        examples = getattr(data, split)
        transcripts = transcribe(
            forward, clips[split], examples.seconds, characters, keep_log_probabilities=False, title=""
        )  # fmt: skip
        references = [characters.normalise(text) for text in examples.texts]
        found = transcription_metrics(references, transcripts.texts, list(examples.speakers))
        return {name: found[name] for name in ("wer", "cer")} if split == "val" else found

    return score


def save_preset(config: Config, learner: keras.Model, backbone: Wav2Vec2Backbone, characters: Characters | None):
    """Write the model as a folder that `--source preset:` and transformers read, weights as float16; return it."""
    preset = Path(config.out) / "preset"
    if characters is None:
        return save_wav2vec2(preset, backbone, half=True)
    return save_wav2vec2(preset, backbone, learner.network.get_layer("head"), characters.to_json(), half=True)


def load_saved(preset: Path, learner: keras.Model, backbone: Wav2Vec2Backbone) -> None:
    """Load the saved weights into the learner."""
    saved = load_speech_source(f"preset:{preset}")
    backbone.set_weights(saved.backbone.get_weights())
    if saved.head is not None:
        learner.network.get_layer("head").set_weights(saved.head.get_weights())
