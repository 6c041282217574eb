"""A project with MM-ORIENT trained on a few memes by the stages from `inpaint` on."""

import json
from io import BytesIO
from pathlib import Path

import yaml
from PIL import Image, ImageDraw, ImageFont

from pipelines.inference.input_rules import load_input_rules
from pipelines.inference.meme_labeler import MemeInput, MemeLabeler, PreparedMeme, prepare_memes
from stages import embed
from stages.augment import __main__ as augment
from stages.augment import paraphrasers
from stages.classify import __main__ as classify
from stages.classify import mm_orient as classify_mm_orient
from stages.classify.config import ClassifyConfig
from stages.inpaint import __main__ as inpaint
from stages.shared.backbones.classifier import CorpusFolders
from stages.shared.core import schemas
from stages.shared.core.config import load_config, read_params
from stages.shared.data import image_store, parallel, text_cleaning
from stages.shared.encoders import extract
from stages.shared.encoders import huggingface as huggingface_encoder
from stages.train_classifier import __main__ as train_classifier
from stages.train_classifier import mm_orient as train_mm_orient
from tests.support.tiny_clip import save_clip

RUN_NAME = "mm_orient"
TASKS = {
    "sentiment": ["negative", "neutral", "positive"],
    "humour": ["not_funny", "funny"],
    "sarcasm": ["not_sarcastic", "general"],  # no meme has a label
}
WORDS = ["WHEN THE CAT", "MONDAY AGAIN", "NOBODY IS READY", "LANTERN AND CAT", "MORNING FOR ALL"]
SPLITS = {"train": 8, "validation": 3, "test": 5}
TEXT_IN_IMAGE_ONLY, WITHOUT_IMAGE, WITHOUT_WORDS = 1, 2, 3  # item numbers in a split
COLORS = ("white", "gold", "skyblue", "pink", "lightgreen")


def draw_text_image(text: str, number: int = 0, size: int = 256) -> bytes:
    """A PNG file with text at the top and a circle below."""
    image = Image.new("RGB", (size, size), COLORS[number % len(COLORS)])
    draw = ImageDraw.Draw(image)
    draw.ellipse((70 + number, 120, 150 + number, 200), fill=(20 * number % 256, 90, 160))
    font = ImageFont.load_default(size // 14)
    draw.text((size / 2, 8), text, fill="black", font=font, anchor="ma")
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def make_items() -> list[tuple[dict, bytes | None]]:
    """Pairs of a CLEAN_RECORDS row and an image file (or None); needs a current project."""
    items, rules = [], load_input_rules("cli_label")
    for split, count in SPLITS.items():
        for number in range(count):
            index = len(items)
            words = WORDS[index % len(WORDS)]
            overlay = "" if number == WITHOUT_WORDS else words
            image = None if number == WITHOUT_IMAGE else draw_text_image(overlay, index)
            original = "" if number in (TEXT_IN_IMAGE_ONLY, WITHOUT_WORDS) else f"{words}!"
            row = {"id": f"{split}-{number}", "split": split, "language": "en", "source": "by hand"}
            row |= {"image": image_store.build_image_row(image)["sha256"] if image else None}
            row |= {"text": rules.clean_overlay(original), "original": original}
            labels = {
                "sentiment": TASKS["sentiment"][index % 3],
                "humour": TASKS["humour"][index % 2],
            }
            row["labels"] = [{"task": task, "label": label} for task, label in labels.items()]
            items.append((row, image))
    return items


def create_trained_project(
    folder: Path, monkeypatch, changes: dict | None = None, languages: tuple[str, ...] = ("en",)
) -> Path:
    """Create the project in `folder`, which becomes the current folder.

    changes: values of the classifier's section. languages: those that the aligned encoder supports.
    """
    write_params(folder, changes or {})
    monkeypatch.chdir(folder)
    monkeypatch.setenv("POLYMUSE_HOME", str(folder / "home"))
    data = folder / "data"
    ingest, clean, inpainted, corpus = (
        data / f"{name}/memes" for name in ("01_ingest", "02_clean", "03_inpaint", "04_augment")
    )
    items = make_items()
    ingest.mkdir(parents=True)
    (ingest / "tasks.json").write_text(json.dumps(TASKS))
    image_store.write_images(
        ingest / "images", [image_store.build_image_row(image) for _, image in items if image], 2
    )
    schemas.write_parquet(
        clean / "records.parquet", [row for row, _ in items], schemas.CLEAN_RECORDS["memes"]
    )
    inpaint.main(
        load_config(inpaint.InpaintConfig, "inpaint"),
        load_config(parallel.EngineConfig, "parallel"),
        ingest,
        clean,
        inpainted,
    )
    augment.main(
        load_config(augment.AugmentConfig, "augment"),
        load_config(text_cleaning.CleanConfig, "clean"),
        paraphrasers.load_prompt(augment.PROMPT_PATH),
        ingest,
        clean,
        inpainted,
        corpus,
    )
    save_clip(folder / "source")
    align, features = data / "06_align", data / "07_embed/memes"
    align.mkdir(parents=True)
    huggingface_encoder.fetch(str(folder / "source"), list(languages), align)
    config = load_config(extract.EmbedConfig, "embed")
    embed.main(config, "memes", "synthetic", corpus, corpus, align, features)
    folders, output = (
        CorpusFolders(corpus, corpus, features),
        data / "09_train_classifier" / RUN_NAME,
    )
    train_classifier.main(RUN_NAME, train_mm_orient, folders, align, "memes", output)
    return folder


def write_params(folder: Path, changes: dict) -> None:
    """Write params.yaml as shipped, but with a tiny MM-ORIENT that trains in a second."""
    params = read_params()
    params["training"]["checkpoint_interval_seconds"] = 0.0
    params["parallel"]["backend"] = "inline"
    params["augment"]["backend"] = "none"
    network = params["models"]["mm_orient"]["network"]
    network |= {"hidden_layer_sizes": [16], "dropout": 0.0, "attention_dim": 8}
    network["relations"] |= {"output_dim": 4, "memory_bank_size": 6, "density": 0.3}
    run = params["classifiers"][RUN_NAME]
    run["training"] |= {"max_steps": 12, "batch_size": 4, "learning_rate": 0.02, "eval_steps": 4}
    run |= {"eval_batch_size": 3} | changes
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.yaml").touch()


def get_model_dir(folder: Path) -> Path:
    return folder / "data/09_train_classifier" / RUN_NAME / "model"


def load_labeler(folder: Path) -> MemeLabeler:
    return MemeLabeler(folder, str(folder))


def prepare_inputs(*memes: MemeInput) -> list[PreparedMeme]:
    return prepare_memes(
        list(memes), load_config(inpaint.InpaintConfig, "inpaint"), load_input_rules("cli_label")
    )


def classify_test_split(folder: Path) -> list[dict]:
    """Predictions of `classify` for the test split, from text and image."""
    data = folder / "data"
    corpus, output = data / "04_augment/memes", data / "11_classify" / RUN_NAME
    folders = CorpusFolders(corpus, corpus, data / "07_embed/memes")
    config = load_config(ClassifyConfig, "classify")
    batch_size = load_config(int, "classifiers", RUN_NAME, "eval_batch_size")
    model = get_model_dir(folder)
    classify.main(classify_mm_orient, folders, model, "memes", config, batch_size, output)
    rows = schemas.read_parquet(output / "labels.parquet", schemas.LABEL_PREDICTIONS)
    return [row for row in rows if row["split"] == "test" and row["inputs"] == "both"]
