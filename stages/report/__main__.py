"""One static page: what ran, the metrics beside their ceilings, curves, and articles it wrote.

python -m stages.report DATA TARGET

reads   DATA/01_ingest, 06_align, of the corpora and runs that params.yaml names; of writers
        05_chunk, 08_illustrate, 09_train_sft, 10_train_preference, 11_predict, 12_evaluate,
        13_judge; of readers 02_clean, 09_train_classifier, 11_classify, 12_evaluate_classifier; of memes 02_clean,
        03_inpaint, 04_augment
writes  TARGET/index.html, TARGET/pictures/, TARGET/attention/ (where the examples were looked at),
        TARGET/exchanges/, TARGET/drawn/ (what the examples of readers exchanged and drew),
        TARGET/regions/ (where they looked in memes), TARGET/masks/ (of memes)

The page needs no script and no network. It holds no date, id or path, so that the same results give
the same bytes. Pictures are drawn anew: what cameras write into files, such as a place, stays out.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2

from stages.report import (
    attention_maps,
    chunk_review,
    illustrations,
    judge_scores,
    leaderboard,
    loaders,
    meme_corpus,
    meme_section,
    tagging_examples,
)
from stages.report.attention_maps import Key
from stages.report.classifier_section import MuseReader, Reader
from stages.report.generator_section import INPUTS, Run
from stages.report.meme_section import MemeReader
from stages.report.plots import curves, histograms, scatter
from stages.shared.core import config, schemas
from stages.shared.data import image_store
from stages.shared.metrics import alignment, diagnostics, grounding
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import output, stage

HERE = Path(__file__).parent
Chart = dict[str, str]  # title and SVG


@dataclass(frozen=True)
class Params:
    examples: int
    thumbnail: int
    crisp: int
    bins: int
    maps: int
    map_size: int
    review: int
    near_identical: float
    unrelated: float
    inpainted: int
    paraphrased: int
    inert_density: float
    inert_isolated: float
    complete_density: float
    even_attention: float


@dataclass(frozen=True)
class Picture:
    """A picture as a file beside the page; `crisp`: so small that it is shown enlarged."""

    path: str
    width: int
    height: int
    crisp: bool


def save_picture(content: bytes, name: str, folder: Path, params: Params) -> Picture:
    """Write a picture anew, at most `thumbnail` pixels long, to pictures/ of the page's folder."""
    image = image_store.decode(content)
    crisp = max(image.size) <= params.crisp
    canvas = image_store.redraw(image, params.thumbnail)
    path = f"pictures/{name[:16]}.{'png' if crisp else 'jpg'}"
    (folder / "pictures").mkdir(exist_ok=True)
    canvas.save(folder / path)
    return Picture(path, *canvas.size, crisp)


def save_pictures(files: dict[str, bytes], folder: Path, params: Params) -> dict[str, Picture]:
    """The same of several pictures, by hash."""
    return {
        name: save_picture(content, name, folder, params) for name, content in sorted(files.items())
    }


def draw_curves(run: Run) -> list[Chart]:
    """Grounding by slot and the curves of training, as far as the run has what they show."""
    found = []
    if "grounding" in run.metrics:
        by_phase = {name: phase["grounding"]["by_slot"] for name, phase in run.phases.items()}
        ceilings = {
            f"ceiling, {INPUTS[inputs]}": run.ceilings[inputs]["realised"]
            for inputs in ("topic", "picture")
            if "topic" in run.ceilings
        }
        svg = curves.slots(f"{run.name} slots", by_phase, ceilings)
        found.append({"title": "Grounding by slot", "svg": svg})
    for phase, steps in run.steps.items():
        if any("loss" in row for row in steps):
            svg = curves.loss(f"{run.name} {phase} loss", steps, "nats")
            found.append({"title": f"Loss, {phase}", "svg": svg})
        if curves.watched(steps):
            svg = curves.watch(f"{run.name} {phase} watch", steps)
            found.append({"title": f"Watched while training, {phase}", "svg": svg})
        for title in curves.measures(steps):
            svg = curves.measure(f"{run.name} {phase} {title}", title, steps)
            found.append({"title": f"{title}, {phase}", "svg": svg})
    return found


def draw_looking(run: Run, seen: attention_maps.Seen, bins: int) -> list[Chart]:
    """What the gate decided and how the fusion weighed, as far as the run has it."""
    found = []
    by_use = seen.decisions()
    for use, rows in by_use.items():
        modes = ", ".join(sorted({row["mode"] for row in rows}))
        svg = histograms.decisions(f"{run.name} gate {use}", rows, bins)
        title = f"Decisions of the gate {histograms.USES[use]}: {modes}"
        found.append({"title": title, "svg": svg})
    if by_use:
        svg = histograms.mask_rates(f"{run.name} mask rate", by_use, bins)
        found.append({"title": "Masked by similarity, beside the map's probability", "svg": svg})
    for name, label, title, values in [
        ("lambda", "lambda", "Lambda over channels and items", seen.correlations),
        ("entropy", "entropy, 1 for uniform", "Entropy of the fusion's attention", seen.entropies),
    ]:
        if any(len(of_phase) for of_phase in values.values()):
            svg = histograms.shares(f"{run.name} {name}", label, title, values, bins)
            found.append({"title": title, "svg": svg})
    return found


def draw_looks(
    run: Run,
    articles: list[dict],
    files: dict[str, bytes],
    data: Path,
    folder: Path,
    params: Params,
) -> dict[Key, attention_maps.Look]:
    """The attention of the final phase for every chunk of these articles that has some."""
    predicted, ingest = data / "11_predict" / run.name, data / "01_ingest" / run.params["corpus"]
    records = [article["record"] for article in articles]
    rows = attention_maps.attentions(predicted, records, run.metrics["phase"])
    boxes, slots = diagnostics.read_boxes(ingest), grounding.load_slots(ingest)
    shown = slots.picture if slots else {}
    middle, looks = loaders.sees_middle(data), {}
    for number, article in enumerate(articles, start=1):
        for chunk in article["chunks"]:
            key = chunk["key"]
            if key in rows and chunk["image"] in files:
                picture = image_store.decode(files[chunk["image"]])
                picture.thumbnail((params.map_size, params.map_size))
                example = attention_maps.Example(
                    rows[key], picture, middle, boxes.get(key, {}), shown
                )
                name = f"{run.name}/{number}-{key[1]}"
                looks[key] = attention_maps.look(example, params.maps, folder, name)
    return looks


def run_section(run: Run, data: Path, folder: Path, params: Params) -> dict[str, Any]:
    """All that the page shows of a run; its pictures are written on the way."""
    corpus, predicted = run.params["corpus"], data / "11_predict" / run.name
    articles = run.articles(params.examples, attention_maps.looked_at(predicted))
    names = {chunk["image"] for article in articles for chunk in article["chunks"]} - {None}
    files = loaders.pictures(data, corpus, names)
    saved = save_pictures(files, folder, params)
    seen = attention_maps.seen(predicted)
    return {
        "run": run,
        "judged": judge_scores.read(data / "13_judge" / run.name / "judge.json"),
        "curves": draw_curves(run),
        "looking": draw_looking(run, seen, params.bins),
        "articles": articles,
        "pictures": saved,
        "looks": draw_looks(run, articles, files, data, folder, params),
        "illustrated": illustrations.illustrations(data / "08_illustrate" / corpus).by_chunk,
    }


def draw_training(reader: Reader) -> list[Chart]:
    """A reader's loss, and what was watched at validations."""
    # Weights are chosen by 1 - score, which `validation_score` shows and the loss does not measure.
    steps = [{k: v for k, v in row.items() if k != "validation_loss"} for row in reader.steps]
    found = []
    if any("loss" in row for row in steps):
        svg = curves.loss(f"{reader.name} loss", steps, "loss")
        found.append({"title": "Loss", "svg": svg})
    if curves.watched(steps):
        svg = curves.watch(f"{reader.name} watch", steps)
        found.append({"title": "Watched while training", "svg": svg})
    for title in curves.measures(steps):
        svg = curves.measure(f"{reader.name} {title}", title, steps)
        found.append({"title": title, "svg": svg})
    return found


def draw_embeddings(reader: MuseReader, labelled: Path) -> list[Chart]:
    """Texts and pictures on a plane, before and after the shared projection, where they compare."""
    rows = schemas.read(labelled / "embeddings.parquet", schemas.EMBEDDINGS)
    found = []
    for where in alignment.WHERE:
        if not isinstance(reader.metrics["alignment"][where], str):
            _, texts, pictures = alignment.paired(rows, where)
            svg = scatter.scatter(f"{reader.name} {where}", texts, pictures)
            found.append({"title": f"{where.capitalize()} the shared projection", "svg": svg})
    return found


def sees_middle(reader: Reader, data: Path) -> bool:
    """Whether a reader's picture encoder read the middle square of pictures alone.

    The aligned encoder's patches are of what it sees; other encoders are given the whole picture.
    """
    return reader.params["picture"]["encoder"] == "patches" and loaders.sees_middle(data)


def reader_section(
    reader: MuseReader, kind: str, data: Path, folder: Path, params: Params
) -> dict[str, Any]:
    """All that the page shows of a reader; its pictures are written on the way."""
    corpus, labelled = reader.params["corpus"], data / "11_classify" / reader.name
    found = tagging_examples.read(
        data / "02_clean" / corpus, labelled, kind, reader.metrics["split"], params.examples
    )
    names = {row["image"] for row in found.records.values()} - {None}
    files = loaders.pictures(data, corpus, names)
    middle = sees_middle(reader, data)
    return {
        "template": "reader.html",
        "reader": reader,
        "curves": draw_training(reader),
        "embeddings": draw_embeddings(reader, labelled),
        "pictures": save_pictures(files, folder, params),
        "items": tagging_examples.items(found, files, middle, params.map_size, folder, reader.name),
    }


def meme_reader_section(
    reader: MemeReader, data: Path, folder: Path, params: Params
) -> dict[str, Any]:
    """The same of a reader of memes."""
    corpus, records = reader.params["corpus"], data / reader.params["records"]
    found = meme_section.read(
        records / corpus,
        data / "11_classify" / reader.name,
        reader.metrics["split"],
        params.examples,
    )
    files, middle = loaders.pictures(data, corpus, found.pictures), sees_middle(reader, data)
    return {
        "template": "meme_reader.html",
        "reader": reader,
        "tasks": schemas.read_json(records / corpus / "tasks.json"),
        "shown": meme_section.SHOWN,
        "bounds": meme_section.Bounds(
            params.inert_density,
            params.inert_isolated,
            params.complete_density,
            params.even_attention,
        ),
        "curves": draw_training(reader),
        "pictures": save_pictures(files, folder, params),
        "items": meme_section.items(found, files, middle, params.map_size, folder, reader.name),
    }


def memes_section(
    corpus: loaders.Corpus, data: Path, folder: Path, params: Params
) -> dict[str, Any]:
    """What was done to the pictures and texts of a memes corpus; its pictures are written."""
    found = meme_corpus.read(data, corpus.name, params.inpainted, params.paraphrased)
    files = loaders.pictures(data, corpus.name, found.pictures)
    return {
        "corpus": corpus,
        "found": found,
        "painting": meme_corpus.painting(found.inpainting),
        "augmenting": meme_corpus.augmenting(found.augmenting),
        "masks": meme_corpus.draw_masks(found, files, params.thumbnail, folder),
        "pictures": save_pictures(files, folder, params),
    }


def corpus_section(corpus: loaders.Corpus, data: Path, params: Params) -> dict[str, Any]:
    """The chunks of an articles corpus to look through, and its illustrations."""
    bounds = chunk_review.Bounds(params.near_identical, params.unrelated)
    found = illustrations.illustrations(data / "08_illustrate" / corpus.name)
    chart = None
    if found.similarities:
        chart = histograms.likeness(f"{corpus.name} likeness", found.similarities, params.bins)
    return {
        "corpus": corpus,
        "review": chunk_review.review(data / "05_chunk" / corpus.name, params.review, bounds),
        "bounds": bounds,
        "illustrations": found,
        "likeness": chart,
    }


def number(value: float | int | str | None) -> str:
    """A figure for a table cell; a word stays a word, and a count a whole number."""
    if value is None:
        return "\N{EM DASH}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else f"{value:.3f}"


def render(**content: Any) -> str:
    """The page, everything escaped but our own charts and style sheet."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    style = (HERE / "templates" / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(style=style, **content)


def main(settings: Params, data: Path, target: Path) -> None:
    everything = config.read()
    with tracking.run(stage="report", name="", params={"report": asdict(settings)}) as tracked:
        with output(target) as folder:
            kinds = {name: row["kind"] for name, row in everything["corpora"].items()}
            runs = loaders.runs(data, everything.get("writers") or {}, everything["corpora"])
            readers = loaders.readers(data, everything.get("readers") or {})
            corpora = loaders.corpora(data, everything["corpora"])
            page = render(
                comparisons=leaderboard.comparisons(runs, readers),
                corpora=corpora,
                encoder=loaders.encoder(data),
                sections=[run_section(run, data, folder, settings) for run in runs],
                read=[
                    meme_reader_section(one, data, folder, settings)
                    if isinstance(one, MemeReader)
                    else reader_section(one, kinds[one.params["corpus"]], data, folder, settings)
                    for one in readers
                ],
                memes=[
                    memes_section(corpus, data, folder, settings)
                    for corpus in corpora
                    if corpus.params["kind"] == "memes"
                ],
                chunked=[
                    corpus_section(corpus, data, settings)
                    for corpus in corpora
                    if corpus.params["kind"] == "articles"
                ],
            )
            (folder / "index.html").write_text(page, encoding="utf-8")
        tracked.artifact(target / "index.html", "index.html")
        for name in ("attention", "exchanges", "drawn", "regions", "masks"):
            if (target / name).exists():
                tracked.upload(target / name, name)


if __name__ == "__main__":
    with stage():
        main(config.load(Params, "report"), *map(Path, sys.argv[1:]))
