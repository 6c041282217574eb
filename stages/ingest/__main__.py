"""Take a corpus in as records and pictures.

python -m stages.ingest --name NAME --kind KIND --format FORMAT --path PATH --output OUTPUT

KEY names the corpus (params.yaml: corpora.KEY), KIND is articles | captions | tweets | posts |
memes, FORMAT a file of stages/datasets, PATH what it reads.

writes  TARGET/records.parquet   RECORDS[KIND] of stages/shared/core/schemas.py
        TARGET/images/           the pictures by hash
        TARGET/rejected.parquet  every row and picture that was not taken in, and why
        TARGET/summary.json      records by split and language, rejected rows by reason; of tweets,
        posts and memes also those without picture, entities and labels by split
        TARGET/facts.parquet, boxes.parquet, foils.parquet and JSON files where the format knows
        the truth, lists of splits that a format made, and tasks.json, the labels of each task of
        memes

Where the source names no split, a hash decides: of the key of a record (its id or path in the
source), so that it stays where it is while its text is being corrected, and of the id where there
is no key and for a captioned picture, all of whose captions stay together.

What makes an id, and what becomes of a picture that cannot be used, stands in
stages/ingest/record_collector.py.
"""

import json
from collections import Counter
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from stages.ingest.bio_tags import find_orphan_tags, get_entity_types
from stages.ingest.record_collector import IngestConfig, RecordCollector, assign_split
from stages.shared.core import schemas
from stages.shared.core.config import load_config, read_params
from stages.shared.data import image_store
from stages.shared.data.records import SPLITS, UNDETERMINED_LANGUAGE, ExtraFile
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError, atomic_output_dir, run_stage, work_dir

MAX_REJECTED_EXAMPLES = 3  # rejected rows that an error message names


def assign_splits_and_languages(records: Iterable[dict], params: IngestConfig) -> None:
    """Give every record a split, and the corpus' most frequent language where none was told."""
    records = list(records)
    known = Counter(record["language"] for record in records if record["language"])
    usual = min(
        known, key=lambda language: (-known[language], language), default=UNDETERMINED_LANGUAGE
    )
    for record in records:
        record["split"] = record["split"] or assign_split(record["id"], params)
        record["language"] = record["language"] or usual


def check_rejected(corpus: RecordCollector, key: str) -> None:
    """Raises WrongInput if too many rows were rejected, or all; lists them in the work folder."""
    if not corpus.num_rows and corpus.skipped:
        raise InputError(
            f"corpora.{key}: all {len(corpus.skipped)} rows were left out, most often for "
            f"{find_most_common_reason(corpus.skipped)[0]!r}: add others, or change the format's "
            "section"
        )
    if not corpus.num_rows:
        raise InputError(f"corpora.{key}: the source holds no row: add records")
    count = len(corpus.rejected)
    if corpus.records and count <= corpus.params.max_rejected_fraction * corpus.num_rows:
        return
    path = work_dir() / "rejected" / f"{key}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in corpus.rejected))
    reason, most = find_most_common_reason(corpus.rejected)
    named = [row for row in corpus.rejected if get_reason_category(row) == reason][
        :MAX_REJECTED_EXAMPLES
    ]
    examples = "; ".join(f"{row['source']}: {row['reason']}" for row in named)
    raise InputError(
        f"corpora.{key}: {count} of {corpus.num_rows} rows and images were rejected, more than "
        f"ingest.max_rejected_fraction ({corpus.params.max_rejected_fraction}) allows, most often "
        f"for {reason!r} ({most}; {examples}): repair what {path} lists, or raise the fraction"
    )


def find_most_common_reason(rejected: list[dict]) -> tuple[str, int]:
    return Counter(map(get_reason_category, rejected)).most_common(1)[0]


def get_reason_category(rejected: dict) -> str:
    return rejected["reason"].split(":")[0]


def check_splits(records: Iterable[dict], key: str, kind: str) -> None:
    """Raises WrongInput if nothing is left to train on or to score.

    Validation may be empty; of what readers learn from test may be instead, since some publish no
    test.
    """
    counts = Counter(record["split"] for record in records)
    empty = [split for split in ("train", "test") if not counts[split]]
    if kind in LABEL_SUMMARIES and counts["validation"]:
        empty = [split for split in empty if split == "train"]
    if empty:
        raise InputError(
            f"corpora.{key}: none of {counts.total()} records is in {' or '.join(empty)}: add "
            "records, change the shares of the splits, or name the splits in the source"
        )


def summarize_corpus(corpus: RecordCollector, kind: str) -> dict:
    records = list(corpus.records.values())
    counts = {
        "records": count_by_split(record["split"] for record in records),
        "languages": count_values(record["language"] for record in records),
        "rejected": count_values(map(get_reason_category, corpus.rejected + corpus.skipped)),
    }
    if kind in LABEL_SUMMARIES:
        bare = (record["split"] for record in records if record["image"] is None)
        counts |= {"without_picture": count_by_split(bare)} | LABEL_SUMMARIES[kind](records)
    return counts


def summarize_tweets(records: list[dict]) -> dict:
    """Entities by split and type, and I- tags that stand alone: they are kept as they are."""
    alone = (record["split"] for record in records for _ in find_orphan_tags(record["tags"]))
    found = {
        split: count_values(
            name
            for row in records
            if row["split"] == split
            for name in get_entity_types(row["tags"])
        )
        for split in SPLITS
    }
    return {"entities": found, "orphan_tags": count_by_split(alone)}


def summarize_posts(records: list[dict]) -> dict:
    """Labels by split."""
    labels = {
        split: count_values(row["label"] for row in records if row["split"] == split)
        for split in SPLITS
    }
    return {"labels": labels}


def summarize_memes(records: list[dict]) -> dict:
    """Labels by task and split, and memes whose words the source does not give."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for task in sorted({one["task"] for row in records for one in row["labels"]}):
        found[task] = {
            split: count_values(
                one["label"]
                for row in records
                for one in row["labels"]
                if row["split"] == split and one["task"] == task
            )
            for split in SPLITS
        }
    silent = (row["split"] for row in records if not row["text"])
    return {"without_text": count_by_split(silent), "labels": found}


# Kinds of corpora that readers learn from.
LABEL_SUMMARIES = {"tweets": summarize_tweets, "posts": summarize_posts, "memes": summarize_memes}


def count_values(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def count_by_split(names: Iterable[str]) -> dict[str, int]:
    splits = Counter(names)
    return {split: splits[split] for split in SPLITS}


def write_corpus(corpus: RecordCollector, kind: str, folder: Path) -> None:
    schemas.write_parquet(
        folder / "records.parquet", list(corpus.records.values()), schemas.RECORDS[kind]
    )
    rejected = corpus.rejected + corpus.skipped
    schemas.write_parquet(folder / "rejected.parquet", rejected, schemas.REJECTED_RECORDS)
    if corpus.facts:
        schemas.write_parquet(folder / "facts.parquet", corpus.facts, schemas.FACTS)
    if corpus.boxes:
        schemas.write_parquet(folder / "boxes.parquet", corpus.boxes, schemas.BOXES)
    if corpus.foils:
        schemas.write_parquet(folder / "foils.parquet", corpus.foils, schemas.FOILS)
    for extra in [*corpus.extras, ExtraFile("summary.json", summarize_corpus(corpus, kind))]:
        text = extra.content
        if not isinstance(text, str):
            text = json.dumps(text, indent=2, ensure_ascii=False) + "\n"
        (folder / extra.name).write_text(text)


def load_format_module(name: str, kind: str, key: str) -> ModuleType:
    """The file of a format. Raises WrongInput if there is none, or it holds no such corpora."""
    known = read_params().get("formats", {})
    if name not in known:
        choices = " | ".join(known)
        raise InputError(f"params.yaml: corpora.{key}.format is {name!r}: choose one of {choices}")
    module = import_module(f"stages.datasets.{name}")
    if kind not in module.KINDS:
        raise InputError(
            f"params.yaml: corpora.{key}.kind is {kind!r}, but format {name} holds "
            f"{' or '.join(module.KINDS)}: change the kind or the format"
        )
    return module


def main(
    params: IngestConfig, key: str, kind: str, format: str, source: Path, target: Path
) -> None:
    if kind not in schemas.RECORDS:
        choices = " | ".join(schemas.RECORDS)
        raise InputError(f"params.yaml: corpora.{key}.kind is {kind!r}: choose one of {choices}")
    module = load_format_module(format, kind, key)
    settings = load_config(module.CONFIG, "formats", format)
    if not source.exists():
        raise InputError(f"params.yaml: corpora.{key}.path is {source}, which does not exist")
    root = source.parent if source.is_file() else source
    with atomic_output_dir(target) as folder:
        with image_store.image_writer(folder / "images", params.num_shards) as add_image:
            corpus = RecordCollector(root, params, add_image)
            for item in progress_bar(module.read(source, kind, settings), f"ingest {key}"):
                corpus.add(item)
        check_rejected(corpus, key)
        assign_splits_and_languages(corpus.records.values(), params)
        check_splits(corpus.records.values(), key, kind)
        write_corpus(corpus, kind, folder)


def cli(name: str, kind: str, format: str, path: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    main(load_config(IngestConfig, "ingest"), name, kind, format, path, output)


if __name__ == "__main__":
    run_stage(cli)
