"""Unpack the spoken digits of ../shared/data/fsdd and write the tables that measure.py and new_voice.py read.

    python benchmarks/prepare_speech.py --out ../prepared_data/fsdd

OUT/recordings/*.wav; all.tsv (path, text, speaker, split as the authors split it); and for each speaker NAME
others_NAME.tsv, without that voice, and only_NAME.tsv.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from prepare_data import extract_tar  # noqa: E402 (beside this script)
from speak import DIGITS  # noqa: E402

COLUMNS = ("path", "text", "speaker", "split")


def write_table(path: Path, rows: list[dict]) -> None:
    """Write some clips as a table with tabs."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("../prepared_data/fsdd"))
    options = parser.parse_args()
    if (options.out / "all.tsv").exists():
        print(f"{options.out} is there already. Remove it to write it anew.")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    extract_tar(options.shared / "fsdd" / "recordings.tar", options.out)
    with open(options.shared / "fsdd" / "split.csv", newline="", encoding="utf-8") as file:
        rows = [row | {"text": DIGITS[int(row["digit"])]} for row in csv.DictReader(file)]
    for speaker in sorted({row["speaker"] for row in rows}):
        write_table(options.out / f"others_{speaker}.tsv", [row for row in rows if row["speaker"] != speaker])
        write_table(options.out / f"only_{speaker}.tsv", [row for row in rows if row["speaker"] == speaker])
    write_table(options.out / "all.tsv", rows)  # the last: where it is, all is there
    print(f"{len(rows):,} clips in {options.out}")


if __name__ == "__main__":
    main()
