"""Write what the reference implementation of BERT says, for tests/texts/test_references.py: ids and hidden states.

    pip install -r requirements-parity.txt       # PyTorch and transformers, the reference
    python -m recipes fetch minilm               # the real vocabulary and weights, 91 MB
    python benchmarks/refresh_text_references.py # half a minute

tests/texts/data/hard_strings.json         strings in many scripts that are hard to cut, with their token ids
tests/texts/data/minilm_hidden_states.npz  sentences, with what each layer makes of them

The ids are those of the package tokenizers: WordPiece on the real vocabulary, without special tokens, so that `[CLS]`
written in a text is text. transformers' own tokenizer of the folder must say the same of every string that writes no
special token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from text_strings import STRINGS  # noqa: E402 (the paths above)

from common import files  # noqa: E402
from common.sources.catalogue import CATALOGUE  # noqa: E402
from common.sources.entries import missing_files  # noqa: E402

MINILM = CATALOGUE["minilm"]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

SENTENCES = (
    "A joy to read.",
    "The film was not bad at all, but the ending felt rushed.",
    "Café prices in Zürich rose by 3.5% between 2019 and 2024, said the mayor's office.",
    "Why?",
    "In 日本 the word is 映画, and nobody minds.",
    "Unbelievably, the antidisestablishmentarianism lecture was over-subscribed; 400 people queued outside.",
    "She opened the window, because the room was hot, and then closed it again, because the street was loud. Nobody "
    "in the house had slept for two nights. The heat had come early that year, before the fields were ready for it, "
    "and the old people in the village said that they remembered one summer like it, long before the war, when the "
    "river had dried up and the mill had stood still from June to October. The children did not believe a word of it. "
    "They swam every evening, and the water was as high as it had ever been.",
)


def reference_tokenizer():
    """Return WordPiece of the package tokenizers on the real vocabulary, with no token that is special in a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    model = models.WordPiece.from_file(str(MINILM.folder / "vocab.txt"), unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def hard_strings() -> dict:
    """Tokenize the strings by the reference, and pick the part of the vocabulary that can occur in them.

    Returns:
        What hard_strings.json holds.

    Raises:
        SystemExit: transformers' tokenizer says something else.
    """
    import tokenizers
    import transformers

    tokenizer = reference_tokenizer()
    rows = [
        {"text": text, "script": script, "ids": tokenizer.encode(text, add_special_tokens=False).ids}
        for script, texts in STRINGS.items()
        for text in texts
    ]
    other = transformers.AutoTokenizer.from_pretrained(MINILM.folder)
    for row in rows:
        writes_one = any(token in row["text"] for token in SPECIAL)
        if not writes_one and other(row["text"], add_special_tokens=False)["input_ids"] != row["ids"]:
            raise SystemExit(f"transformers' tokenizer gives other ids of {row['text']!r}.")

    # A token that stands nowhere in a word of the folded texts cannot be chosen, whatever stands before it.
    words = {
        word
        for row in rows
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(row["text"]))
    }
    folded = " ".join(sorted(words))
    ids = tokenizer.get_vocab()
    can_occur = [t for t in ids if t in SPECIAL or t.removeprefix("##") in folded]
    return {
        "made_by": "benchmarks/refresh_text_references.py",
        "reference": f"tokenizers {tokenizers.__version__}; transformers {transformers.__version__} agrees",
        "vocabulary_sha256": MINILM.sha256["vocab.txt"],
        "vocabulary_size": len(ids),
        "strings": rows,
        "vocabulary": {token: ids[token] for token in sorted(can_occur, key=ids.get)},
    }


def write_strings(path: Path, content: dict) -> Path:
    """Write hard_strings.json in ASCII, a line for each string and for some tokens of the vocabulary.

    Args:
        path: file to write.
        content: as `hard_strings` gives it.

    Returns:
        The path.
    """
    one_a_line = [json.dumps(row) for row in content["strings"]]
    tokens = [f"{json.dumps(token)}: {number}" for token, number in content["vocabulary"].items()]
    some_a_line = [", ".join(tokens[first : first + 10]) for first in range(0, len(tokens), 10)]
    parts = [
        f"{json.dumps(key)}: {json.dumps(content[key])}" for key in content if key not in ("strings", "vocabulary")
    ]
    parts.append('"strings": [\n' + ",\n".join(one_a_line) + "\n]")
    parts.append('"vocabulary": {\n' + ",\n".join(some_a_line) + "\n}")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    return files.write_atomically(path, lambda partial: partial.write_text(text, "ascii"))


def hidden_states(sentences: Sequence[str]) -> dict[str, np.ndarray]:
    """Run transformers' BertModel on the sentences, in one padded batch.

    Args:
        sentences: of different lengths.

    Returns:
        What minilm_hidden_states.npz holds: sentences and reference (text), token_ids and padding_mask
        [sentences, length], positions [sentences, 3] of which the states are kept (first, middle and last token),
        hidden_states [sentences, 3, layers, width] (embeddings, then each layer), and embeddings [sentences, width],
        the mean over the tokens of the last layer.
    """
    import torch
    import transformers

    tokenizer = reference_tokenizer()
    start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    rows = [[start, *tokenizer.encode(sentence, add_special_tokens=False).ids, end] for sentence in sentences]
    lengths = np.array([len(row) for row in rows])
    token_ids = np.zeros((len(rows), lengths.max()), np.int32)  # [PAD] is 0
    for number, row in enumerate(rows):
        token_ids[number, : len(row)] = row
    mask = (np.arange(token_ids.shape[1]) < lengths[:, None]).astype(np.int32)

    model = transformers.BertModel.from_pretrained(
        MINILM.folder, attn_implementation="eager", dtype=torch.float32, use_safetensors=True
    ).eval()
    with torch.inference_mode():
        said = model(torch.tensor(token_ids), attention_mask=torch.tensor(mask), output_hidden_states=True)
    states = np.stack([layer.numpy() for layer in said.hidden_states], axis=2)  # [sentences, length, layers, width]
    positions = np.stack([np.zeros_like(lengths), lengths // 2, lengths - 1], axis=1).astype(np.int32)
    means = (states[:, :, -1] * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    return {
        "sentences": np.array(sentences),
        "reference": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
        "token_ids": token_ids,
        "padding_mask": mask,
        "positions": positions,
        "hidden_states": states[np.arange(len(rows))[:, None], positions],
        "embeddings": means.astype(np.float32),
    }


def main() -> None:
    """Write both references."""
    if missing_files(MINILM):
        raise SystemExit("The real vocabulary and weights are not here. Try: python -m recipes fetch minilm")
    content = hard_strings()
    path = write_strings(ROOT / "tests/texts/data/hard_strings.json", content)
    print(
        f"{path.relative_to(ROOT)}: {len(content['strings'])} strings, {len(STRINGS)} scripts and kinds, "
        f"{len(content['vocabulary']):,} tokens, {path.stat().st_size / 1e3:,.0f} kB"
    )
    arrays = hidden_states(SENTENCES)
    path = ROOT / "tests/texts/data/minilm_hidden_states.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.relative_to(ROOT)}: {arrays['token_ids'].shape} tokens, {path.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()
