"""Write the report: one static page with data, scores, ceilings, curves, attention and examples.

python -m stages.report --data DATA --output OUTPUT

reads   params.yaml, for the names of corpora, generators and classifiers, and in DATA
        all corpora        01_ingest, 06_align, 07_embed/*/retrieval.json
        article corpora    05_chunk, 08_illustrate
        meme corpora       02_clean, 03_inpaint, 04_augment
        generators         09_train_sft, 10_train_preference, 11_predict, 12_evaluate, 13_judge
        classifiers        02_clean or 04_augment, 09_train_classifier, 11_classify,
                           12_evaluate_classifier
writes  OUTPUT/index.html
        OUTPUT/images/      corpus images, resized
        OUTPUT/attention/   attention maps of generated texts
        OUTPUT/exchanges/   images with the cells that MuSE exchanged
        OUTPUT/sampled/     images that MuSE sampled from a text
        OUTPUT/regions/     attention maps of meme classifiers
        OUTPUT/masks/       inpainting masks of memes
        OUTPUT/example/     images that the commands on the page read, unchanged

The page needs no script and no network. It contains no date, ID or path, so equal results give
equal bytes. Images are re-encoded, which removes metadata such as the camera's location, except
those in example/.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2

from stages.report import (
    attention_maps,
    chunk_review,
    command_examples,
    illustrations,
    judge_scores,
    leaderboard,
    loaders,
    meme_corpus,
    meme_section,
    published_scores,
    tagging_examples,
)
from stages.report.attention_maps import AttentionData, AttentionView, ChunkKey
from stages.report.classifier_section import ClassifierSection, MuseSection
from stages.report.generator_section import INPUT_LABELS, GeneratorSection
from stages.report.loaders import ReportCorpus
from stages.report.meme_section import MemeSection
from stages.report.plots import curves, histograms, scatter
from stages.shared.core import schemas
from stages.shared.core.config import Field, config_class, load_config, read_params
from stages.shared.data import image_store
from stages.shared.metrics import alignment, diagnostics, grounding
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage

HERE = Path(__file__).parent
Chart = dict[str, str]  # title and SVG


@config_class
class ReportConfig:
    num_examples: int = Field(ge=0, description="test examples shown for each run")
    thumbnail_size: int = Field(ge=1, description="longest side of an image, pixels")
    max_pixelated_size: int = Field(
        ge=0, description="images up to this side are enlarged unsmoothed, pixels"
    )
    num_bins: int = Field(ge=1, description="bins of every histogram")
    num_attention_maps: int = Field(
        ge=0, description="attention maps of words and of topic tokens per text"
    )
    attention_map_size: int = Field(ge=1, description="longest side of an attention map, pixels")
    num_review_articles: int = Field(ge=0, description="train articles in the chunk review")
    near_identical_threshold: float = Field(
        description="chunk similarity from which a pair is flagged, 0 to 1"
    )
    unrelated_threshold: float = Field(
        description="chunk similarity up to which a pair is flagged, 0 to 1"
    )
    num_inpainted_memes: int = Field(ge=0, description="memes shown before and after inpainting")
    num_paraphrased_memes: int = Field(ge=0, description="memes shown with their paraphrases")
    min_graph_density: float = Field(description="warn at this share of linked pairs or less")
    max_isolated_fraction: float = Field(description="warn at this share of isolated items or more")
    max_graph_density: float = Field(description="warn at this share of linked pairs or more")
    max_attention_entropy: float = Field(description="warn at this normalized entropy or more")
    published: dict[str, str | None] = Field(
        description="entry of stages/report/published_scores.yaml, by run; null: none"
    )


@dataclass(frozen=True)
class ReportImage:
    """An image file of the report."""

    path: str  # relative to index.html
    width: int
    height: int
    pixelated: bool  # so small that the page enlarges it without smoothing


def save_image(content: bytes, sha256: str, folder: Path, config: ReportConfig) -> ReportImage:
    """Write an image, resized and without metadata, into `folder`/images."""
    image = image_store.decode_image(content)
    pixelated = max(image.size) <= config.max_pixelated_size
    resized = image_store.resize_and_strip_metadata(image, config.thumbnail_size)
    path = f"images/{sha256[:16]}.{'png' if pixelated else 'jpg'}"
    (folder / "images").mkdir(exist_ok=True)
    resized.save(folder / path)
    return ReportImage(path, *resized.size, pixelated)


def save_images(
    files: dict[str, bytes], folder: Path, config: ReportConfig
) -> dict[str, ReportImage]:
    """Write all images with `save_image`. Keys are SHA-256 hashes."""
    return {
        sha256: save_image(content, sha256, folder, config)
        for sha256, content in sorted(files.items())
    }


def draw_generator_curves(generator: GeneratorSection) -> list[Chart]:
    """Grounding by slot, and the training curves of each phase. Empty charts are left out."""
    charts = []
    name = generator.name
    if "grounding" in generator.metrics:
        by_phase = {
            phase: metrics["grounding"]["by_slot"] for phase, metrics in generator.phases.items()
        }
        ceilings = {
            f"ceiling, {INPUT_LABELS[inputs]}": generator.ceilings[inputs]["realised"]
            for inputs in ("topic", "picture")
            if "topic" in generator.ceilings
        }
        svg = curves.draw_slots(f"{name} slots", by_phase, ceilings)
        charts.append({"title": "Grounding by slot", "svg": svg})
    for phase, steps in generator.histories.items():
        charts += [
            chart | {"title": f"{chart['title']}, {phase}"}
            for chart in draw_training_curves(f"{name} {phase}", steps, "nats")
        ]
    return charts


def draw_classifier_curves(classifier: ClassifierSection) -> list[Chart]:
    """The training curves of a classifier."""
    # The checkpoint is selected by 1 - score, which the curve `validation_score` shows already.
    steps = [
        {name: value for name, value in row.items() if name != "validation_loss"}
        for row in classifier.history
    ]
    return draw_training_curves(classifier.name, steps, "loss")


def draw_training_curves(name: str, steps: curves.HistoryRows, loss_unit: str) -> list[Chart]:
    """Loss, validation metrics and further metrics by step, as far as `steps` contains them."""
    charts = []
    if any("loss" in row for row in steps):
        svg = curves.draw_loss(f"{name} loss", steps, loss_unit)
        charts.append({"title": "Loss", "svg": svg})
    if curves.list_monitored_metrics(steps):
        svg = curves.draw_monitored_metrics(f"{name} monitor", steps)
        charts.append({"title": "Validation metrics", "svg": svg})
    for title in curves.list_metric_charts(steps):
        svg = curves.draw_metric_chart(f"{name} {title}", title, steps)
        charts.append({"title": title, "svg": svg})
    return charts


def draw_gate_and_fusion(
    generator: GeneratorSection, data: AttentionData, num_bins: int
) -> list[Chart]:
    """Gate decisions and distributions of the fusion. Empty for a model without them."""
    charts = []
    name = generator.name
    gate_rows = data.gate_rows_by_use()
    for use, rows in gate_rows.items():
        modes = ", ".join(sorted({row["mode"] for row in rows}))
        svg = histograms.draw_gate_decisions(f"{name} gate {use}", rows, num_bins)
        title = f"Gate decisions {histograms.USE_LABELS[use]}, mode {modes}"
        charts.append({"title": title, "svg": svg})
    if gate_rows:
        svg = histograms.draw_mask_rates(f"{name} mask rate", gate_rows, num_bins)
        charts.append({"title": "Masked topics by similarity", "svg": svg})
    for salt, x_label, title, values in [
        ("lambda", "lambda", "Lambda over channels and items", data.correlations),
        (
            "entropy",
            "normalized entropy, 1: uniform",
            "Entropy of the fusion attention",
            data.entropies,
        ),
    ]:
        if any(len(phase_values) for phase_values in values.values()):
            svg = histograms.draw_share_histograms(
                f"{name} {salt}", x_label, title, values, num_bins
            )
            charts.append({"title": title, "svg": svg})
    return charts


def draw_attention_views(
    generator: GeneratorSection,
    articles: list[dict],
    files: dict[str, bytes],
    data: Path,
    folder: Path,
    config: ReportConfig,
) -> dict[ChunkKey, AttentionView]:
    """Attention of the final phase for each chunk of `articles` that has recorded attention."""
    predictions = data / "11_predict" / generator.name
    ingest = data / "01_ingest" / generator.params["corpus"]
    records = [article["record"] for article in articles]
    rows = attention_maps.load_attention_rows(predictions, records, generator.metrics["phase"])
    boxes, slots = diagnostics.load_boxes(ingest), grounding.load_slots(ingest)
    image_slots = slots.picture if slots else {}
    crop_fraction, views = loaders.read_crop_fraction(data / "06_align"), {}
    for number, article in enumerate(articles, start=1):
        for chunk in article["chunks"]:
            key = chunk["key"]
            if key in rows and chunk["images"][0] in files:
                image = image_store.decode_image(files[chunk["images"][0]])
                image.thumbnail((config.attention_map_size, config.attention_map_size))
                example = attention_maps.AttentionExample(
                    rows[key], image, crop_fraction, boxes.get(key, {}), image_slots
                )
                name = f"{generator.name}/{number}-{key[1]}"
                views[key] = attention_maps.draw_attention_view(
                    example, config.num_attention_maps, folder, name
                )
    return views


def build_published_table(
    section: GeneratorSection | ClassifierSection, config: ReportConfig
) -> published_scores.PublishedTable | None:
    """The published scores of the run's corpus, if params name it."""
    name = config.published.get(section.name)
    return published_scores.build_table(name, section.name, section.metrics)


def build_generator_context(
    generator: GeneratorSection, data: Path, folder: Path, config: ReportConfig
) -> dict[str, Any]:
    """The template variables of generator.html. Writes the image files."""
    corpus, predictions = generator.params["corpus"], data / "11_predict" / generator.name
    articles = generator.select_articles(
        config.num_examples, attention_maps.load_attended_records(predictions)
    )
    hashes = {
        image
        for article in articles
        for chunk in article["chunks"]
        for image in chunk["images"]
        if image
    }
    files = loaders.load_images(data, corpus, hashes)
    images = save_images(files, folder, config)
    attention_data = attention_maps.load_attention_data(predictions)
    return {
        "generator": generator,
        "published": build_published_table(generator, config),
        "judge": judge_scores.load_judge_scores(data / "13_judge" / generator.name / "judge.json"),
        "curves": draw_generator_curves(generator),
        "gate_charts": draw_gate_and_fusion(generator, attention_data, config.num_bins),
        "articles": articles,
        "images": images,
        "attention": draw_attention_views(generator, articles, files, data, folder, config),
        "illustrations": illustrations.load_illustrations(
            data / "08_illustrate" / corpus
        ).rows_by_chunk,
    }


def build_command_examples(
    generators: list[GeneratorSection],
    classifiers: Sequence[ClassifierSection],
    kinds: dict[str, str],
    data: Path,
    folder: Path,
    config: ReportConfig,
) -> dict[str, Any]:
    """The template variables of command_examples.html, empty without an example. Writes images.

    kinds: corpus -> kind
    """
    examples = {
        "article": command_examples.build_written_article(generators, data, folder),
        "meme": command_examples.build_labeled_meme(classifiers, data, folder),
        "text": command_examples.build_labeled_text(classifiers, kinds, data, folder),
    }
    if not any(examples.values()):
        return {}
    files: dict[str, bytes] = {}
    for example in filter(None, examples.values()):
        files |= example.files
    return examples | {"images": save_images(files, folder, config)}


def draw_embeddings(classifier: MuseSection, labels: Path) -> list[Chart]:
    """Text and image embeddings in the plane, before and after the shared projection."""
    rows = schemas.read_parquet(labels / "embeddings.parquet", schemas.EMBEDDINGS)
    charts = []
    for side in alignment.PROJECTION_SIDES:
        if not isinstance(classifier.metrics["alignment"][side], str):
            _, texts, images = alignment.pair_embeddings(rows, side)
            svg = scatter.draw_scatter(f"{classifier.name} {side}", texts, images)
            charts.append({"title": f"{side.capitalize()} the shared projection", "svg": svg})
    return charts


def classifier_crop_fraction(classifier: ClassifierSection, data: Path) -> float | None:
    """Side of the center square that the classifier reads, as in `loaders.read_crop_fraction`.

    This depends on the aligned encoder if its patches are used. A ResNet reads the whole image.
    """
    uses_patches = classifier.params["image"]["encoder"] == "patches"
    return loaders.read_crop_fraction(data / "06_align") if uses_patches else None


def build_classifier_context(
    classifier: MuseSection, kind: str, data: Path, folder: Path, config: ReportConfig
) -> dict[str, Any]:
    """The template variables of classifier.html. Writes the image files."""
    corpus, labels = classifier.params["corpus"], data / "11_classify" / classifier.name
    tagging_data = tagging_examples.load_tagging_data(
        data / "02_clean" / corpus, labels, kind, classifier.metrics["split"], config.num_examples
    )
    hashes = {row["image"] for row in tagging_data.records.values()} - {None}
    files = loaders.load_images(data, corpus, hashes)
    crop_fraction = classifier_crop_fraction(classifier, data)
    return {
        "template": "classifier.html",
        "classifier": classifier,
        "published": build_published_table(classifier, config),
        "curves": draw_classifier_curves(classifier),
        "embeddings": draw_embeddings(classifier, labels),
        "images": save_images(files, folder, config),
        "examples": tagging_examples.build_tagging_examples(
            tagging_data, files, crop_fraction, config.attention_map_size, folder, classifier.name
        ),
    }


def build_meme_classifier_context(
    classifier: MemeSection, data: Path, folder: Path, config: ReportConfig
) -> dict[str, Any]:
    """The template variables of meme_classifier.html. Writes the image files."""
    corpus, records = classifier.params["corpus"], data / classifier.params["records"]
    displayed = meme_section.load_displayed_items(
        records / corpus,
        data / "11_classify" / classifier.name,
        classifier.metrics["split"],
        config.num_examples,
    )
    files = loaders.load_images(data, corpus, displayed.image_hashes)
    crop_fraction = classifier_crop_fraction(classifier, data)
    return {
        "template": "meme_classifier.html",
        "classifier": classifier,
        "published": build_published_table(classifier, config),
        "tasks": schemas.read_json(records / corpus / "tasks.json"),
        "input_labels": meme_section.INPUT_LABELS,
        "thresholds": meme_section.DiagnosticThresholds(
            config.min_graph_density,
            config.max_isolated_fraction,
            config.max_graph_density,
            config.max_attention_entropy,
        ),
        "curves": draw_classifier_curves(classifier),
        "images": save_images(files, folder, config),
        "examples": meme_section.build_meme_examples(
            displayed, files, crop_fraction, config.attention_map_size, folder, classifier.name
        ),
    }


def build_meme_corpus_context(
    corpus: ReportCorpus, data: Path, folder: Path, config: ReportConfig
) -> dict[str, Any]:
    """The template variables of meme_corpus.html. Writes the image files."""
    corpus_data = meme_corpus.load_meme_corpus(
        data, corpus.name, config.num_inpainted_memes, config.num_paraphrased_memes
    )
    files = loaders.load_images(data, corpus.name, corpus_data.image_hashes)
    return {
        "corpus": corpus,
        "data": corpus_data,
        "inpainting_rows": meme_corpus.build_inpainting_rows(corpus_data.inpainting_summary),
        "augmentation_rows": meme_corpus.build_augmentation_rows(corpus_data.augmentation_summary),
        "masks": meme_corpus.draw_masks(corpus_data, files, config.thumbnail_size, folder),
        "images": save_images(files, folder, config),
    }


def build_article_corpus_context(
    corpus: ReportCorpus, data: Path, config: ReportConfig
) -> dict[str, Any]:
    """The template variables of article_corpus.html: illustrations and the chunk review."""
    thresholds = chunk_review.SimilarityThresholds(
        config.near_identical_threshold, config.unrelated_threshold
    )
    illustration_data = illustrations.load_illustrations(data / "08_illustrate" / corpus.name)
    histogram = None
    if illustration_data.similarities_by_backend:
        histogram = histograms.draw_similarity_histogram(
            f"{corpus.name} similarity", illustration_data.similarities_by_backend, config.num_bins
        )
    return {
        "corpus": corpus,
        "review": chunk_review.load_chunk_review(
            data / "05_chunk" / corpus.name, config.num_review_articles, thresholds
        ),
        "thresholds": thresholds,
        "illustrations": illustration_data,
        "similarity_histogram": histogram,
    }


def format_number(value: float | int | str | None) -> str:
    """Format a table cell: floats with 3 decimals, integers with commas, None as a dash."""
    if value is None:
        return "\N{EM DASH}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else f"{value:.3f}"


def render_page(**context: Any) -> str:
    """Render index.html. Everything is escaped except our own SVG charts and style sheet."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    style = (HERE / "templates" / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(style=style, **context)


def build_page_context(
    params: dict[str, Any], data: Path, folder: Path, config: ReportConfig
) -> dict[str, Any]:
    """The variables of page.html. Writes the image files into `folder`."""
    corpora = loaders.load_corpora(data, params["corpora"])
    generators = loaders.load_generator_sections(
        data, params.get("generators") or {}, params["corpora"]
    )
    classifiers = loaders.load_classifier_sections(data, params.get("classifiers") or {})
    runs = [section.name for section in [*generators, *classifiers]]
    published_scores.check_names(config.published, runs)
    kinds = {corpus.name: corpus.params["kind"] for corpus in corpora}
    retrieval = loaders.load_retrieval(data, corpora)
    return {
        "leaderboards": leaderboard.build_leaderboards(generators, classifiers),
        "made": build_command_examples(generators, classifiers, kinds, data, folder, config),
        "corpora": corpora,
        "encoder": loaders.load_encoder_info(data),
        "retrieval": retrieval,
        "encoder_warnings": [
            f"{name}: {result['warning']}"
            for name, result in retrieval.items()
            if result["warning"]
        ],
        "generators": [
            build_generator_context(generator, data, folder, config) for generator in generators
        ],
        "classifiers": [
            build_meme_classifier_context(classifier, data, folder, config)
            if isinstance(classifier, MemeSection)
            else build_classifier_context(
                classifier, kinds[classifier.params["corpus"]], data, folder, config
            )
            for classifier in classifiers
        ],
        "meme_corpora": [
            build_meme_corpus_context(corpus, data, folder, config)
            for corpus in corpora
            if kinds[corpus.name] == "memes"
        ],
        "article_corpora": [
            build_article_corpus_context(corpus, data, config)
            for corpus in corpora
            if kinds[corpus.name] == "articles"
        ],
    }


def main(config: ReportConfig, data: Path, output: Path) -> None:
    params = read_params()
    with tracking.start_run(stage="report", name="", params={"report": asdict(config)}) as run:
        with atomic_output_dir(output) as folder:
            page = render_page(**build_page_context(params, data, folder, config))
            (folder / "index.html").write_text(page, encoding="utf-8")
        run.log_to_parent(loaders.load_headlines(data, params))
        run.log_artifact_hash(output / "index.html", "index.html")
        for name in ("attention", "exchanges", "sampled", "regions", "masks"):
            if (output / name).exists():
                run.log_artifact(output / name, name)


def cli(data: Path, output: Path) -> None:
    """The stage command in dvc.yaml."""
    main(load_config(ReportConfig, "report"), data, output)


if __name__ == "__main__":
    run_stage(cli)
