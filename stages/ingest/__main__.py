"""Parse a corpus into records and images; invalid rows go to rejected.parquet.

python -m stages.ingest --name NAME --kind KIND --format FORMAT --path PATH --output OUTPUT

NAME is the corpus' key in params.yaml (corpora.NAME), KIND is articles | captions | tweets | posts
| memes, FORMAT a package of stages/datasets, PATH the file or folder that it reads.

writes  OUTPUT/records.parquet   RECORDS[KIND] of stages/shared/core/schemas.py
        OUTPUT/images/           the images by hash
        OUTPUT/rejected.parquet  every rejected row and image, with the reason
        OUTPUT/summary.json      records by split and language, rejected rows by reason; for tweets,
                                 posts and memes also records without image, entities and labels by
                                 split
        OUTPUT/facts.parquet, boxes.parquet, foils.parquet   ground truth of synthetic corpora
        further files that the format creates, such as tasks.json, the labels of each meme task

If the source names no split, a hash assigns it: the hash of a record's key (its id or path in the
source), so that a record keeps its split when its text is corrected. A record without key is
assigned by its id, and so is a captioned image, since all of its captions share a split.

stages/ingest/record_builders.py documents ids, stages/ingest/record_collector.py unusable images.
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

MAX_REJECTED_EXAMPLES = 3  # rejected rows that an error message quotes


def assign_splits_and_languages(records: Iterable[dict], config: IngestConfig) -> None:
    """Set each missing split, and each missing language to the most frequent one of the corpus."""
    records = list(records)
    counts = Counter(record["language"] for record in records if record["language"])
    most_frequent = min(
        counts, key=lambda language: (-counts[language], language), default=UNDETERMINED_LANGUAGE
    )
    for record in records:
        record["split"] = record["split"] or assign_split(record["id"], config)
        record["language"] = record["language"] or most_frequent


def check_rejected(corpus: RecordCollector, name: str) -> None:
    """Raises InputError if all rows or too many of them were rejected.

    Before it raises, it lists the rejected rows in rejected/NAME.jsonl of the work folder.
    """
    if not corpus.num_rows and corpus.skipped:
        raise InputError(
            f"corpora.{name}: all {len(corpus.skipped)} rows were left out, most often for "
            f"{find_most_common_reason(corpus.skipped)[0]!r}: add others, or change the format's "
            "section"
        )
    if not corpus.num_rows:
        raise InputError(f"corpora.{name}: the source has no rows: add records")
    num_rejected = len(corpus.rejected)
    max_fraction = corpus.config.max_rejected_fraction
    if corpus.records and num_rejected <= max_fraction * corpus.num_rows:
        return
    path = work_dir() / "rejected" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in corpus.rejected))
    reason, count = find_most_common_reason(corpus.rejected)
    rows = [row for row in corpus.rejected if get_reason_category(row) == reason]
    examples = "; ".join(
        f"{row['source']}: {row['reason']}" for row in rows[:MAX_REJECTED_EXAMPLES]
    )
    raise InputError(
        f"corpora.{name}: {num_rejected} of {corpus.num_rows} rows and images were rejected, more "
        f"than ingest.max_rejected_fraction ({max_fraction}) allows, most often for {reason!r} "
        f"({count}; {examples}): fix the rows listed in {path}, or raise the fraction"
    )


def find_most_common_reason(rejected: list[dict]) -> tuple[str, int]:
    """The most common category of reasons, and the number of rows in it."""
    return Counter(map(get_reason_category, rejected)).most_common(1)[0]


def get_reason_category(rejected: dict) -> str:
    return rejected["reason"].split(":")[0]


def check_splits(records: Iterable[dict], name: str, kind: str) -> None:
    """Raises InputError if there is no record to train on, or none to evaluate on.

    Validation may be empty. For kinds that classifiers learn from, test may be empty instead, since
    some published corpora have no test split.
    """
    counts = Counter(record["split"] for record in records)
    empty = [split for split in ("train", "test") if not counts[split]]
    if kind in LABEL_SUMMARIES and counts["validation"]:
        empty = [split for split in empty if split == "train"]
    if empty:
        raise InputError(
            f"corpora.{name}: none of {counts.total()} records is in {' or '.join(empty)}: add "
            "records, change the split fractions, or name the splits in the source"
        )


def summarize_corpus(corpus: RecordCollector, kind: str) -> dict:
    """The content of summary.json."""
    records = list(corpus.records.values())
    summary = {
        "records": count_by_split(record["split"] for record in records),
        "languages": count_values(record["language"] for record in records),
        "rejected": count_values(map(get_reason_category, corpus.rejected + corpus.skipped)),
    }
    if kind in LABEL_SUMMARIES:
        splits_without_image = (record["split"] for record in records if record["image"] is None)
        summary["without_picture"] = count_by_split(splits_without_image)
        summary |= LABEL_SUMMARIES[kind](records)
    return summary


def summarize_tweets(records: list[dict]) -> dict:
    """Entities by split and type, and orphan I- tags by split."""
    orphans = (record["split"] for record in records for _ in find_orphan_tags(record["tags"]))
    entities = {
        split: count_values(
            entity_type
            for record in records
            if record["split"] == split
            for entity_type in get_entity_types(record["tags"])
        )
        for split in SPLITS
    }
    return {"entities": entities, "orphan_tags": count_by_split(orphans)}


def summarize_posts(records: list[dict]) -> dict:
    """Labels by split."""
    labels = {
        split: count_values(record["label"] for record in records if record["split"] == split)
        for split in SPLITS
    }
    return {"labels": labels}


def summarize_memes(records: list[dict]) -> dict:
    """Labels by task and split, and memes without text by split."""
    labels: dict[str, dict[str, dict[str, int]]] = {}
    for task in sorted({entry["task"] for record in records for entry in record["labels"]}):
        labels[task] = {
            split: count_values(
                entry["label"]
                for record in records
                for entry in record["labels"]
                if record["split"] == split and entry["task"] == task
            )
            for split in SPLITS
        }
    without_text = (record["split"] for record in records if not record["text"])
    return {"without_text": count_by_split(without_text), "labels": labels}


# Kinds of corpora that classifiers learn from.
LABEL_SUMMARIES = {"tweets": summarize_tweets, "posts": summarize_posts, "memes": summarize_memes}


def count_values(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def count_by_split(splits: Iterable[str]) -> dict[str, int]:
    counts = Counter(splits)
    return {split: counts[split] for split in SPLITS}


def write_corpus(corpus: RecordCollector, kind: str, folder: Path) -> None:
    """Write the tables and JSON files; the images have been written already."""
    records = list(corpus.records.values())
    schemas.write_parquet(folder / "records.parquet", records, schemas.RECORDS[kind])
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


def load_format_module(format: str, kind: str, name: str) -> ModuleType:
    """Import a format. Raises InputError if it is unknown or does not read corpora of `kind`."""
    known = read_params().get("formats", {})
    if format not in known:
        choices = " | ".join(known)
        raise InputError(
            f"params.yaml: corpora.{name}.format is {format!r}: choose one of {choices}"
        )
    module = import_module(f"stages.datasets.{format}")
    if kind not in module.KINDS:
        raise InputError(
            f"params.yaml: corpora.{name}.kind is {kind!r}, but format {format} holds "
            f"{' or '.join(module.KINDS)}: change the kind or the format"
        )
    return module


def main(
    config: IngestConfig, name: str, kind: str, format: str, source: Path, target: Path
) -> None:
    """Ingest the corpus `name` from `source` into the folder `target`."""
    if kind not in schemas.RECORDS:
        choices = " | ".join(schemas.RECORDS)
        raise InputError(f"params.yaml: corpora.{name}.kind is {kind!r}: choose one of {choices}")
    module = load_format_module(format, kind, name)
    format_config = load_config(module.CONFIG, "formats", format)
    if not source.exists():
        raise InputError(f"params.yaml: corpora.{name}.path is {source}, which does not exist")
    root = source.parent if source.is_file() else source
    with atomic_output_dir(target) as folder:
        with image_store.image_writer(folder / "images", config.num_shards) as add_image:
            corpus = RecordCollector(root, config, add_image)
            for item in progress_bar(module.read(source, kind, format_config), f"ingest {name}"):
                corpus.add(item)
        check_rejected(corpus, name)
        assign_splits_and_languages(corpus.records.values(), config)
        check_splits(corpus.records.values(), name, kind)
        write_corpus(corpus, kind, folder)


def cli(name: str, kind: str, format: str, path: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    main(load_config(IngestConfig, "ingest"), name, kind, format, path, output)


if __name__ == "__main__":
    run_stage(cli)
