"""Articles of several images and one text, from files to metrics: the stages in order, without DVC.

The texts need no skill to be learned; what counts is that each stage passes all images and the
whole text on to the next.
"""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import yaml
from PIL import Image

from stages import chunk, clean, embed, train_sft
from stages.align import __main__ as align
from stages.evaluate import __main__ as evaluate
from stages.illustrate import __main__ as illustrate
from stages.ingest import __main__ as ingest
from stages.predict import __main__ as predict
from stages.shared.core import schemas
from stages.shared.core.config import read_params
from stages.shared.generation import generator as generators
from stages.train_preference import __main__ as train_preference

pytestmark = pytest.mark.slow

NUM_ARTICLES = 100
COLORS = {
    "en": {"red": "red", "lime": "green", "blue": "blue", "white": "white", "black": "black"},
    "zh": {"red": "红", "lime": "绿", "blue": "蓝", "white": "白", "black": "黑"},
}
SENTENCES = {
    "en": "The pictures of {name} show {colors}, one after the other.",
    "zh": "{name}的图片依次是{colors}。",
}
NAMES = {"en": ["Ada", "Boris", "Clara"], "zh": ["小明", "小红", "小刚"]}


def write_jsonl(folder: Path, language: str) -> None:
    """100 articles in the shape of ArtMUSE: a title, 3 to 5 images, one reference."""
    random = Random(0)
    (folder / "images").mkdir(parents=True)
    for color in COLORS[language]:
        Image.new("RGB", (32, 32), color).save(folder / "images" / f"{color}.png")
    lines = []
    for number in range(NUM_ARTICLES):
        colors = random.choices([*COLORS[language]], k=random.randint(3, 5))
        name = random.choice(NAMES[language])
        separator = "、" if language == "zh" else ", "
        reference = SENTENCES[language].format(
            name=name, colors=separator.join(COLORS[language][color] for color in colors)
        )
        row = {"article_id": number, "title": f"{name} {number}", "language": language}
        row["images"] = [f"images/{color}.png" for color in colors]
        lines.append(json.dumps(row | {"reference": reference}, ensure_ascii=False))
    (folder / "articles.jsonl").write_text("\n".join(lines), encoding="utf-8")


def prepare_params(folder: Path, format: str) -> None:
    """params.yaml for models that train in seconds."""
    params = read_params()
    params["corpora"]["articles"] |= {"format": format, "path": str(folder / "raw")}
    params["formats"]["synthetic"] |= {
        "article_style": "one_text",
        "image_size": 32,
        "train": 120,
        "validation": 30,
        "test": 40,
    }
    params["chunk"]["one_text_corpora"] = ["articles"]
    params["align"] |= {"corpus": "articles"}
    params["align"]["tiny"] |= {"image_size": 32, "patch_size": 8, "d_model": 32}
    params["align"]["tiny"]["schedule"] |= {"max_steps": 2, "batch_size": 8, "eval_steps": 1}
    params["decoders"]["tiny"] |= {"d_ff": 32, "vocab_size": 600}
    params["rewards"]["max_tokens"] = 32
    params["evaluate"] |= {"max_bertscore_samples": 2, "num_bootstrap_samples": 10}
    params["models"]["flexmuse"]["network"] |= {"d_model": 16, "max_images": 5}
    params["models"]["tippo"]["network"] |= {"d_model": 16}
    params["models"]["tippo"]["preference"] |= {"semantic_reward": "none", "num_generations": 2}
    for name in ("flexmuse", "tippo"):
        run = params["generators"][name]
        run["max_tokens"] = 40
        run["sft"] |= {"max_steps": 6, "batch_size": 4, "eval_steps": 3}
        run["preference"] |= {"max_steps": 2, "batch_size": 2, "eval_steps": 1}
        run["quality_monitor"] = {"max_eval_samples": 2, "max_score_drop": 1.0}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def run_corpus_stages(data: Path, raw: Path, format: str) -> None:
    """ingest, clean and chunk."""
    ingest.cli("articles", "articles", format, raw, data / "ingest")
    clean.cli("articles", data / "ingest", data / "clean")
    chunk.cli("articles", data / "clean", data / "chunk")


def run_encoder_stages(data: Path, encoder_data: Path, format: str) -> None:
    """align, embed and illustrate; encoder_data: of the corpus that trains the encoder."""
    aligned, ingested = data / "align", data / "ingest"
    align.cli(encoder_data / "ingest", encoder_data / "chunk", data / "no pairs", aligned)
    embed.cli("articles", format, ingested, data / "clean", aligned, data / "embed")
    illustrate.cli(ingested, data / "chunk", aligned, data / "embed", data / "illustrate")


def run_model_stages(data: Path, name: str) -> dict:
    """The stages of one model; the content of metrics.json."""
    sft, preference, predicted, evaluated = (
        data / f"{stage}-{name}" for stage in ("sft", "preference", "predict", "evaluate")
    )
    ingested, chunks, embedded = (data / part for part in ("ingest", "illustrate", "embed"))
    train_sft.cli(name, chunks, embedded, data / "align", sft)
    pairs = data / "chunk" / "pairs.parquet"
    model = sft / "model"
    train_preference.cli(name, ingested, pairs, chunks, embedded, model, preference)
    predict.cli(name, ingested, chunks, embedded, model, preference / "model", predicted)
    evaluate.cli(name, ingested, predicted, evaluated)
    return json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def prepare(tmp_path, monkeypatch) -> Callable[[str, str], Path]:
    def prepare_corpus(format: str, language: str) -> Path:
        prepare_params(tmp_path, format)
        (tmp_path / "raw").mkdir()
        if format == "jsonl":
            write_jsonl(tmp_path / "raw", language)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
        run_corpus_stages(tmp_path, tmp_path / "raw", format)
        encoder_data = tmp_path
        if language == "zh":  # the tiny encoder reads English only
            encoder_data = tmp_path / "english"
            write_jsonl(encoder_data / "raw", "en")
            run_corpus_stages(encoder_data, encoder_data / "raw", format)
        run_encoder_stages(tmp_path, encoder_data, format)
        return tmp_path

    return prepare_corpus


@pytest.mark.parametrize(
    ("format", "language"), [("jsonl", "en"), ("jsonl", "zh"), ("synthetic", "en")]
)
def test_all_images_and_the_whole_text_reach_model_and_metrics(prepare, format, language):
    data = prepare(format, language)
    rows = schemas.read_parquet(data / "illustrate" / "chunks.parquet", schemas.CHUNKS)
    records = schemas.read_parquet(data / "ingest" / "records.parquet", schemas.RECORDS["articles"])
    num_images = {
        record["id"]: sum(block["image"] is not None for block in record["blocks"])
        for record in records
    }
    assert set(num_images.values()) == {3, 4, 5}
    assert len(rows) == sum(num_images.values())
    if format == "jsonl":
        assert len(records) == NUM_ARTICLES
    test_texts = {row["record"]: row["text"] for row in rows if row["text"]}
    for name in ("tippo", "flexmuse"):
        metrics = run_model_stages(data, name)
        predictions = schemas.read_parquet(
            data / f"predict-{name}" / "predictions.parquet", schemas.PREDICTIONS
        )
        generated = [
            row for row in predictions if (row["split"], row["inputs"]) == ("test", "both")
        ]
        assert {row["record"]: row["references"] for row in generated} == {
            record: [test_texts[record]] for record in {row["record"] for row in generated}
        }
        assert metrics["items"] == metrics["records"] == len(generated) / 2  # phases
        assert metrics["level"] == "chunk" and "by_article" not in metrics
        assert metrics["baselines"]["scores"].keys() >= {"nearest_image", "shuffled_images"}
        generator = generators.load_generator(data / f"sft-{name}" / "model")
        assert generator.config["one_text"] and generator.limits.max_images == 5
        if format == "synthetic":
            assert set(metrics["ceilings"]) == {"topic", "picture", "first_picture", "both"}
            assert metrics["ceilings"]["first_picture"]["realised"] < 1.0
            assert {"usual_weather", "odd_weather", "odd_image"} <= {
                *metrics["grounding"]["by_slot"]
            }
