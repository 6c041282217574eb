"""`polymuse write` with a tiny trained generator and a tiny encoder."""

import json
from argparse import Namespace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from pipelines.cli import write
from pipelines.inference import article_export, model_bundle
from pipelines.inference.generator import ArticleGenerator, GenerationInput
from stages import embed, train_sft
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.encoders import extract
from stages.shared.encoders import huggingface as huggingface_encoder
from stages.shared.generation import generator as generators
from stages.shared.runtime import mlflow_store, tracking
from stages.shared.runtime.stage import InputError
from tests.pipelines.cli.test_cli import polymuse
from tests.support import article_corpus, color_caption_corpus, tiny_diffusion, tiny_flexmuse
from tests.support.tiny_clip import make_photo, save_clip

PAGE = {"html", "head", "meta", "title", "style", "body", "article", "h1", "section"}
PAGE |= {"figure", "img", "figcaption", "p", "footer"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style><img src=x onerror=alert(1)>",
    '" onload="alert(1) \' `',
    "{{ 7 * 7 }} {% raw %}",
    '![x](javascript:alert(1)) [a]: /b "c"',
    "# *not* _a_ **heading** ~~x~~ | a | b |",
    "1. a - b + c = d",
    "&lt;b&gt; &#60; \\\\ \\",
    "www.example.org me@example.org ftp://example.org",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("write") / "project"
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        return create_trained_project(place, patch)


def create_trained_project(place: Path, patch: pytest.MonkeyPatch) -> Path:
    """A project with training images, an encoder and a run after train_sft, in `place`."""
    article_corpus.create_project(place)
    params = yaml.safe_load((place / "params.yaml").read_text())
    params["illustrate"]["diffusers"] |= {"num_inference_steps": 2, "image_size": 16}
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    (place / "dvc.yaml").touch()
    patch.chdir(place)
    patch.setenv("POLYMUSE_HOME", str(place / "home"))
    save_clip(place / "source")
    align = place / "data/06_align"
    align.mkdir(parents=True)
    huggingface_encoder.fetch(str(place / "source"), ["en"], align)
    write_stage_outputs(place / "data", align)
    folders = [place / "data" / name / "articles" for name in ("05_chunk", "07_embed")]
    out = place / "data/09_train_sft/flexmuse"
    train_sft.cli("flexmuse", *folders, encoder=align, output=out)
    return place


def write_stage_outputs(data: Path, align: Path) -> None:
    """Write the articles of tests.support.tiny_flexmuse as ingest, chunk and embed do.

    Each chunk has a random photo.
    """
    files = [encode_png(make_photo(number)) for number in range(8)]
    images = [image_store.validate_image(content, 10**6) for content in files]
    image_store.write_images(data / "01_ingest/articles/images", images, 2)
    rows = [
        row | {"image": images[int(row["image"])]["sha256"], "split": split, "record": record}
        for split in ("train", "validation")
        for row in tiny_flexmuse.make_chunk_rows()
        if (record := f"{split}-{row['record']}")
        and (split == "train") == (row["record"] != "r2")  # images in both splits are not retrieved
    ]
    schemas.write_parquet(data / "05_chunk/articles/chunks.parquet", rows, schemas.CHUNKS)
    records = [color_caption_corpus.make_record(row, "articles") for row in rows]
    schemas.write_parquet(
        data / "02_clean/articles/records.parquet", records, schemas.CLEAN_RECORDS["articles"]
    )
    params = load_config(extract.EmbedConfig, "embed")
    folders = [data / "01_ingest/articles", data / "02_clean/articles", align]
    embed.main(params, "articles", "synthetic", *folders, data / "07_embed/articles")


def encode_png(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def place(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("POLYMUSE_HOME", str(trained / "home"))
    return trained


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "harbour.png"
    path.write_bytes(encode_png(make_photo(99)))
    return path


def write_article(target: Path, **options) -> dict:
    """Run the command with these options; the content of article.json."""
    defaults = dict.fromkeys(("topic", "images", "run", "model", "backend", "seed"))
    write.main(Namespace(**(defaults | {"image": [], "output": target} | options)))
    return json.loads((target / "article.json").read_text())


class PageParser(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def test_a_topic_alone_gets_images_of_training_articles(place, tmp_path):
    article = write_article(tmp_path / "out", topic="a red cat")
    assert article["title"] == "a red cat"
    assert article["model"] == {"run": "flexmuse", "phase": "sft", "uri": None}
    assert (
        len(article["chunks"])
        == load_config(write.WriteCommandConfig, "cli_write").default_num_images
    )
    for chunk in article["chunks"]:
        assert chunk["provenance"] == "retrieve"
        assert chunk["source"].startswith("train-r")
        assert -1 <= chunk["similarity"] <= 1
        assert chunk["topic_passed"] is True
    assert len({chunk["source"] for chunk in article["chunks"]}) == len(article["chunks"])


def test_an_image_alone_gives_an_article_without_a_title(place, tmp_path, image_file):
    article = write_article(tmp_path / "out", image=[image_file])
    (chunk,) = article["chunks"]
    assert (
        article["title"] is None and chunk["similarity"] is None and chunk["topic_passed"] is None
    )
    assert (chunk["provenance"], chunk["source"]) == ("given", "harbour.png")
    assert "h1" not in [
        tag for tag, _ in PageParser((tmp_path / "out/article.html").read_text()).tags
    ]


def test_given_images_come_first_in_order_and_missing_ones_are_added(place, tmp_path, image_file):
    other = tmp_path / "boat.png"
    other.write_bytes(encode_png(make_photo(7, 30, 30)))
    article = write_article(tmp_path / "out", topic="a cat", image=[image_file, other], images=3)
    assert [chunk["source"] for chunk in article["chunks"]][:2] == ["harbour.png", "boat.png"]
    assert [chunk["provenance"] for chunk in article["chunks"]] == ["given", "given", "retrieve"]
    shown = [Image.open(tmp_path / "out" / chunk["picture"]).size for chunk in article["chunks"]]
    assert shown[:2] == [(50, 40), (30, 30)]


def test_zero_images_give_one_text(place, tmp_path):
    article = write_article(tmp_path / "out", topic="a red cat", images=0)
    (chunk,) = article["chunks"]
    assert chunk["picture"] is None and chunk["similarity"] is None
    assert chunk["topic_passed"] is True
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(article_export.FILES)


def test_a_text_from_raw_input_equals_that_from_cached_features(place, tmp_path):
    """The prediction for a chunk of the corpus from the output of embed."""
    from stages.shared.features import store as feature_store

    generator = generators.load_generator(place / "data/09_train_sft/flexmuse/model")
    features = feature_store.read_features(place / "data/07_embed/articles")
    rows = schemas.read_parquet(place / "data/05_chunk/articles/chunks.parquet", schemas.CHUNKS)[:1]
    generation = load_config(generators.GeneratorRun, "generators", "flexmuse").generation
    chunks = generator.build_dataset(rows, features)
    expected = generator.generate(chunks.batch([0]), generation)
    article_generator = ArticleGenerator(place / "data/09_train_sft/flexmuse/model", "model")
    item = GenerationInput(
        rows[0]["title"], encode_png(make_photo(int(tiny_flexmuse.make_chunk_rows()[0]["image"])))
    )
    ((text,),) = article_generator.generate([[item]], generation)
    assert [text.text] == expected.texts[0]
    assert text.similarity == pytest.approx(chunks.batch([0])["sigma"].item(), abs=1e-3)


def test_equal_commands_give_equal_bytes_and_another_seed_other_texts(place, tmp_path):
    text = (place / "params.yaml").read_text()
    params = yaml.safe_load(text)
    params["generators"]["flexmuse"]["generation"]["temperature"] = 1.0
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    try:
        first = write_article(tmp_path / "a", topic="a red cat", seed=1)
        write_article(tmp_path / "b", topic="a red cat", seed=1)
        other = write_article(tmp_path / "c", topic="a red cat", seed=2)
    finally:
        (place / "params.yaml").write_text(text)
    assert article_corpus.read_files(tmp_path / "a") == article_corpus.read_files(tmp_path / "b")
    assert (first["seed"], other["seed"]) == (1, 2)
    texts = [[chunk["text"] for chunk in article["chunks"]] for article in (first, other)]
    assert texts[0] != texts[1]


def test_another_seed_gives_other_images_with_a_generating_backend(place, tmp_path):
    backend = f"diffusers:{tiny_diffusion.save_pipeline(tmp_path / 'painter')}"
    drawn = {}
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        article = write_article(
            tmp_path / name, topic="a cat", images=2, backend=backend, seed=seed
        )
        assert [chunk["provenance"] for chunk in article["chunks"]] == ["diffusers:painter"] * 2
        drawn[name] = article_corpus.read_files(tmp_path / name)
    assert drawn["a"] == drawn["b"]
    assert drawn["a"]["pictures/1.png"] != drawn["c"]["pictures/1.png"]
    assert drawn["a"]["pictures/1.png"] != drawn["a"]["pictures/2.png"]


def test_an_article_contains_no_folder_of_this_machine(place, tmp_path, image_file):
    write_article(
        tmp_path / "out", topic="a cat", image=[image_file], model=str(get_model_dir(place))
    )
    for content in article_corpus.read_files(tmp_path / "out").values():
        assert str(tmp_path).encode() not in content and str(place).encode() not in content


def get_model_dir(place: Path) -> Path:
    return place / "data/09_train_sft/flexmuse/model"


def test_the_last_trained_phase_is_used(place, tmp_path):
    final = place / "data/10_train_preference/flexmuse"
    final.mkdir(parents=True)
    (final / "model").symlink_to(get_model_dir(place))
    try:
        article = write_article(tmp_path / "out", topic="a cat", images=0)
    finally:
        (final / "model").unlink()
    assert article["model"]["phase"] == "preference"


def test_a_model_writes_the_same_by_folder_and_by_mlflow_address(place, tmp_path):
    client = mlflow.MlflowClient(tracking.get_tracking_uri())
    experiment = client.get_experiment_by_name(mlflow_store.EXPERIMENT_NAME).experiment_id
    (model,) = client.search_logged_models([experiment], max_results=1)
    expected = write_article(tmp_path / "a", topic="a cat", images=0)["chunks"]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name, content in article_corpus.read_files(get_model_dir(place)).items():
        (moved / name).parent.mkdir(exist_ok=True)
        (moved / name).write_bytes(content)
    addresses = [
        f"models:/{model.model_id}",
        f"runs:/{model.source_run_id}/{model.name}",
        str(moved),
    ]
    for number, address in enumerate(addresses):
        article = write_article(tmp_path / f"b{number}", topic="a cat", images=0, model=address)
        assert article["chunks"] == expected
        assert article["model"]["uri"] == (address if number < 2 else "elsewhere")
    frame = pd.DataFrame({"topic": ["a cat", None], "image": [None, encode_png(make_photo(1))]})
    served = mlflow.pyfunc.load_model(addresses[0])
    texts = served.predict(frame)
    assert texts[0] == expected[0]["text"] and len(texts) == 2
    assert served.predict(frame[:0]) == []
    with pytest.raises(InputError, match="row 1 has neither topic nor image"):
        served.predict(pd.DataFrame({"topic": ["a cat", " "]}))


@pytest.mark.parametrize("topic", HOSTILE)
def test_topics_are_escaped_in_html_and_markdown(place, tmp_path, topic):
    article = write_article(tmp_path / "out", topic=topic + "\u202e\u200b\ufeff\0", images=0)
    assert not set(article["title"]) & set("\u202e\u200b\ufeff\0")
    page = PageParser((tmp_path / "out/article.html").read_text())
    assert {tag for tag, _ in page.tags} <= PAGE
    allowed = {"lang", "charset", "http-equiv", "content", "name"}
    assert {name for _, attributes in page.tags for name in attributes} <= allowed
    assert page.words.count(article["title"]) == 2  # in <title> and in <h1>
    (heading,) = [
        token
        for token in MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse((tmp_path / "out/article.md").read_text())
        if token.type == "inline" and token.map[0] == 0
    ]
    assert {child.type for child in heading.children} <= {"text", "text_special"}
    assert "".join(child.content for child in heading.children) == article["title"]


@pytest.mark.parametrize(
    "text", ["- a", "1. a", "+ a", "=== a", "---", "    a", "> a", "# a", "`a`"]
)
def test_texts_are_escaped_at_the_start_of_a_markdown_line(text):
    shown = MarkdownIt("commonmark").parse(article_export.escape_markdown(text.strip()))
    assert [token.type for token in shown] == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(child.content for child in shown[1].children) == text.strip()


def test_the_page_allows_only_its_own_style_and_images(place, tmp_path, image_file):
    from base64 import b64encode
    from hashlib import sha256

    write_article(tmp_path / "out", topic='a "quoted" cat', image=[image_file])
    text = (tmp_path / "out/article.html").read_text()
    page = PageParser(text)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    style = text.split("<style>")[1].split("</style>")[0]
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'sha256-"
        f"{b64encode(sha256(style.encode()).digest()).decode()}'; base-uri 'none'; "
        "form-action 'none'"
    )
    (shown,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert shown["src"].startswith("data:image/png;base64,")
    assert shown["alt"] == 'Image 1: a "quoted" cat'
    assert "Provided image, harbour.png" in page.words


def test_a_large_photo_is_downscaled_and_loses_its_metadata(place, tmp_path):
    side = load_config(write.WriteCommandConfig, "cli_write").max_image_size
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "at home", 6  # ImageDescription; Orientation: a quarter turn
    path = tmp_path / "photo.jpg"
    make_photo(1, 2 * side, side).save(path, exif=exif, comment=b"at home")
    article = write_article(tmp_path / "out", image=[path])
    shown = tmp_path / "out" / article["chunks"][0]["picture"]
    assert Image.open(shown).size == (side // 2, side)
    assert not Image.open(shown).getexif() and b"at home" not in shown.read_bytes()


def write_invalid_files(folder: Path) -> None:
    """Invalid image files, and a valid one."""
    (folder / "text.png").write_text("no picture")
    with (folder / "huge.bmp").open("wb") as file:
        file.truncate(10**12)  # sparse
    Image.new("1", (20000, 20000)).save(folder / "wide.png")
    (folder / "fine.png").write_bytes(encode_png(make_photo(0)))
    (folder / "empty").mkdir()


INVALID = {  # part of the message -> options; the files are those of write_invalid_files
    "unreadable": {"image": ["text.png"]},
    "larger than max_pixels": {"image": ["wide.png"]},
    "ingest.max_pixels": {"image": ["huge.bmp"]},
    "is a folder": {"image": ["empty"]},
    "does not exist": {"image": ["none.png"]},
    "nothing to write about": {"topic": " \0\u200b\u202e\t"},
    "cli_write.max_characters": {"topic": "a" * 100_000},
    "no run": {"topic": "a", "run": "nobody"},
    "-1 images": {"topic": "a", "images": -1},
    "1000000 images": {"topic": "a", "images": 10**6},
    "raise it": {"image": ["fine.png", "fine.png"], "images": 1},
    "needs a --topic": {"image": ["fine.png"], "images": 2},
    "is 'oracle'": {"topic": "a", "backend": "oracle"},
    "is 'diffusers'": {"topic": "a", "images": 0, "backend": "diffusers"},
    "--seed": {"topic": "a", "seed": -1},
    "no trained model": {"topic": "a", "model": "nowhere"},
    "models:/nobody/1": {"topic": "a", "model": "models:/nobody/1"},
    "runs:/0/model": {"topic": "a", "model": "runs:/0/model"},
    "models:": {"topic": "a", "model": "models:"},
}


@pytest.mark.parametrize("message", INVALID)
def test_invalid_input_is_one_sentence_and_writes_nothing(place, tmp_path, message):
    write_invalid_files(tmp_path)
    files = [tmp_path / name for name in INVALID[message].get("image", [])]
    with pytest.raises(InputError) as error:
        write_article(tmp_path / "out", **INVALID[message] | {"image": files})
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_untrained_run_says_what_to_run(place, tmp_path, monkeypatch):
    monkeypatch.setitem(model_bundle.MODEL_DIRS, "generators", {"sft": "data/none"})
    with pytest.raises(InputError, match="polymuse run train_preference@flexmuse"):
        write_article(tmp_path / "out", topic="a")


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "encoder/encoder.json"])
def test_a_broken_model_folder_is_one_sentence(place, tmp_path, broken):
    for name, content in article_corpus.read_files(get_model_dir(place)).items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content if name != broken else content[:9])
    with pytest.raises(InputError) as error:
        write_article(tmp_path / "out", topic="a", images=0, model=str(tmp_path / "model"))
    assert "\n" not in str(error.value)


def test_the_missing_keys_of_a_config_of_another_version_are_named(place, tmp_path):
    for name, content in article_corpus.read_files(get_model_dir(place)).items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content.replace(b'"d_model"', b'"width"'))
    with pytest.raises(InputError) as error:
        ArticleGenerator(tmp_path / "model", "models:/old/1")
    assert str(error.value) == (
        "models:/old/1 cannot be loaded (config.json: missing d_model, unknown width): "
        "train it again"
    )


def test_an_article_is_replaced_and_other_files_are_kept(place, tmp_path):
    out = tmp_path / "out"
    write_article(out, topic="one", images=1)
    assert write_article(out, topic="two", images=0)["title"] == "two"
    assert not (out / "pictures").exists()
    (out / "notes.txt").write_text("mine")
    before = article_corpus.read_files(out)
    with pytest.raises(InputError, match="would overwrite"):
        write_article(out, topic="three", images=0)
    assert article_corpus.read_files(out) == before
    for target in (out / "notes.txt", out / "notes.txt/a/b"):
        with pytest.raises(InputError, match=r"notes.txt is a file"):
            write.check_target(target)


@pytest.mark.slow
def test_a_backend_folder_is_relative_to_the_current_folder(place, image_file):
    inner = place / "data"
    tiny_diffusion.save_pipeline(inner / "painter")
    options = ["--topic", "a cat", "--images", "1", "--backend", "diffusers:painter"]
    done = polymuse(inner, "write", *options, "-o", "drawn")
    assert done.returncode == 0, done.stderr
    article = json.loads((inner / "drawn/article.json").read_text())
    assert article["chunks"][0]["provenance"] == "diffusers:painter"
    assert str(place) not in (inner / "drawn/article.json").read_text()


@pytest.mark.slow
def test_the_command_works_from_any_folder_and_prints_the_files(place, image_file):
    inner = place / "data"
    image_file.rename(inner / "mine.png")
    done = polymuse(inner, "write", "--image", "mine.png", "-o", "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Writing 1 text with flexmuse"
    assert lines[1:] == [str(inner / "out" / name) for name in article_export.FILES]
    assert done.stderr == ""
    wrong = polymuse(inner, "write", "--topic", "", "-o", "other")
    assert (wrong.returncode, wrong.stdout) == (1, "") and not (inner / "other").exists()
    assert wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
