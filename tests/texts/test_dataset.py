"""Texts from all kinds of input, split by the same rules as images, and malformed input."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.texts.dataset import draw_shots, folds_of, load_text_set
from common.texts.readers import PRODUCTS, Columns
from recipes.bert_sentiment.recipe import Config, load_data

WORDS = "train book film meal hotel phone boat coat desk lamp".split()


def rows(per_class: int = 12) -> list[tuple[str, str]]:
    return [
        (f"a {mood} {WORDS[n % 10]} number {n}", label)
        for mood, label in (("fine", "good"), ("poor", "bad"))
        for n in range(per_class)
    ]


def write_table(path: Path, lines, heading: str | None = "text,label", mark: str = ",") -> str:
    text = "\n".join([*([heading.replace(",", mark)] if heading else []), *(mark.join(line) for line in lines)]) + "\n"
    path.write_text(text, "utf-8")
    return f"{path.suffix[1:]}:{path}"


def texts_of(data) -> set[str]:
    return {text for split in (data.train, data.val, data.test) for text in split.texts}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "jsonl.gz", "folder"])
def test_the_same_texts_from_every_kind_of_file(tmp_path: Path, kind: str):
    if kind in ("csv", "tsv"):
        data = load_text_set(write_table(tmp_path / f"t.{kind}", rows(), mark="," if kind == "csv" else "\t"))
    elif kind == "folder":
        for number, (text, label) in enumerate(rows()):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / f"{number}.txt").write_text(text)
        data = load_text_set(f"folder:{tmp_path}")
    else:
        lines = "\n".join(json.dumps({"text": text, "label": label}) for text, label in rows()).encode()
        path = tmp_path / f"t.{kind}"
        path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
        data = load_text_set(f"jsonl:{path}")
    assert texts_of(data) == {text for text, _ in rows()}
    assert data.class_names == ("bad", "good") and not data.skipped
    assert sum(data.counts().values()) == 24


def test_a_table_per_split_without_a_header(tmp_path: Path):
    for name, take in (("train", slice(0, 24, 2)), ("dev", slice(1, 24, 4)), ("test", slice(3, 24, 4))):
        write_table(tmp_path / f"{name}.tsv", rows()[take], heading=None, mark="\t")
    data = load_text_set(f"tsv:{tmp_path}", columns=Columns("1", "2"))
    assert [len(split) for split in (data.train, data.val, data.test)] == [12, 6, 6]
    with pytest.raises(UserError, match="--text-column 1 --label-column 2"):
        load_text_set(f"tsv:{tmp_path}")


def test_a_split_column_decides_and_a_copy_leaves_the_lower_split(tmp_path: Path):
    lines = [(text, label, ("train", "val", "test")[n % 3]) for n, (text, label) in enumerate(rows())]
    lines += [(f" {lines[2][0]} ", lines[2][1], "train"), (lines[0][0], "bad", "train")]
    data = load_text_set(write_table(tmp_path / "t.csv", lines, "text,label,split"))
    reasons = [reason for _, reason in data.skipped]
    assert any("exact copy of a text in another split; removed from train" in reason for reason in reasons)
    assert sum("the same content is labelled 'bad', 'good'" in reason for reason in reasons) == 2
    splits = [set(map(str.strip, split.texts)) for split in (data.train, data.val, data.test)]
    assert not (splits[0] & splits[1] or splits[0] & splits[2] or splits[1] & splits[2])


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_document_stays_in_one_split(tmp_path: Path, kind: str):
    lines = [(text, label, f"document {n % 20}") for n, (text, label) in enumerate(rows(60))]
    path = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        objects = [dict(zip(("text", "label", "document"), line, strict=True)) for line in lines]
        path.write_text("\n".join(map(json.dumps, objects)))
    else:
        write_table(path, lines, "text,label,document", mark="," if kind == "csv" else "\t")

    def shared(data) -> int:
        document = {text: document for text, _, document in lines}
        splits = [{document[text] for text in getattr(data, split).texts} for split in ("train", "val", "test")]
        return sum(map(len, splits)) - len(set.union(*splits))

    assert shared(load_data(Config(data=f"{kind}:{path}"))) > 10
    data = load_data(Config(data=f"{kind}:{path}", group="document"))
    assert shared(data) == 0 and data.counts() == {"train": 84, "val": 18, "test": 18, "skipped": 0}
    with pytest.raises(UserError, match=r"no column 'author'.*'document'.*--group NAME"):
        load_data(Config(data=f"{kind}:{path}", group="author"))


def test_a_group_is_for_tables(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot be used with --data folder. Allowed: .* csv, tsv, jsonl. Received"):
        Config(data=f"folder:{tmp_path}", group="document")


def test_a_split_column_of_another_name(tmp_path: Path):
    lines = [(text, label, ("train", "val", "test")[n % 3]) for n, (text, label) in enumerate(rows())]
    data = write_table(tmp_path / "t.csv", lines, "text,label,fold")
    assert load_data(Config(data=data, split_column="fold")).counts() == {"train": 8, "val": 8, "test": 8, "skipped": 0}
    assert load_data(Config(data=data)).counts() != {"train": 8, "val": 8, "test": 8, "skipped": 0}
    with pytest.raises(UserError, match=r"no column 'part'. Found: 'text', 'label', 'fold'.*--split-column NAME"):
        load_data(Config(data=data, split_column="part"))


def test_splits_do_not_depend_on_order_or_names(tmp_path: Path):
    one = load_text_set(write_table(tmp_path / "a.csv", rows()))
    other = load_text_set(write_table(tmp_path / "b.csv", rows()[::-1]))
    for split in ("train", "val", "test"):
        assert set(getattr(one, split).texts) == set(getattr(other, split).texts)
    assert one.fingerprint() != load_text_set(write_table(tmp_path / "c.csv", rows(11))).fingerprint()


def test_labels_with_stray_spaces_and_case_are_one_class(tmp_path: Path):
    lines = [(text, label if n % 5 else f" {label.title()} ") for n, (text, label) in enumerate(rows())]
    data = load_text_set(write_table(tmp_path / "t.csv", lines))
    assert data.class_names == ("bad", "good")
    assert any("differ only in case and count as 'good'" in sentence for sentence in data.advice())


@pytest.mark.parametrize("text", ["", "   ", "\u200b", "\x00"])
def test_texts_without_visible_characters_are_skipped_and_counted(tmp_path: Path, text: str):
    data = load_text_set(
        write_table(tmp_path / "t.tsv", [*rows(), (text, "good"), ("a fine one", "")], "text,label", "\t")
    )
    assert sorted(reason for _, reason in data.skipped) == [
        "has no label",
        "is empty, or has no visible character",
    ]
    with pytest.raises(UserError, match="--strict: 2 text"):
        load_text_set(f"tsv:{tmp_path / 't.tsv'}", strict=True)


def test_odd_texts_are_texts(tmp_path: Path):
    odd = ["😀😀 fine", "جيد جدا", "x" * 100_000, 'he said ""fine""', "日本語です", "a\u2028b"]
    lines = [*rows(), *((text, "good") for text in odd)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in lines))
    assert texts_of(load_text_set(f"jsonl:{path}")) == {text for text, _ in lines}


@pytest.mark.parametrize(
    ("content", "expected"),
    [("review,stars\nfine,good\n", "no column 'text'. Found: 'review', 'stars'"), ("", "holds no texts"),
     ("text,label\n", "holds no texts"), ("text,label\na,b,c\n", "2 cells are required, one per column. Received: 3."),
     ("text,label\nfine,good\nok,good\n", "1 class"), ("text,label,split\nfine,good,tomorrow\n", "unknown split")],
)  # fmt: skip
def test_unreadable_tables_are_refused_with_the_reason(tmp_path: Path, content: str, expected: str):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=expected.replace(".", r"\.")):
        load_text_set(f"csv:{tmp_path / 't.csv'}")


def test_latin_1_is_detected_and_readable(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"text,label\n" + "".join(f"caf\xe9 {t},{label}\n" for t, label in rows()).encode("latin-1"))
    with pytest.raises(UserError, match=r"is not utf-8: line 2 holds the byte 0xe9.*--encoding latin-1"):
        load_text_set(f"csv:{path}")
    data = load_text_set(f"csv:{path}", columns=Columns(encoding="latin-1"))
    assert all(text.startswith("café") for text in texts_of(data))


def test_the_layout_of_aclimdb_without_its_unlabelled_texts(tmp_path: Path):
    for split in ("train", "test"):
        for label in ("pos", "neg", "unsup"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(8):
                (tmp_path / split / label / f"{number}_7.txt").write_text(f"{split} {label} {number}")
    data = load_text_set(f"folder:{tmp_path}")
    assert data.class_names == ("neg", "pos") and len(data.test) == 16
    assert len(data.train) + len(data.val) == 16


def test_the_demo_has_other_products_in_its_test():
    data = load_text_set("demo")
    assert data.counts() == {"train": 814, "val": 130, "test": 524, "skipped": 0}
    for split in (data.train, data.val, data.test):
        assert abs(np.diff(np.bincount(split.labels))[0]) < 0.1 * len(split)
    products = {}
    for split in ("train", "val", "test"):
        with open(PRODUCTS / f"{split}.csv", newline="", encoding="utf-8") as file:
            products[split] = {row["product"] for row in csv.DictReader(file)}
    assert [len(found) for found in products.values()] == [6, 2, 3] and len(set.union(*products.values())) == 11


def test_the_demo_reviews_have_the_counts_of_their_card():
    data = load_text_set("demo:reviews")
    assert data.counts() == {"train": 160, "val": 80, "test": 240, "skipped": 0}
    for split in (data.train, data.val, data.test):
        assert np.bincount(split.labels).tolist() == [len(split) / 2] * 2


def test_shots_leave_as_many_for_validation_and_test_alone():
    data = load_text_set("demo:reviews")
    few, again, other = draw_shots(data, 8, 0), draw_shots(data, 8, 0), draw_shots(data, 8, 1)
    assert np.bincount(few.train.labels).tolist() == [8, 8] and few.test is data.test
    assert np.bincount(few.val.labels).tolist() == [8, 8] and set(few.val.texts) <= set(data.val.texts)
    assert few.val.texts.tolist() == again.val.texts.tolist() != other.val.texts.tolist()
    assert set(few.train.texts) <= set(data.train.texts)
    assert few.train.texts.tolist() == again.train.texts.tolist() != other.train.texts.tolist()
    with pytest.raises(UserError, match="has 80 training texts"):
        draw_shots(data, 81, 0)


def test_real_sst2(shared_data: Path):
    data = load_text_set(f"tsv:{shared_data / 'sst2'}", columns=Columns("1", "2"))
    assert (len(data.val), len(data.test)) == (872, 1821) and 6900 <= len(data.train) <= 6920


def test_folds_are_disjoint_whole_and_of_every_class(tmp_path: Path):
    data = load_text_set(write_table(tmp_path / "t.csv", rows(20)))
    folds = folds_of(data, 5)
    assert sorted(np.concatenate([fold for _, fold in folds])) == list(range(len(data.train)))
    for rest, fold in folds:
        assert not set(data.train.texts[rest]) & set(data.train.texts[fold])
        assert len(rest) + len(fold) == len(data.train) and set(data.train.labels[fold]) == {0, 1}
        assert abs(len(fold) - len(data.train) / 5) < 2
    # whatever the order of the texts
    other = load_text_set(write_table(tmp_path / "t.csv", rows(20)[::-1]))
    for (_, fold), (_, again) in zip(folds, folds_of(other, 5), strict=True):
        assert set(data.train.texts[fold]) == set(other.train.texts[again])


def test_more_folds_than_texts_of_a_class(tmp_path: Path):
    data = load_text_set(write_table(tmp_path / "t.csv", rows(12)))
    with pytest.raises(UserError, match=r"--folds 50: the class 'bad' has .* different training texts"):
        folds_of(data, 50)


def test_a_table_without_a_header_and_a_row_with_a_cell_too_many(tmp_path: Path):
    (tmp_path / "t.csv").write_text("fine,good\nI like it, really,good\npoor,bad\n")
    with pytest.raises(UserError, match=r"line 2: 2 cells are required, .* Received: 3\."):
        load_text_set(f"csv:{tmp_path / 't.csv'}", columns=Columns("1", "2"))


def test_damaged_archives_and_unknown_encodings_are_reported(tmp_path: Path):
    whole = gzip.compress(b"text,label\n" + b"fine,good\npoor,bad\n" * 50)
    (tmp_path / "t.csv.gz").write_bytes(whole[:30] + b"\xff" * 8 + whole[38:])
    with pytest.raises(UserError, match="cannot be read"):
        load_text_set(f"csv:{tmp_path / 't.csv.gz'}")
    (tmp_path / "good").mkdir()
    with pytest.raises(UserError, match="--encoding 'nonsense' is unknown"):
        load_text_set(f"folder:{tmp_path}", columns=Columns(encoding="nonsense"))
