"""`polymuse write` and served models with TIPPo on whole articles and on captions."""

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
from stages.shared.runtime import mlflow_store, tracking
from stages.shared.runtime.stage import InputError
from tests.pipelines.cli.test_cli_write import encode_png, write_article, write_stage_outputs
from tests.support import article_corpus, color_caption_corpus, tiny_flexmuse
from tests.support.tiny_clip import make_photo, save_clip, save_published_chinese_clip

ARTICLE = tiny_flexmuse.make_chunk_rows()[:3]  # of the train split; image k is photo k
CAPTIONS = {6: "a grey fox", 7: "deep snow"}  # photo -> caption


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with one run that has memorized an article, and one with two captions."""
    place = tmp_path_factory.mktemp("write_tippo") / "project"
    place.mkdir()
    write_params(place)
    (place / "dvc.yaml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("POLYMUSE_HOME", str(place / "home"))
        save_clip(place / "source")
        align = place / "data/06_align"
        align.mkdir(parents=True)
        huggingface_encoder.fetch(str(place / "source"), ["en"], align)
        write_stage_outputs(place / "data", align)
        write_captions(place / "data", align)
        for name in ("tippo", "tippo_captions"):
            run = load_config(generators.GeneratorRun, "generators", name)
            stages = ("05_chunk", "07_embed")
            folders = [place / "data" / stage / run.corpus for stage in stages]
            out = place / "data/09_train_sft" / name
            train_sft.cli(name, *folders, encoder=align, output=out)
    return place


def write_params(place: Path) -> None:
    """Write params.yaml with two runs of TIPPo and no others."""
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


def write_captions(data: Path, align: Path) -> None:
    images = {
        number: image_store.validate_image(encode_png(make_photo(number)), 10**6)
        for number in CAPTIONS
    }
    image_store.write_images(data / "01_ingest/captions/images", list(images.values()), 2)
    rows = [
        {
            "record": f"c{number}",
            "position": 0,
            "split": "train",
            "language": "en",
            "title": "",
            "image": images[number]["sha256"],
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
    embed.main(params, "captions", "synthetic", *folders, data / "07_embed/captions")


@pytest.fixture
def place(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("POLYMUSE_HOME", str(trained / "home"))
    return trained


@pytest.fixture
def images(tmp_path):
    """The files of photos 0 to 7."""
    files = [tmp_path / f"{number}.png" for number in range(8)]
    for number, file in enumerate(files):
        file.write_bytes(encode_png(make_photo(number)))
    return files


def model(place: Path, run: str) -> Path:
    return place / "data/09_train_sft" / run / "model"


@pytest.mark.slow
def test_the_images_of_a_command_are_one_article_with_a_text_each(place, tmp_path, images):
    article = write_article(
        tmp_path / "out", run="tippo", topic=ARTICLE[0]["title"], image=images[:3]
    )
    assert [chunk["text"] for chunk in article["chunks"]] == [row["text"] for row in ARTICLE]
    assert article["model"] == {"run": "tippo", "phase": "sft", "uri": None}
    for chunk in article["chunks"]:
        assert -1 <= chunk["similarity"] <= 1
        assert chunk["topic_passed"] is None  # the paper has no gate


def test_articles_with_many_images_are_written_in_parts(place, tmp_path, images):
    article = write_article(tmp_path / "out", run="tippo", topic="a cat", image=images[:6])
    assert [chunk["source"] for chunk in article["chunks"]] == [file.name for file in images[:6]]
    article_generator = ArticleGenerator(model(place, "tippo"), "model")
    items = [GenerationInput("a cat", file.read_bytes()) for file in images[:6]]
    generation = load_config(generators.GeneratorRun, "generators", "tippo").generation
    parts = article_generator.generate(
        [items[:3], items[3:]], generation
    )  # no article of training has more
    whole = [" ".join(text.text.split()) for part in parts for text in part]
    assert [" ".join(chunk["text"].split()) for chunk in article["chunks"]] == whole


def test_a_model_of_one_text_writes_it_once_and_shows_all_images(
    place, tmp_path, images, monkeypatch
):
    folder = shutil.copytree(model(place, "tippo"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"one_text": True}))
    article_generator = ArticleGenerator(folder, "model")
    items = [GenerationInput("a cat", file.read_bytes()) for file in images[:3]]
    generation = load_config(generators.GeneratorRun, "generators", "tippo").generation
    ((text,),) = article_generator.generate([items], generation)
    monkeypatch.setattr(ArticleGenerator, "writes_one_text", True)
    article = write_article(tmp_path / "out", run="tippo", topic="a cat", image=images[:3])
    assert [chunk["source"] for chunk in article["chunks"]] == [file.name for file in images[:3]]
    texts = [" ".join(chunk["text"].split()) for chunk in article["chunks"]]
    assert texts == [" ".join(text.text.split()), "", ""]


def test_a_topic_or_an_image_alone_is_enough(place, tmp_path, images):
    article = write_article(tmp_path / "a", run="tippo", topic=ARTICLE[0]["title"], images=0)
    (chunk,) = article["chunks"]
    assert chunk["picture"] is None and chunk["similarity"] is None
    (chunk,) = write_article(tmp_path / "b", run="tippo", image=images[:1])["chunks"]
    assert chunk["similarity"] is None and chunk["topic_passed"] is None
    chunks = write_article(tmp_path / "c", run="tippo", topic="a red cat", images=2)["chunks"]
    assert [chunk["provenance"] for chunk in chunks] == ["retrieve", "retrieve"]


def test_texts_do_not_depend_on_other_articles_of_the_batch(place, images):
    article_generator = ArticleGenerator(model(place, "tippo"), "model")
    title = ARTICLE[0]["title"]
    first = [GenerationInput(title, file.read_bytes()) for file in images[:3]]
    second = [GenerationInput("snow", images[7].read_bytes())]
    generation = load_config(generators.GeneratorRun, "generators", "tippo").generation
    together = article_generator.generate([first, second], generation)
    assert together == [
        article_generator.generate([article], generation)[0] for article in (first, second)
    ]


def test_a_caption_needs_an_image_and_no_topic(place, tmp_path, images, capsys):
    options = {"run": "tippo_captions", "image": images[6:8]}
    article = write_article(tmp_path / "a", **options)
    assert [chunk["text"] for chunk in article["chunks"]] == list(CAPTIONS.values())
    assert article["title"] is None and "topic" not in capsys.readouterr().out
    titled = write_article(tmp_path / "b", topic="a red kite", **options)
    assert "does not read the topic" in capsys.readouterr().out
    texts = [[chunk["text"] for chunk in one["chunks"]] for one in (article, titled)]
    assert titled["title"] == "a red kite" and texts[0] == texts[1]


def test_a_caption_model_uses_a_topic_only_to_find_images(place, tmp_path):
    article = write_article(tmp_path / "a", run="tippo_captions", topic="a cat", images=2)
    assert [chunk["provenance"] for chunk in article["chunks"]] == ["retrieve", "retrieve"]
    with pytest.raises(InputError, match="--images is 0, and this model was trained on captions"):
        write_article(tmp_path / "b", run="tippo_captions", topic="a cat", images=0)
    assert not (tmp_path / "b").exists()


def test_a_served_model_writes_one_article_for_each_row(place, images):
    client = mlflow.MlflowClient(tracking.get_tracking_uri())
    experiment = client.get_experiment_by_name(mlflow_store.EXPERIMENT_NAME).experiment_id
    logged = client.search_logged_models([experiment], order_by=[{"field_name": "creation_time"}])
    # The models of this file are the latest: all files of a process share the tracking store.
    tippo, captions = [
        mlflow.pyfunc.load_model(f"models:/{logged_model.model_id}") for logged_model in logged[-2:]
    ]
    contents = [file.read_bytes() for file in images]
    frame = pd.DataFrame({"topic": ["title 1", None], "image": [contents[3], contents[0]]})
    assert tippo.predict(frame)[0] == tiny_flexmuse.make_chunk_rows()[3]["text"]
    (caption,) = captions.predict(pd.DataFrame({"topic": ["a"], "image": [contents[6]]}))
    assert caption == CAPTIONS[6]
    with pytest.raises(InputError, match="row 0 has no image, and this model was trained on"):
        captions.predict(pd.DataFrame({"topic": ["a cat"]}))


def test_config_json_has_topics_and_images_of_the_training_data(place):
    configs = {}
    for name in ("tippo", "tippo_captions"):
        config = json.loads((model(place, name) / "config.json").read_text())
        configs[name] = config["topics"], config["pictures"]
    assert configs == {"tippo": (True, 3), "tippo_captions": (False, 1)}


def test_a_folder_of_an_old_version_names_the_missing_keys(place, tmp_path):
    shutil.copytree(model(place, "tippo"), tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["pictures"], config["topics"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        ArticleGenerator(tmp_path / "old", "models:/old/1")
    assert str(error.value) == (
        "models:/old/1 cannot be loaded (config.json: missing pictures, topics, written "
        "by an older version: run `dvc repro`): train it again"
    )


def test_the_encoder_and_decoder_of_the_paper_write_chinese(tmp_path, monkeypatch):
    """With tiny models in the file formats of the real ones."""
    for name in ("project", "clip", "align", "t5"):
        (tmp_path / name).mkdir()
    write_params(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    save_published_chinese_clip(tmp_path / "clip")
    huggingface_encoder.fetch(str(tmp_path / "clip"), ["zh"], tmp_path / "align")
    tiny_flexmuse.save_published_t5(tmp_path / "t5")
    config = train_sft.load_sft_config("tippo")
    run = replace(config.run, decoder=str(tmp_path / "t5"))
    rows = [
        row | {"text": text}
        for row, text in zip(ARTICLE, tiny_flexmuse.CHINESE_TEXTS, strict=False)
    ]
    encoder = encoders.load_encoder(tmp_path / "align")
    pooled, patches = encoder.encode_images([make_photo(number) for number in range(8)])
    titles, tokens, mask = encoder.encode_texts([ARTICLE[0]["title"]])
    features = replace(
        tiny_flexmuse.build_features(),
        **{"pooled": pooled.half().numpy(), "patches": patches.half().numpy()},
        **{"text_index": {ARTICLE[0]["title"]: 0}, "text_pooled": titles.half().numpy()},
        **{"tokens": tokens.half().numpy(), "token_mask": mask.numpy()},
    )
    generator = generators.create_generator(run, config.network, config.decoders, rows, features)
    generators.save_generator(generator, tmp_path / "model", tmp_path / "align")
    article_generator = ArticleGenerator(tmp_path / "model", "model")
    items = article_generator.generator.build_dataset(rows, features)
    token_ids = torch.tensor([[0, *items.labels[0]]])
    (texts,) = article_generator.generator.decode_texts(token_ids, items.batch([0]))
    # The full-width comma, which the T5 does not have, is restored.
    assert texts == tiny_flexmuse.CHINESE_TEXTS[:3]
    article = [
        GenerationInput(ARTICLE[0]["title"], encode_png(make_photo(number))) for number in range(3)
    ]
    (from_images,) = article_generator.generate([article], run.generation)
    from_features = article_generator.generator.generate(items.batch([0]), run.generation).texts[0]
    assert [text.text for text in from_images] == from_features
