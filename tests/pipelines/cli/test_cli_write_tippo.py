"""`polymuse write` and the served model with a writer of whole articles, and one of captions."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
import yaml

from pipelines.inference.generator import ArticleGenerator, GenerationInput
from stages import embed, train_sft
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.encoders import base as encoders
from stages.shared.encoders import extract
from stages.shared.encoders import huggingface as huggingface_encoder
from stages.shared.generation import generator as generators
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import InputError
from tests.pipelines.cli.test_cli_write import fill, png, written
from tests.support import article_corpus, color_caption_corpus, tiny_flexmuse
from tests.support.tiny_clip import make_photo, save_clip, save_published_chinese_clip

ARTICLE = tiny_flexmuse.make_chunk_rows()[
    :3
]  # of the train split, three pictures; number k shows photo(k)
CAPTIONS = {6: "a grey fox", 7: "deep snow"}  # photo -> text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project whose two runs have learned an article, and two captions, by heart."""
    place = tmp_path_factory.mktemp("write_tippo") / "project"
    place.mkdir()
    settings(place)
    (place / "dvc.yaml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("POLYMUSE_HOME", str(place / "home"))
        save_clip(place / "source")
        align = place / "data/06_align"
        align.mkdir(parents=True)
        huggingface_encoder.fetch(str(place / "source"), ["en"], align)
        fill(place / "data", align)
        fill_captions(place / "data", align)
        for name in ("tippo", "tippo_captions"):
            run = load_config(generators.GeneratorRun, "generators", name)
            stages = ("05_chunk", "07_embed")
            folders = [place / "data" / stage / run.corpus for stage in stages]
            train_sft.main(name, run, [*folders, align], place / "data/09_train_sft" / name)
    return place


def settings(place: Path) -> None:
    """params.yaml of a project with two runs of TIPPo and no other."""
    article_corpus.create_project(place)
    params = yaml.safe_load((place / "params.yaml").read_text())
    params["decoders"]["tiny"]["dropout"] = 0.0
    params["models"]["tippo"]["network"] |= {"d_model": 32, "max_topic_tokens": 8, "max_images": 4}
    sft = {"max_steps": 150, "batch_size": 2, "learning_rate": 0.01, "eval_steps": 150}
    run = params["generators"]["flexmuse"] | {"model": "tippo", "max_tokens": 60}
    run["sft"] |= sft
    of = {"tippo": "articles", "tippo_captions": "captions"}
    params["generators"] = {name: run | {"corpus": key} for name, key in of.items()}
    (place / "params.yaml").write_text(yaml.safe_dump(params))


def fill_captions(data: Path, align: Path) -> None:
    found = {
        number: image_store.validate_image(png(make_photo(number)), 10**6) for number in CAPTIONS
    }
    image_store.write_images(data / "01_ingest/captions/images", list(found.values()), 2)
    rows = [
        {
            "record": f"c{number}",
            "position": 0,
            "split": "train",
            "language": "en",
            "title": "",
            "image": found[number]["sha256"],
            "text": text,
            "references": [text],
        }
        for number, text in CAPTIONS.items()
    ]
    schemas.write_parquet(data / "05_chunk/captions/chunks.parquet", rows, schemas.CHUNKS)
    records = [color_caption_corpus.make_record(row, "captions") for row in rows]
    schemas.write_parquet(
        data / "02_clean/captions/records.parquet", records, schemas.CLEAN_RECORDS["captions"]
    )
    params = load_config(extract.EmbedConfig, "embed")
    folders = [data / "01_ingest/captions", data / "02_clean/captions", align]
    embed.main(params, "captions", *folders, data / "07_embed/captions")


@pytest.fixture
def place(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("POLYMUSE_HOME", str(trained / "home"))
    return trained


@pytest.fixture
def pictures(tmp_path):
    """The files of photos 0 to 7."""
    files = [tmp_path / f"{number}.png" for number in range(8)]
    for number, file in enumerate(files):
        file.write_bytes(png(make_photo(number)))
    return files


def model(place: Path, run: str) -> Path:
    return place / "data/09_train_sft" / run / "model"


def test_the_pictures_of_one_call_are_one_article_with_a_text_each(place, tmp_path, pictures):
    made = written(tmp_path / "out", run="tippo", topic=ARTICLE[0]["title"], image=pictures[:3])
    assert [chunk["text"] for chunk in made["chunks"]] == [row["text"] for row in ARTICLE]
    assert made["model"] == {"run": "tippo", "phase": "sft", "uri": None}
    for chunk in made["chunks"]:
        assert -1 <= chunk["similarity"] <= 1
        assert chunk["topic_passed"] is None  # the paper has no gate


def test_more_pictures_than_an_article_holds_are_written_in_parts(place, tmp_path, pictures):
    made = written(tmp_path / "out", run="tippo", topic="a cat", image=pictures[:6])
    assert [chunk["source"] for chunk in made["chunks"]] == [file.name for file in pictures[:6]]
    author = ArticleGenerator(model(place, "tippo"), "model")
    items = [GenerationInput("a cat", file.read_bytes()) for file in pictures[:6]]
    generation = load_config(generators.GeneratorRun, "generators", "tippo").generation
    parts = author.generate([items[:3], items[3:]], generation)  # no article of training has more
    whole = [" ".join(text.text.split()) for part in parts for text in part]
    assert [" ".join(chunk["text"].split()) for chunk in made["chunks"]] == whole


def test_a_topic_alone_and_a_picture_alone_are_enough(place, tmp_path, pictures):
    made = written(tmp_path / "a", run="tippo", topic=ARTICLE[0]["title"], images=0)
    (chunk,) = made["chunks"]
    assert chunk["picture"] is None and chunk["similarity"] is None
    (chunk,) = written(tmp_path / "b", run="tippo", image=pictures[:1])["chunks"]
    assert chunk["similarity"] is None and chunk["topic_passed"] is None
    found = written(tmp_path / "c", run="tippo", topic="a red cat", images=2)["chunks"]
    assert [chunk["provenance"] for chunk in found] == ["retrieve", "retrieve"]


def test_articles_of_one_batch_do_not_change_each_other(place, pictures):
    author = ArticleGenerator(model(place, "tippo"), "model")
    title = ARTICLE[0]["title"]
    first = [GenerationInput(title, file.read_bytes()) for file in pictures[:3]]
    second = [GenerationInput("snow", pictures[7].read_bytes())]
    generation = load_config(generators.GeneratorRun, "generators", "tippo").generation
    together = author.generate([first, second], generation)
    assert together == [author.generate([article], generation)[0] for article in (first, second)]


def test_a_caption_needs_a_picture_and_no_topic(place, tmp_path, pictures, capsys):
    given = {"run": "tippo_captions", "image": pictures[6:8]}
    made = written(tmp_path / "a", **given)
    assert [chunk["text"] for chunk in made["chunks"]] == list(CAPTIONS.values())
    assert made["title"] is None and "topic" not in capsys.readouterr().out
    titled = written(tmp_path / "b", topic="a red kite", **given)
    assert "does not read the topic" in capsys.readouterr().out
    texts = [[chunk["text"] for chunk in one["chunks"]] for one in (made, titled)]
    assert titled["title"] == "a red kite" and texts[0] == texts[1]


def test_a_topic_finds_pictures_for_a_model_of_captions_which_cannot_go_without(place, tmp_path):
    made = written(tmp_path / "a", run="tippo_captions", topic="a cat", images=2)
    assert [chunk["provenance"] for chunk in made["chunks"]] == ["retrieve", "retrieve"]
    with pytest.raises(InputError, match="--images is 0, and this model was trained on captions"):
        written(tmp_path / "b", run="tippo_captions", topic="a cat", images=0)
    assert not (tmp_path / "b").exists()


def test_a_served_model_takes_each_row_for_an_article_of_one_picture(place, pictures):
    client = mlflow.MlflowClient(tracking.get_tracking_uri())
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT_NAME).experiment_id
    logged = client.search_logged_models([experiment], order_by=[{"field_name": "creation_time"}])
    # Those of this file are the latest: files of one process share its tracking server.
    tippo, captions = [mlflow.pyfunc.load_model(f"models:/{one.model_id}") for one in logged[-2:]]
    contents = [file.read_bytes() for file in pictures]
    frame = pd.DataFrame({"topic": ["title 1", None], "image": [contents[3], contents[0]]})
    assert tippo.predict(frame)[0] == tiny_flexmuse.make_chunk_rows()[3]["text"]
    (caption,) = captions.predict(pd.DataFrame({"topic": ["a"], "image": [contents[6]]}))
    assert caption == CAPTIONS[6]
    with pytest.raises(InputError, match="row 0 has no image, and this model was trained on"):
        captions.predict(pd.DataFrame({"topic": ["a cat"]}))


def test_the_folder_says_what_its_model_was_trained_on(place):
    said = {}
    for name in ("tippo", "tippo_captions"):
        config = json.loads((model(place, name) / "config.json").read_text())
        said[name] = config["topics"], config["pictures"]
    assert said == {"tippo": (True, 3), "tippo_captions": (False, 1)}


def test_a_folder_of_an_older_version_says_what_it_lacks(place, tmp_path):
    shutil.copytree(model(place, "tippo"), tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["pictures"], config["topics"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as wrong:
        ArticleGenerator(tmp_path / "old", "models:/old/1")
    assert str(wrong.value) == (
        "models:/old/1 cannot be loaded (config.json: missing pictures, topics, older versions "
        "wrote none: run `dvc repro`): train it again"
    )


def test_the_encoder_and_the_decoder_of_the_paper_write_chinese_together(tmp_path, monkeypatch):
    """Tiny ones, in the files that the real ones consist of."""
    for name in ("project", "clip", "align", "t5"):
        (tmp_path / name).mkdir()
    settings(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    save_published_chinese_clip(tmp_path / "clip")
    huggingface_encoder.fetch(str(tmp_path / "clip"), ["zh"], tmp_path / "align")
    tiny_flexmuse.save_published_t5(tmp_path / "t5")
    run = replace(
        load_config(generators.GeneratorRun, "generators", "tippo"), decoder=str(tmp_path / "t5")
    )
    rows = [
        row | {"text": text}
        for row, text in zip(ARTICLE, tiny_flexmuse.CHINESE_TEXTS, strict=False)
    ]
    encoder = encoders.load_encoder(tmp_path / "align")
    pooled, patches = encoder.encode_images([make_photo(number) for number in range(8)])
    titles, tokens, mask = encoder.encode_texts([ARTICLE[0]["title"]])
    cached = replace(
        tiny_flexmuse.build_features(),
        **{"pooled": pooled.half().numpy(), "patches": patches.half().numpy()},
        **{"text_index": {ARTICLE[0]["title"]: 0}, "text_pooled": titles.half().numpy()},
        **{"tokens": tokens.half().numpy(), "token_mask": mask.numpy()},
    )
    writer = generators.create_generator(run, rows, cached)
    generators.save_generator(writer, tmp_path / "model", tmp_path / "align")
    author = ArticleGenerator(tmp_path / "model", "model")
    items = author.generator.build_dataset(rows, cached)
    spelled = torch.tensor([[0, *items.labels[0]]])
    (texts,) = author.generator.decode_texts(spelled, items.batch([0]))
    assert (
        texts == tiny_flexmuse.CHINESE_TEXTS[:3]
    )  # with the full-width comma that the T5 does not know
    article = [GenerationInput(ARTICLE[0]["title"], png(make_photo(number))) for number in range(3)]
    (written_about,) = author.generate([article], run.generation)
    cached_says = author.generator.generate(items.batch([0]), run.generation).texts[0]
    assert [text.text for text in written_about] == cached_says
