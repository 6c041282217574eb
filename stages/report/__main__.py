"""One static page: what ran, the metrics beside their ceilings, curves, and articles it wrote.

python -m stages.report --data DATA --output OUTPUT

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
from stages.report.attention_maps import ChunkKey
from stages.report.classifier_section import ClassifierSection, MuseSection
from stages.report.generator_section import INPUT_LABELS, GeneratorSection
from stages.report.meme_section import MemeSection
from stages.report.plots import curves, histograms, scatter
from stages.shared.core import config, schemas
from stages.shared.core.config import config_class
from stages.shared.data import image_store
from stages.shared.metrics import alignment, diagnostics, grounding
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage

HERE = Path(__file__).parent
Chart = dict[str, str]  # title and SVG


@config_class
class ReportConfig:
    num_examples: int
    thumbnail_size: int
    max_pixelated_size: int
    num_bins: int
    num_attention_maps: int
    attention_map_size: int
    num_review_articles: int
    near_identical_threshold: float
    unrelated_threshold: float
    num_inpainted_memes: int
    num_paraphrased_memes: int
    min_graph_density: float
    max_isolated_fraction: float
    max_graph_density: float
    max_attention_entropy: float


@dataclass(frozen=True)
class ReportImage:
    """A picture as a file beside the page; `crisp`: so small that it is shown enlarged."""

    path: str
    width: int
    height: int
    pixelated: bool


def save_image(content: bytes, name: str, folder: Path, params: ReportConfig) -> ReportImage:
    """Write a picture anew, at most `thumbnail` pixels long, to pictures/ of the page's folder."""
    image = image_store.decode_image(content)
    crisp = max(image.size) <= params.max_pixelated_size
    canvas = image_store.resize_and_strip_metadata(image, params.thumbnail_size)
    path = f"pictures/{name[:16]}.{'png' if crisp else 'jpg'}"
    (folder / "pictures").mkdir(exist_ok=True)
    canvas.save(folder / path)
    return ReportImage(path, *canvas.size, crisp)


def save_images(
    files: dict[str, bytes], folder: Path, params: ReportConfig
) -> dict[str, ReportImage]:
    """The same of several pictures, by hash."""
    return {
        name: save_image(content, name, folder, params) for name, content in sorted(files.items())
    }


def draw_generator_curves(run: GeneratorSection) -> list[Chart]:
    """Grounding by slot and the curves of training, as far as the run has what they show."""
    found = []
    if "grounding" in run.metrics:
        by_phase = {name: phase["grounding"]["by_slot"] for name, phase in run.phases.items()}
        ceilings = {
            f"ceiling, {INPUT_LABELS[inputs]}": run.ceilings[inputs]["realised"]
            for inputs in ("topic", "picture")
            if "topic" in run.ceilings
        }
        svg = curves.draw_slots(f"{run.name} slots", by_phase, ceilings)
        found.append({"title": "Grounding by slot", "svg": svg})
    for phase, steps in run.histories.items():
        if any("loss" in row for row in steps):
            svg = curves.draw_loss(f"{run.name} {phase} loss", steps, "nats")
            found.append({"title": f"Loss, {phase}", "svg": svg})
        if curves.list_monitored_metrics(steps):
            svg = curves.draw_monitored_metrics(f"{run.name} {phase} watch", steps)
            found.append({"title": f"Watched while training, {phase}", "svg": svg})
        for title in curves.list_metric_charts(steps):
            svg = curves.draw_metric_chart(f"{run.name} {phase} {title}", title, steps)
            found.append({"title": f"{title}, {phase}", "svg": svg})
    return found


def draw_gate_and_fusion(
    run: GeneratorSection, seen: attention_maps.AttentionData, bins: int
) -> list[Chart]:
    """What the gate decided and how the fusion weighed, as far as the run has it."""
    found = []
    by_use = seen.gate_rows_by_use()
    for use, rows in by_use.items():
        modes = ", ".join(sorted({row["mode"] for row in rows}))
        svg = histograms.draw_gate_decisions(f"{run.name} gate {use}", rows, bins)
        title = f"Decisions of the gate {histograms.USE_LABELS[use]}: {modes}"
        found.append({"title": title, "svg": svg})
    if by_use:
        svg = histograms.draw_mask_rates(f"{run.name} mask rate", by_use, bins)
        found.append({"title": "Masked by similarity, beside the map's probability", "svg": svg})
    for name, label, title, values in [
        ("lambda", "lambda", "Lambda over channels and items", seen.correlations),
        ("entropy", "entropy, 1 for uniform", "Entropy of the fusion's attention", seen.entropies),
    ]:
        if any(len(of_phase) for of_phase in values.values()):
            svg = histograms.draw_share_histograms(f"{run.name} {name}", label, title, values, bins)
            found.append({"title": title, "svg": svg})
    return found


def draw_attention_views(
    run: GeneratorSection,
    articles: list[dict],
    files: dict[str, bytes],
    data: Path,
    folder: Path,
    params: ReportConfig,
) -> dict[ChunkKey, attention_maps.AttentionView]:
    """The attention of the final phase for every chunk of these articles that has some."""
    predicted, ingest = data / "11_predict" / run.name, data / "01_ingest" / run.params["corpus"]
    records = [article["record"] for article in articles]
    rows = attention_maps.load_attention_rows(predicted, records, run.metrics["phase"])
    boxes, slots = diagnostics.load_boxes(ingest), grounding.load_slots(ingest)
    shown = slots.picture if slots else {}
    middle, looks = loaders.encoder_uses_center_crop(data), {}
    for number, article in enumerate(articles, start=1):
        for chunk in article["chunks"]:
            key = chunk["key"]
            if key in rows and chunk["image"] in files:
                picture = image_store.decode_image(files[chunk["image"]])
                picture.thumbnail((params.attention_map_size, params.attention_map_size))
                example = attention_maps.AttentionExample(
                    rows[key], picture, middle, boxes.get(key, {}), shown
                )
                name = f"{run.name}/{number}-{key[1]}"
                looks[key] = attention_maps.draw_attention_view(
                    example, params.num_attention_maps, folder, name
                )
    return looks


def build_generator_context(
    run: GeneratorSection, data: Path, folder: Path, params: ReportConfig
) -> dict[str, Any]:
    """All that the page shows of a run; its pictures are written on the way."""
    corpus, predicted = run.params["corpus"], data / "11_predict" / run.name
    articles = run.select_articles(
        params.num_examples, attention_maps.load_attended_records(predicted)
    )
    names = {chunk["image"] for article in articles for chunk in article["chunks"]} - {None}
    files = loaders.load_images(data, corpus, names)
    saved = save_images(files, folder, params)
    seen = attention_maps.load_attention_data(predicted)
    return {
        "run": run,
        "judged": judge_scores.load_judge_scores(data / "13_judge" / run.name / "judge.json"),
        "curves": draw_generator_curves(run),
        "looking": draw_gate_and_fusion(run, seen, params.num_bins),
        "articles": articles,
        "pictures": saved,
        "looks": draw_attention_views(run, articles, files, data, folder, params),
        "illustrated": illustrations.load_illustrations(
            data / "08_illustrate" / corpus
        ).rows_by_chunk,
    }


def draw_classifier_curves(reader: ClassifierSection) -> list[Chart]:
    """A reader's loss, and what was watched at validations."""
    # Weights are chosen by 1 - score, which `validation_score` shows and the loss does not measure.
    steps = [{k: v for k, v in row.items() if k != "validation_loss"} for row in reader.history]
    found = []
    if any("loss" in row for row in steps):
        svg = curves.draw_loss(f"{reader.name} loss", steps, "loss")
        found.append({"title": "Loss", "svg": svg})
    if curves.list_monitored_metrics(steps):
        svg = curves.draw_monitored_metrics(f"{reader.name} watch", steps)
        found.append({"title": "Watched while training", "svg": svg})
    for title in curves.list_metric_charts(steps):
        svg = curves.draw_metric_chart(f"{reader.name} {title}", title, steps)
        found.append({"title": title, "svg": svg})
    return found


def draw_embeddings(reader: MuseSection, labelled: Path) -> list[Chart]:
    """Texts and pictures on a plane, before and after the shared projection, where they compare."""
    rows = schemas.read_parquet(labelled / "embeddings.parquet", schemas.EMBEDDINGS)
    found = []
    for where in alignment.PROJECTION_SIDES:
        if not isinstance(reader.metrics["alignment"][where], str):
            _, texts, pictures = alignment.pair_embeddings(rows, where)
            svg = scatter.draw_scatter(f"{reader.name} {where}", texts, pictures)
            found.append({"title": f"{where.capitalize()} the shared projection", "svg": svg})
    return found


def classifier_uses_center_crop(reader: ClassifierSection, data: Path) -> bool:
    """Whether a reader's picture encoder read the middle square of pictures alone.

    The aligned encoder's patches are of what it sees; other encoders are given the whole picture.
    """
    return reader.params["image"]["encoder"] == "patches" and loaders.encoder_uses_center_crop(
        data
    )


def build_classifier_context(
    reader: MuseSection, kind: str, data: Path, folder: Path, params: ReportConfig
) -> dict[str, Any]:
    """All that the page shows of a reader; its pictures are written on the way."""
    corpus, labelled = reader.params["corpus"], data / "11_classify" / reader.name
    found = tagging_examples.load_tagging_data(
        data / "02_clean" / corpus, labelled, kind, reader.metrics["split"], params.num_examples
    )
    names = {row["image"] for row in found.records.values()} - {None}
    files = loaders.load_images(data, corpus, names)
    middle = classifier_uses_center_crop(reader, data)
    return {
        "template": "reader.html",
        "reader": reader,
        "curves": draw_classifier_curves(reader),
        "embeddings": draw_embeddings(reader, labelled),
        "pictures": save_images(files, folder, params),
        "items": tagging_examples.build_tagging_examples(
            found, files, middle, params.attention_map_size, folder, reader.name
        ),
    }


def build_meme_classifier_context(
    reader: MemeSection, data: Path, folder: Path, params: ReportConfig
) -> dict[str, Any]:
    """The same of a reader of memes."""
    corpus, records = reader.params["corpus"], data / reader.params["records"]
    found = meme_section.load_displayed_items(
        records / corpus,
        data / "11_classify" / reader.name,
        reader.metrics["split"],
        params.num_examples,
    )
    files, middle = (
        loaders.load_images(data, corpus, found.image_hashes),
        classifier_uses_center_crop(reader, data),
    )
    return {
        "template": "meme_reader.html",
        "reader": reader,
        "tasks": schemas.read_json(records / corpus / "tasks.json"),
        "shown": meme_section.INPUT_COLUMNS,
        "bounds": meme_section.DiagnosticThresholds(
            params.min_graph_density,
            params.max_isolated_fraction,
            params.max_graph_density,
            params.max_attention_entropy,
        ),
        "curves": draw_classifier_curves(reader),
        "pictures": save_images(files, folder, params),
        "items": meme_section.build_meme_examples(
            found, files, middle, params.attention_map_size, folder, reader.name
        ),
    }


def build_meme_corpus_context(
    corpus: loaders.ReportCorpus, data: Path, folder: Path, params: ReportConfig
) -> dict[str, Any]:
    """What was done to the pictures and texts of a memes corpus; its pictures are written."""
    found = meme_corpus.load_meme_corpus(
        data, corpus.name, params.num_inpainted_memes, params.num_paraphrased_memes
    )
    files = loaders.load_images(data, corpus.name, found.image_hashes)
    return {
        "corpus": corpus,
        "found": found,
        "painting": meme_corpus.build_inpainting_rows(found.inpainting_summary),
        "augmenting": meme_corpus.build_augmentation_rows(found.augmentation_summary),
        "masks": meme_corpus.draw_masks(found, files, params.thumbnail_size, folder),
        "pictures": save_images(files, folder, params),
    }


def build_article_corpus_context(
    corpus: loaders.ReportCorpus, data: Path, params: ReportConfig
) -> dict[str, Any]:
    """The chunks of an articles corpus to look through, and its illustrations."""
    bounds = chunk_review.SimilarityThresholds(
        params.near_identical_threshold, params.unrelated_threshold
    )
    found = illustrations.load_illustrations(data / "08_illustrate" / corpus.name)
    chart = None
    if found.similarities_by_backend:
        chart = histograms.draw_similarity_histogram(
            f"{corpus.name} likeness", found.similarities_by_backend, params.num_bins
        )
    return {
        "corpus": corpus,
        "review": chunk_review.load_chunk_review(
            data / "05_chunk" / corpus.name, params.num_review_articles, bounds
        ),
        "bounds": bounds,
        "illustrations": found,
        "likeness": chart,
    }


def format_number(value: float | int | str | None) -> str:
    """A figure for a table cell; a word stays a word, and a count a whole number."""
    if value is None:
        return "\N{EM DASH}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else f"{value:.3f}"


def render_page(**content: Any) -> str:
    """The page, everything escaped but our own charts and style sheet."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    style = (HERE / "templates" / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(style=style, **content)


def main(settings: ReportConfig, data: Path, target: Path) -> None:
    everything = config.read_params()
    with tracking.start_run(
        stage="report", name="", params={"report": asdict(settings)}
    ) as tracked:
        with atomic_output_dir(target) as folder:
            kinds = {name: row["kind"] for name, row in everything["corpora"].items()}
            runs = loaders.load_generator_sections(
                data, everything.get("generators") or {}, everything["corpora"]
            )
            readers = loaders.load_classifier_sections(data, everything.get("classifiers") or {})
            corpora = loaders.load_corpora(data, everything["corpora"])
            page = render_page(
                comparisons=leaderboard.build_leaderboards(runs, readers),
                corpora=corpora,
                encoder=loaders.load_encoder_info(data),
                sections=[build_generator_context(run, data, folder, settings) for run in runs],
                read=[
                    build_meme_classifier_context(one, data, folder, settings)
                    if isinstance(one, MemeSection)
                    else build_classifier_context(
                        one, kinds[one.params["corpus"]], data, folder, settings
                    )
                    for one in readers
                ],
                memes=[
                    build_meme_corpus_context(corpus, data, folder, settings)
                    for corpus in corpora
                    if corpus.params["kind"] == "memes"
                ],
                chunked=[
                    build_article_corpus_context(corpus, data, settings)
                    for corpus in corpora
                    if corpus.params["kind"] == "articles"
                ],
            )
            (folder / "index.html").write_text(page, encoding="utf-8")
        tracked.log_artifact_hash(target / "index.html", "index.html")
        for name in ("attention", "exchanges", "drawn", "regions", "masks"):
            if (target / name).exists():
                tracked.log_artifact(target / name, name)


def cli(data: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    main(config.load_config(ReportConfig, "report"), data, output)


if __name__ == "__main__":
    run_stage(cli)
