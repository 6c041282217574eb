"""Which kind and format a folder of data has: every format reads it, and what is read decides.

A format fits if at least half of the rows become records, as ingest would make them. Formats of
published corpora, which need certain files, are tried before those that read any folder.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.init.images import are_photographs, compute_frequent_color_share
from pipelines.init.table import AmbiguousTable, ColumnOptions, UnlabeledTable, describe_table
from pipelines.validate_params import FORMATS
from stages.datasets import hateful_memes, twitter
from stages.datasets.common.files import find_corpus_dir, find_split_files
from stages.datasets.flickr8k_cn import CAPTION_LANGUAGES
from stages.ingest.__main__ import find_most_common_reason
from stages.ingest.record_collector import IngestConfig, RecordCollector
from stages.shared.core.config import build_config
from stages.shared.data.records import (
    SPLITS,
    UNDETERMINED_LANGUAGE,
    DatasetItem,
    ExtraFile,
    Record,
    Rejection,
)
from stages.shared.runtime.stage import InputError

GENERAL_FORMATS = ("markdown", "jsonl", "table")  # they read files of any name
KINDS = ("articles", "captions", "tweets", "posts", "memes")
SAMPLE_SIZE = 100  # rows whose images are read, spread over the source
MIN_RECORD_SHARE = 0.5
NUM_SHOWN_REJECTIONS = 3
FormatValues = dict[str, Any]  # of formats.<format>


@dataclass(frozen=True)
class InitOptions:
    """What the user chose. language: an ISO 639-1 code, of captions in several languages."""

    formats: tuple[str, ...] = ()
    language: str | None = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)


@dataclass(frozen=True)
class IngestSample:
    """What ingest makes of a folder.

    num_rows: of the whole source. splits: of its rows, None where ingest assigns one. languages,
    num_images, color_shares: of the records of the sample. has_one_text: most articles with several
    images have one text.
    """

    num_rows: int
    splits: dict[str | None, int]
    num_records: int
    rejected: list[dict]
    max_rejected: float
    languages: Counter[str]
    num_images: int
    color_shares: list[float]
    has_text: bool
    has_one_text: bool

    @property
    def has_photographs(self) -> bool:
        return are_photographs(self.color_shares)

    @property
    def language(self) -> str:
        """The most frequent one."""
        return max(self.languages, key=lambda name: (self.languages[name], name))

    def get_share(self, *languages: str) -> float:
        """The share of the records in some languages."""
        return sum(self.languages[name] for name in languages) / self.languages.total()


@dataclass(frozen=True)
class DetectedCorpus:
    """values: of formats.<format> that differ from the project's. reasons: a sentence each."""

    kind: str
    format: str
    path: Path
    values: FormatValues
    reasons: list[str]
    sample: IngestSample


def detect_corpus(
    folder: Path,
    kind: str | None,
    formats: dict[str, FormatValues],
    ingest: IngestConfig,
    options: InitOptions,
) -> DetectedCorpus:
    """The kind, format and values of a folder.

    kind: what the user named, or None
    formats: the section formats of the parameter files

    Raises InputError if no format or several fit; the message names the option that decides.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give the folder that holds the files of the data")
    fits, ambiguous, misfits = find_fits(folder, kind, formats, ingest, options)
    if fits:
        labeled = [error for error in ambiguous if not isinstance(error, UnlabeledTable)]
        return choose_fit(folder, fits, [fit.kind for fit in fits] + ["memes" for _ in labeled])
    if ambiguous:
        raise ambiguous[0]
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir()):
        if below := find_fits(subfolder, kind, formats, ingest, options)[0]:
            raise InputError(
                f"no format fits {folder}, but {below[0].format} fits {subfolder}: give "
                f"--data {below[0].kind}={subfolder}"
            )
    if kind is None:
        raise InputError(
            f"no format fits {folder}: give --data KIND=FOLDER, which says why none of KIND does "
            f"(KIND is {' | '.join(KINDS)})"
        )
    raise InputError(f"no format of {kind} fits {folder}: {'; '.join(misfits)}")


def find_fits(
    folder: Path,
    kind: str | None,
    formats: dict[str, FormatValues],
    ingest: IngestConfig,
    options: InitOptions,
) -> tuple[list[DetectedCorpus], list[AmbiguousTable], list[str]]:
    """The formats that fit a folder, what keeps a table from it, and why the others do not.

    General formats are tried only if no other fits.
    """
    misfits: list[str] = []
    ambiguous: list[AmbiguousTable] = []
    for is_general in (False, True):
        fits = []
        for name, candidate_kind in list_candidates(kind, options.formats):
            if (name in GENERAL_FORMATS) != is_general:
                continue
            try:
                if name == "table":
                    needs_image = kind is None and name not in options.formats
                    fit = try_table(folder, formats[name], ingest, options, needs_image)
                else:
                    fit = try_format(folder, candidate_kind, name, formats[name], ingest, options)
                fits.append(fit)
            except AmbiguousTable as error:
                ambiguous.append(error)
            except InputError as error:
                misfits.append(f"{name}: {error}")
        if fits:
            return fits, ambiguous, misfits
    return [], ambiguous, misfits


def list_candidates(kind: str | None, chosen: tuple[str, ...]) -> list[tuple[str, str]]:
    """(format, kind) to try. Formats that the user chose are the only ones of their kinds."""
    pairs = [
        (name, each)
        for name, module in FORMATS.items()
        for each in module.KINDS
        if name != "synthetic" and kind in (None, each)
    ]
    return [pair for pair in pairs if pair[0] in chosen] or pairs


def choose_fit(folder: Path, fits: list[DetectedCorpus], kinds: list[str]) -> DetectedCorpus:
    """The only fit. Raises InputError if there are others."""
    if len(set(kinds)) > 1:
        choices = " or ".join(f"--data {kind}={folder}" for kind in dict.fromkeys(kinds))
        raise InputError(f"{folder} can be read as {' or as '.join(kinds)}: give {choices}")
    if len(fits) > 1:
        names = [fit.format for fit in fits]
        raise InputError(
            f"{folder} fits the formats {' and '.join(names)}: choose one with --format {names[0]}"
        )
    return fits[0]


def try_format(
    folder: Path,
    kind: str,
    name: str,
    defaults: FormatValues,
    ingest: IngestConfig,
    options: InitOptions,
) -> DetectedCorpus:
    """The folder in a format, with the values that give most records.

    Raises InputError if it does not fit.
    """
    fits, errors = [], []
    for values, reason in VARIANTS.get(name, _no_variant)(folder, defaults, options):
        try:
            sample = read_sample(folder, kind, name, defaults | values, ingest)
        except InputError as error:
            errors.append(error)
        else:
            reasons = [reason] if reason else []
            fits.append(DetectedCorpus(kind, name, folder, values, reasons, sample))
    if not fits:
        raise errors[0]
    return max(fits, key=lambda fit: fit.sample.num_rows)  # the first one, if they are equal


def try_table(
    folder: Path,
    defaults: FormatValues,
    ingest: IngestConfig,
    options: InitOptions,
    needs_image: bool,
) -> DetectedCorpus:
    """The folder as a table of memes. Raises InputError if it is none."""
    values, reasons = describe_table(folder, defaults, options.columns, needs_image)
    sample = read_sample(folder, "memes", "table", defaults | values, ingest)
    if values["columns"]["split"] and not _has_held_out_splits(sample.splits):
        column, values["columns"]["split"] = values["columns"]["split"], None
        reasons = [reason for reason in reasons if not reason.startswith("split: ")]
        reasons.append(
            f"split: by hash, since the column {column} lacks train, or both validation and test"
        )
        sample = read_sample(folder, "memes", "table", defaults | values, ingest)
    changed = {key: value for key, value in values.items() if value != defaults[key]}
    return DetectedCorpus("memes", "table", folder, changed, reasons, sample)


def _has_held_out_splits(splits: dict[str | None, int]) -> bool:
    return bool(splits.get("train") and (splits.get("test") or splits.get("validation")))


def read_sample(
    folder: Path, kind: str, name: str, values: FormatValues, ingest: IngestConfig
) -> IngestSample:
    """Read a folder as ingest does, but load only the images of some rows and write nothing.

    Raises InputError if less than half of the rows become records.
    """
    module = FORMATS[name]
    config = build_config(module.CONFIG, values, f"formats.{name}")
    items = [item for item in module.read(folder, kind, config) if not isinstance(item, ExtraFile)]
    shares: list[float] = []
    collector = RecordCollector(
        folder, ingest, lambda row: shares.append(compute_frequent_color_share(row["bytes"]))
    )
    sample = items[:: math.ceil(len(items) / SAMPLE_SIZE) or 1]
    for item in sample:
        collector.add(item)
    records = list(collector.records.values())
    num_usable = len(sample) - len(collector.skipped)
    if not records or len(records) < MIN_RECORD_SHARE * num_usable:
        raise InputError(describe_misfit(collector.rejected, num_usable))
    return IngestSample(
        num_rows=sum(not isinstance(item, Rejection) for item in items),
        splits=count_splits(items),
        num_records=len(records),
        rejected=collector.rejected,
        max_rejected=ingest.max_rejected_fraction * collector.num_rows,
        languages=count_languages(records),
        num_images=len(shares),
        color_shares=shares,
        has_text=kind != "memes" or any(record["text"] for record in records),
        has_one_text=kind == "articles" and have_one_text(records),
    )


def have_one_text(articles: list[dict]) -> bool:
    """Whether most articles with several images have a single text."""
    counts = Counter(
        sum(block["text"] is not None for block in article["blocks"]) == 1
        for article in articles
        if sum(block["image"] is not None for block in article["blocks"]) > 1
    )
    return counts[True] > counts[False]


def describe_misfit(rejected: list[dict], num_rows: int) -> str:
    if not rejected:
        return f"none of {num_rows} rows is a record"
    category, count = find_most_common_reason(rejected)
    reason = next(row["reason"] for row in rejected if row["reason"].startswith(category))
    return f"{count} of {num_rows} rows that were tried have {reason[:120]!r}"


def count_splits(items: list[DatasetItem]) -> dict[str | None, int]:
    return Counter(item.split for item in items if isinstance(item, Record))


def count_languages(records: list[dict]) -> Counter[str]:
    """Records by language; those without get the most frequent one, as in ingest."""
    counts = Counter(record["language"] for record in records)
    unknown = counts.pop(None, 0)
    main = max(counts, key=lambda name: (counts[name], name), default=UNDETERMINED_LANGUAGE)
    counts[main] += unknown
    return counts


Variants = Iterator[tuple[FormatValues, str]]  # values to try, and what they mean


def _no_variant(folder: Path, defaults: FormatValues, options: InitOptions) -> Variants:
    yield {}, ""


def _flickr8k_cn_variants(folder: Path, defaults: FormatValues, options: InitOptions) -> Variants:
    language = options.language or "en"
    sets = [name for name, code in CAPTION_LANGUAGES.items() if code == language][:1]
    if not sets:
        raise InputError(f"no captions in {language}: give --language en or --language zh")
    other = "zh" if language == "en" else "en"
    reason = f"caption list: {sets[0]}; --language {other} chooses the others"
    yield {"caption_sets": sets}, reason


def _mvsa_variants(folder: Path, defaults: FormatValues, options: InitOptions) -> Variants:
    yield {}, ""
    yield {"splits": "published"}, "splits: those of the folder's lists"


def _coco_cn_variants(folder: Path, defaults: FormatValues, options: InitOptions) -> Variants:
    for source in ("human", "translated", "extension"):
        yield {"caption_source": source}, f"caption files: {source}"


def _hateful_memes_variants(folder: Path, defaults: FormatValues, options: InitOptions) -> Variants:
    root = find_corpus_dir(folder, [hateful_memes.TRAIN_FILE], "it is not Hateful Memes")
    for variant in ("seen", "unseen"):
        if any(root.glob(f"*_{variant}.jsonl")):
            yield {"variant": variant}, f"files: dev and test of the variant {variant}"
    yield {}, ""


def _memotion_variants(folder: Path, defaults: FormatValues, options: InitOptions) -> Variants:
    """The names in formats.memotion.files, else a single table of another name."""
    yield {}, ""
    for path in sorted(folder.glob("*.csv")):
        if path.name not in defaults["files"]["train"]:
            files = defaults["files"] | {"train": [path.name]}
            yield {"files": files}, f"table: {path.name}, which has the columns of Memotion"


def _twitter_variants(folder: Path, defaults: FormatValues, options: InitOptions) -> Variants:
    """The entity types of the files, if formats.twitter lacks some."""
    root = find_corpus_dir(folder, ["train.txt"], "it is no folder of tagged tweets")
    content = b"\n".join(path.read_bytes() for path in find_split_files(root).values())
    tags = {tag.decode(errors="replace") for tag in re.findall(rb"\t[BI]-(\S+)\r?$", content, re.M)}
    if not content.startswith(twitter.ID_PREFIX.encode()) or not tags:
        raise InputError(f"{root} has no line that begins with {twitter.ID_PREFIX}, or no tags")
    types = sorted(tags)
    if tags <= {*defaults["entity_types"], *defaults["entity_type_map"]}:
        yield {}, f"entity types: {', '.join(types)}"
    else:
        yield {"entity_types": types, "entity_type_map": {}}, f"entity types: {', '.join(types)}"


VARIANTS: dict[str, Callable[[Path, FormatValues, InitOptions], Variants]] = {
    "flickr8k_cn": _flickr8k_cn_variants,
    "mvsa": _mvsa_variants,
    "coco_cn": _coco_cn_variants,
    "hateful_memes": _hateful_memes_variants,
    "memotion": _memotion_variants,
    "twitter": _twitter_variants,
}


def describe_corpus(corpus: DetectedCorpus) -> list[str]:
    """What was decided about a corpus and what a look at it showed, a line each."""
    sample = corpus.sample
    splits = [f"{split} {sample.splits[split]}" for split in SPLITS if split in sample.splits]
    listed = ", ".join(splits) or "by hash"
    languages = ", ".join(f"{name} {n}" for name, n in sample.languages.most_common(3))
    kind_of_image = "photographs" if sample.has_photographs else "drawings"
    lines = [
        f"format {corpus.format}, {sample.num_rows} rows (splits: {listed})",
        *corpus.reasons,
        f"languages of {sample.num_records} records that were tried: {languages}",
        f"images: {sample.num_images} were read and look like {kind_of_image}"
        if sample.num_images
        else "images: none",
    ]
    if sample.rejected:
        shown = [f"{row['source']}: {row['reason']}" for row in sample.rejected]
        lines.append(
            f"rejected: {len(shown)} rows and images of those that were tried "
            f"({'; '.join(shown[:NUM_SHOWN_REJECTIONS])})"
        )
    if len(sample.rejected) > sample.max_rejected:
        lines.append(
            "warning: ingest stops at that share of rejected rows: correct them, or raise "
            "ingest.max_rejected_fraction in params.yaml"
        )
    return [f"{corpus.kind}: {line}" for line in lines]
