"""Batches of texts of about one length, against texts padded to a fixed length: sentences a second, and accuracy.

    python -m recipes fetch minilm
    python benchmarks/padding.py           # ten minutes on 2 cores

1,000 sentences of SST-2 (../shared/data) train MiniLM for two passes with the recipe's settings; the development part
answers. Each way starts from the same weights, in a process of its own. Writes benchmarks/results/padding.json and the
table of README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import files, runs  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

WAYS = {
    "by length": "texts of about one length together, as the recipe does",
    "batch": "any texts together, padded to the longest of the batch",
    "longest": "any texts together, padded to the longest of all",
    "fixed": "any texts together, padded to 128 tokens",
}
SENTENCES, EPOCHS = 1000, 2


def train(way: str) -> dict[str, float]:
    """Train with one way of padding; return sentences a second of training, and the accuracy."""
    import keras
    import numpy as np

    from common import training
    from common.texts import batches
    from common.texts.dataset import load_text_set
    from common.texts.models import build_classifier, build_encoder, layers_by_depth, unfreeze
    from common.texts.readers import Columns
    from common.texts.sources import load_text_source
    from recipes.bert_sentiment.recipe import Config

    class FixedLength(batches.Tokens):
        """Tokens whose batches all have one length."""

        def batch(self, rows):
            width = 128 if way == "fixed" else int(self.lengths.max())
            short = super().batch(rows)
            missing = max(0, width - short["token_ids"].shape[1])
            return {
                name: np.pad(array, ((0, 0), (0, missing)), constant_values=self.padding * (name == "token_ids"))
                for name, array in short.items()
            }

    config = Config(
        source="minilm", data=f"tsv:{ROOT.parent}/shared/data/sst2", text_column="1", label_column="2",
        learning_rate=1e-4,  # as by default
    )  # fmt: skip
    data = load_text_set(config.data, columns=Columns(config.text_column, config.label_column))
    keras.utils.set_random_seed(0)
    source = load_text_source(config.source)
    encoder = build_encoder(source)
    model = build_classifier(encoder, len(data.class_names), config.dropout)
    unfreeze(model, source.backbone, tables=False)
    reader = batches.TextReader(source.tokenize, config.max_length)
    chosen = data.train.take(np.random.default_rng(0).permutation(len(data.train))[:SENTENCES])
    tokens = reader.read(chosen.texts)
    if way in ("fixed", "longest"):
        tokens = FixedLength(**vars(tokens))
    steps = -(-SENTENCES // config.batch_size)
    rate = config.learning_rate / config.head_rate
    depths = layers_by_depth(source.backbone)
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(config.head_rate, EPOCHS * steps),
        slower=[(some, rate * config.layer_decay**depth) for depth, some in enumerate(depths)],
        weight_decay=config.weight_decay, global_clipnorm=config.gradient_norm,
    )  # fmt: skip
    model.compile(optimizer, "categorical_crossentropy", jit_compile=training.use_xla())
    targets, weights = np.eye(2, dtype="float32")[chosen.labels], np.ones(SENTENCES, "float32")
    pool = {} if way == "by length" else {"pool": 0}
    stream = batches.training_batches(tokens, targets, weights, config.batch_size, seed=0, **pool)
    untouched = model.get_weights()
    model.fit(stream, steps_per_epoch=3, verbose=0)  # builds the graph
    model.set_weights(untouched)
    for variable in optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable) if variable.path.split("/")[-1] != "learning_rate" else variable)
    began = time.monotonic()
    model.fit(stream, steps_per_epoch=EPOCHS * steps, verbose=0)
    seconds = time.monotonic() - began
    said = batches.run_on_tokens(model, reader.read(data.val.texts))
    accuracy = float(np.mean(said.argmax(axis=1) == data.val.labels))
    return {"sentences_a_second": round(EPOCHS * SENTENCES / seconds, 1), "accuracy": round(accuracy, 4),
            "longest": int(tokens.lengths.max())}  # fmt: skip


def main() -> None:
    """Run every way in a process of its own and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--one", choices=list(WAYS), help="only this way; prints its numbers")
    one = parser.parse_args().one
    if one:
        print(json.dumps(train(one)))
        return
    found = {}
    for way, title in WAYS.items():
        done = subprocess.run([sys.executable, __file__, "--one", way], capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
        found[way] = {"title": title} | json.loads(done.stdout.splitlines()[-1])
        print(way, found[way], flush=True)
    result = {"sentences": SENTENCES, "epochs": EPOCHS, "ways": found, "versions": runs.versions(),
              "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}  # fmt: skip
    files.write_json(ROOT / "benchmarks" / "results" / "padding.json", result)


if __name__ == "__main__":
    main()
