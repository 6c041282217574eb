"""A project on disk with MM-ORIENT trained on a few memes by every stage from 03 on."""

import json
from io import BytesIO
from pathlib import Path

import yaml
from PIL import Image, ImageDraw, ImageFont

from pipelines.inference.input_rules import load_input_rules
from pipelines.inference.meme_labeler import MemeInput, MemeLabeler, PreparedMeme, prepare_memes
from stages import embed
from stages.augment import __main__ as augmenting
from stages.augment import paraphrasers
from stages.classify import __main__ as label
from stages.classify import mm_orient as label_memes
from stages.classify.config import ClassifyConfig
from stages.inpaint import __main__ as inpaint
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store, parallel, text_cleaning
from stages.shared.encoders import extract
from stages.shared.encoders import huggingface as huggingface_encoder
from stages.train_classifier import __main__ as training
from stages.train_classifier import mm_orient as train_memes
from tests.support.tiny_clip import save_clip

RUN_NAME = "mm_orient"
TASKS = {
    "sentiment": ["negative", "neutral", "positive"],
    "humour": ["not_funny", "funny"],
    "sarcasm": ["not_sarcastic", "general"],  # which nobody judged
}
WORDS = ["WHEN THE CAT", "MONDAY AGAIN", "NOBODY IS READY", "LANTERN AND CAT", "MORNING FOR ALL"]
SPLITS = {"train": 8, "validation": 3, "test": 5}
TEXT_IN_IMAGE_ONLY, WITHOUT_IMAGE, WITHOUT_WORDS = (
    1,
    2,
    3,
)  # numbers in a split: words only in the picture, no picture, no words
COLORS = ("white", "gold", "skyblue", "pink", "lightgreen")


def draw_text_image(words: str, number: int = 0, size: int = 256) -> bytes:
    """Words in capitals over a few shapes; a PNG file."""
    image = Image.new("RGB", (size, size), COLORS[number % len(COLORS)])
    draw = ImageDraw.Draw(image)
    draw.ellipse((70 + number, 120, 150 + number, 200), fill=(20 * number % 256, 90, 160))
    font = ImageFont.load_default(size // 14)
    draw.text((size / 2, 8), words, fill="black", font=font, anchor="ma")
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def make_items() -> list[tuple[dict, bytes | None]]:
    """The rows of CLEAN, each with its picture."""
    found, tidy = [], load_input_rules("cli_label")  # of the current project
    for split, count in SPLITS.items():
        for number in range(count):
            place = len(found)
            words = WORDS[place % len(WORDS)]
            shown = (
                None
                if number == WITHOUT_IMAGE
                else draw_text_image("" if number == WITHOUT_WORDS else words, place)
            )
            original = "" if number in (TEXT_IN_IMAGE_ONLY, WITHOUT_WORDS) else f"{words}!"
            row = {"id": f"{split}-{number}", "split": split, "language": "en", "source": "by hand"}
            row |= {"image": image_store.build_image_row(shown)["sha256"] if shown else None}
            row |= {"text": tidy.clean_overlay(original), "original": original}
            labels = {
                "sentiment": TASKS["sentiment"][place % 3],
                "humour": TASKS["humour"][place % 2],
            }
            row["labels"] = [{"task": task, "label": one} for task, one in labels.items()]
            found.append((row, shown))
    return found


def create_trained_project(
    place: Path, patch, changes: dict | None = None, languages: tuple[str, ...] = ("en",)
) -> Path:
    """Fill the folder `place`; patch: a MonkeyPatch, under which it is current.

    changes: values of the reader's row by name. languages: that the aligned encoder reads
    """
    write_params(place, changes or {})
    patch.chdir(place)
    patch.setenv("POLYMUSE_HOME", str(place / "home"))
    data = place / "data"
    ingest, clean, inpainted, corpus = (
        data / f"{name}/memes" for name in ("01_ingest", "02_clean", "03_inpaint", "04_augment")
    )
    given = make_items()
    ingest.mkdir(parents=True)
    (ingest / "tasks.json").write_text(json.dumps(TASKS))
    image_store.write_images(
        ingest / "images", [image_store.build_image_row(shown) for _, shown in given if shown], 2
    )
    schemas.write_parquet(
        clean / "records.parquet", [row for row, _ in given], schemas.CLEAN_RECORDS["memes"]
    )
    inpaint.main(
        load_config(inpaint.InpaintConfig, "inpaint"),
        load_config(parallel.EngineConfig, "parallel"),
        ingest,
        clean,
        inpainted,
    )
    prompt, tidy = (
        paraphrasers.load_prompt(augmenting.PROMPT_PATH),
        load_config(text_cleaning.CleanConfig, "clean"),
    )
    folders = [ingest, clean, inpainted]
    augmenting.main(load_config(augmenting.AugmentConfig, "augment"), tidy, prompt, folders, corpus)
    save_clip(place / "source")
    align, cached = data / "06_align", data / "07_embed/memes"
    align.mkdir(parents=True)
    huggingface_encoder.fetch(str(place / "source"), list(languages), align)
    embed.main(load_config(extract.EmbedConfig, "embed"), "memes", corpus, corpus, align, cached)
    folders = [corpus, corpus, cached, align]
    training.main(RUN_NAME, train_memes, folders, "memes", data / "09_train_classifier" / RUN_NAME)
    return place


def write_params(place: Path, changes: dict) -> None:
    """params.yaml as shipped, with a reader of memes that is trained in a second."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["training"]["checkpoint_seconds"] = 0.0
    params["parallel"]["kind"] = "inline"
    params["augment"]["backend"] = "none"
    network = params["models"]["mm_orient"]["network"]
    network |= {"hidden": [16], "dropout": 0.0, "attention_width": 8}
    network["relations"] |= {"width": 4, "bank": 6, "density": 0.3}
    run = params["classifiers"][RUN_NAME]
    run["training"] |= {"steps": 12, "batch": 4, "learning_rate": 0.02, "validate_every": 4}
    run |= {"batch": 3} | changes
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    (place / "dvc.yaml").touch()


def get_model_dir(place: Path) -> Path:
    return place / "data/09_train_classifier" / RUN_NAME / "model"


def load_labeler(folder: Path) -> MemeLabeler:
    return MemeLabeler(folder, str(folder))


def prepare_inputs(*memes: MemeInput) -> list[PreparedMeme]:
    return prepare_memes(
        list(memes), load_config(inpaint.InpaintConfig, "inpaint"), load_input_rules("cli_label")
    )


def classify_test_split(place: Path) -> list[dict]:
    """What the stage says of the test split from text and picture."""
    data = place / "data"
    corpus, target = data / "04_augment/memes", data / "11_classify" / RUN_NAME
    folders = [corpus, corpus, data / "07_embed/memes", get_model_dir(place)]
    label.main(
        RUN_NAME, label_memes, folders, "memes", load_config(ClassifyConfig, "classify"), target
    )
    rows = schemas.read_parquet(target / "labels.parquet", schemas.LABEL_PREDICTIONS)
    return [row for row in rows if row["split"] == "test" and row["inputs"] == "both"]
