"""A small BERT in the format of TF Hub: loaded with our tokenizer, fine-tuned, exported and proved."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import exporting
from common.errors import UserError
from common.texts import export
from common.texts.batches import TextReader, run_on_tokens
from common.texts.models import build_classifier, build_encoder, layers_by_depth, unfreeze
from common.texts.sources import load_text_source

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "world", "w", "##orld", "##ing"]
NAMES = ("input_word_ids", "input_mask", "input_type_ids")


class Encoder(tf.Module):
    """A minimal encoder with the inputs, outputs and names of TF Hub."""

    def __init__(self, rows: int, lowercase: bool | None):
        super().__init__()
        rng = np.random.default_rng(0)

        def variable(name, *shape):
            return tf.Variable(rng.normal(size=shape).astype("float32"), name=name)

        self.words = variable("word_embeddings/embeddings", rows, 8)
        self.positions = variable("position_embedding/embeddings", 16, 8)
        self.types = variable("type_embeddings/embeddings", 2, 8)
        self.kernel = variable("transformer/layer_0/intermediate/kernel", 8, 8)
        self.pooler = variable("pooler_transform/kernel", 8, 8)
        if lowercase is not None:
            self.do_lower_case = tf.Variable(lowercase, trainable=False, name="do_lower_case")
        spec = {name: tf.TensorSpec((None, None), tf.int32, name=name) for name in NAMES}
        for training in (False, True):
            self.__call__.get_concrete_function(spec, training=training)

    @tf.function
    def __call__(self, inputs, training=False):
        ids, mask, kinds = (inputs[name] for name in NAMES)
        states = tf.gather(self.words, ids) + self.positions[: tf.shape(ids)[1]] + tf.gather(self.types, kinds)
        if training:
            states = tf.nn.dropout(states, 0.1)
        weights = tf.cast(mask, tf.float32)[..., None]
        mean = tf.reduce_sum(states * weights, axis=1, keepdims=True) / tf.reduce_sum(weights, axis=1, keepdims=True)
        states = tf.nn.gelu((states + mean) @ self.kernel)
        pooled = tf.tanh(states[:, 0] @ self.pooler)
        return {"sequence_output": states, "pooled_output": pooled, "encoder_outputs": [states], "default": pooled}


def write(folder: Path, rows: int = len(WORDS), lowercase: bool | None = True, words: list[str] | None = None) -> Path:
    tf.saved_model.save(Encoder(rows, lowercase), str(folder))
    (folder / "assets").mkdir(exist_ok=True)
    (folder / "assets" / "vocab.txt").write_text("\n".join(words or WORDS) + "\n", "utf-8")
    return folder


@pytest.mark.slow
def test_it_is_fine_tuned_and_served(tmp_path):
    source = load_text_source(f"hub:{write(tmp_path / 'hub')}")
    assert source.max_length == 16 and source.tokenize(["Wörld wing"]).to_list() == [[5, 6, 8]]
    model = build_classifier(build_encoder(source), 2, dropout=0.1)
    unfreeze(model, source.backbone, tables=True)
    model.compile("adam", "categorical_crossentropy", jit_compile=False)
    texts = ["world", "Wörld wing", "", "w " * 40, "???"]
    reader = TextReader(source.tokenize, source.max_length)
    tokens = reader.read(texts)
    layer = source.backbone.get_layer("bert")
    before = {variable.name: variable.numpy() for variable in layer.module_variables}
    model.train_on_batch(tokens.batch(range(5)), np.eye(2)[[0, 1, 0, 1, 0]])
    trained = [v.name for v in layer.module_variables if not np.array_equal(v.numpy(), before[v.name])]
    assert len(trained) == 4 and not any("pooler" in name for name in trained)
    assert sum(len(group) for group in layers_by_depth(source.backbone)) == len(source.backbone.weights)

    probabilities = run_on_tokens(model, tokens)
    version = export.export_text_classifier(model, reader, tmp_path / "served", ["a", "b"], examples=texts[:1])
    proof = export.prove_text_classifier(version, texts, probabilities, ["a", "b"])
    assert proof["passed"], proof
    saved = exporting.save_keras_model(model, tmp_path / "model.keras")
    again = keras.models.load_model(saved, safe_mode=False)
    np.testing.assert_allclose(run_on_tokens(again, tokens), probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("lowercase", "words", "expected"),
    [(False, WORDS, False), (True, [*WORDS[:-1], "W"], True), (None, WORDS, True), (None, [*WORDS[:-1], "W"], False)],
)
def test_text_is_lowercased_as_stated_or_by_the_vocabulary(lowercase, words, expected, tmp_path):
    source = load_text_source(f"hub:{write(tmp_path, lowercase=lowercase, words=words)}")
    assert (source.tokenize(["WORLD"]).to_list() == [[5]]) is expected


def test_initial_weights(tmp_path):
    folder = write(tmp_path)
    trained, fresh = (load_text_source(f"hub:{folder}{end}") for end in ("", "@random"))
    assert fresh.card["data"] == "none"
    assert not np.array_equal(trained.backbone.get_weights()[0], fresh.backbone.get_weights()[0])


def test_anything_but_such_an_encoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="it has 9 tokens, and the embedding table has 300 rows"):
        load_text_source(f"hub:{write(tmp_path / 'rows', rows=300)}")
    folder = write(tmp_path / "words")
    (folder / "assets" / "vocab.txt").unlink()
    with pytest.raises(UserError, match="The encoder has no vocabulary"):
        load_text_source(f"hub:{folder}")
    with pytest.raises(UserError, match=r"has no such output\. Allowed: default"):
        load_text_source(f"hub:{write(tmp_path / 'output')}(output=nonsense)")
    images = tf.Module()
    images.__call__ = tf.function(lambda x: x * 1.0, input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32)])
    tf.saved_model.save(images, str(tmp_path / "p"), {"serving_default": images.__call__})
    with pytest.raises(UserError, match=r"must take the inputs of a BERT from TF Hub.*which takes"):
        load_text_source(f"hub:{tmp_path / 'p'}")
