"""Mistakes in params.yaml are one sentence with key and fix, before a stage runs."""

from copy import deepcopy
from functools import reduce
from pathlib import Path

import pytest
import yaml

from pipelines import validate_params
from pipelines.cli import preset
from stages.shared.core.config import params_files, read_params
from stages.shared.runtime.stage import InputError

ROOT = Path.cwd()
SHIPPED = {str(file): file.read_text() for file in params_files()}
SWEEPS = yaml.safe_load(Path("sweeps.yaml").read_text())


@pytest.fixture
def params(tmp_path, monkeypatch) -> dict:
    """The shipped parameters, with a temporary current folder that has the corpora."""
    values = read_params()
    monkeypatch.chdir(tmp_path)
    for corpus in values["corpora"].values():
        Path(corpus["path"]).mkdir(parents=True)
    return values


def error_of(params: dict) -> str:
    """The message for these parameters."""
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError) as error:
        validate_params.main()
    return str(error.value)


def test_the_shipped_params_are_valid(params):
    Path("params.yaml").write_text(yaml.safe_dump(params))
    validate_params.main()


@pytest.mark.parametrize("overlay", sorted(Path("presets").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_params_are_valid_with_every_preset(params, overlay):
    files = preset.merge_overlay(SHIPPED, (ROOT / overlay).read_text(), overlay.name)
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    validate_params.main()


def test_the_corpus_of_the_tiny_encoder_exists(params):
    del params["corpora"]["captions"]
    params["chunk"]["corpora"].remove("captions")
    message = "align.corpus is 'captions', none of the corpora of kind articles or captions"
    assert error_of(params) == f"params.yaml: {message}: choose one of articles"


def test_tweets_alone_cannot_train_the_image_encoder(params):
    params["corpora"] = {"tweets": params["corpora"]["tweets"]}
    params["chunk"]["corpora"] = []
    params["classifiers"] = {"muse_entities": params["classifiers"]["muse_entities"]}
    params["generators"] = {}
    message = error_of(params)
    assert "but no corpus is of kind articles or captions: put the row of captions back" in message


@pytest.mark.parametrize(
    "encoder, corpora, message",
    [
        ("tiny", ["captions"], "but align.encoder is 'tiny': set []"),
        ("efficientnet-lite0", [], "is 'efficientnet-lite0': name the corpora whose"),
        ("efficientnet-lite0", ["photos"], "align.corpora is 'photos', none of the corpora"),
    ],
)
def test_only_the_locked_towers_have_corpora_of_pairs(params, encoder, corpora, message):
    params["align"] |= {"encoder": encoder, "corpora": corpora}
    assert message in error_of(params)


@pytest.mark.parametrize("key", ["align", "chunk"])
def test_tweets_cannot_be_chunked(params, key):
    params["align"]["corpus"] = "tweets"
    params["chunk"]["corpora"] = ["captions", "tweets"] if key == "chunk" else ["captions"]
    message = f"{key}.corpus is 'tweets'" if key == "align" else "chunk.corpora is 'tweets'"
    choices = "none of the corpora of kind articles or captions: choose one of articles | captions"
    assert error_of(params) == f"params.yaml: {message}, {choices}"


def test_the_corpus_of_the_encoder_must_be_chunked(params):
    params["chunk"]["corpora"] = ["articles"]
    message = "align.corpus is 'captions', none of the chunk.corpora: choose one of articles"
    assert error_of(params) == f"params.yaml: {message}"


@pytest.mark.parametrize("corpus", ["captions", "recipes"])
def test_the_corpus_of_flexmuse_must_have_articles(params, corpus):
    params["generators"]["flexmuse"]["corpus"] = corpus
    message = f"is '{corpus}', none of the corpora of kind articles: choose one of articles"
    assert error_of(params) == f"params.yaml: generators.flexmuse.corpus {message}"


def test_a_chunked_corpus_must_exist(params):
    params["chunk"]["corpora"].append("memes")
    assert error_of(params).startswith("params.yaml: chunk.corpora is 'memes', none of the corpora")


@pytest.mark.parametrize("corpus", ["captions", "recipes"])
def test_only_chunked_articles_have_one_text_about_all_images(params, corpus):
    params["chunk"]["one_text_corpora"] = ["articles", corpus]
    message = f"chunk.one_text_corpora is '{corpus}', none of the corpora of kind articles"
    assert error_of(params).startswith(f"params.yaml: {message}")


def test_a_run_without_any_usable_corpus_is_reported(params):
    del params["corpora"]["articles"]
    params["chunk"]["corpora"].remove("articles")
    assert error_of(params).endswith("none of the corpora of kind articles: there is none: add one")


def test_the_model_of_a_generator_must_be_a_generator(params):
    params["generators"]["flexmuse"]["model"] = "muse"
    assert error_of(params).startswith(
        "params.yaml: generators.flexmuse.model is 'muse', none of the models"
    )


def test_the_format_of_a_corpus_must_exist(params):
    params["corpora"]["articles"]["format"] = "phrases"
    formats = " | ".join(sorted(validate_params.FORMATS))
    assert {"memotion", "synthetic", "vist"} <= set(validate_params.FORMATS)
    message = f"is 'phrases', none of the formats: choose one of {formats}"
    assert error_of(params) == f"params.yaml: corpora.articles.format {message}"


def test_the_kind_of_a_corpus_must_exist(params):
    params["corpora"]["captions"]["kind"] = "caption"
    choices = "choose one of articles | captions | tweets | posts | memes"
    assert error_of(params).endswith(f"kind is 'caption': {choices}")


def test_the_format_of_a_corpus_must_support_its_kind(params):
    params["corpora"]["captions"]["format"] = "markdown"
    message = "kind is 'captions', none of the kinds of format markdown: choose one of articles"
    assert error_of(params) == f"params.yaml: corpora.captions.{message}"


@pytest.mark.parametrize("format", ["synthetic", "markdown"])
def test_the_path_of_a_corpus_must_exist(params, format):
    params["corpora"]["articles"] |= {"format": format, "path": "elsewhere"}
    message = error_of(params)
    assert message.startswith(
        "params.yaml: corpora.articles.path is 'elsewhere', which does not exist"
    )


def test_there_is_at_least_one_corpus_and_one_run(params):
    params["generators"] = {}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    validate_params.main()  # classifiers alone are enough
    params["classifiers"] = {}
    assert error_of(params).startswith("params.yaml: generators and classifiers have no row")
    params["corpora"] = {}
    assert error_of(params).startswith("params.yaml: corpora have no row")


def test_an_unknown_part_of_a_model_is_named(params):
    params["models"]["flexmuse"]["netwrok"] = {}
    assert error_of(params) == "params.yaml: models.flexmuse: unknown netwrok"


@pytest.mark.parametrize("section", ["models", "formats"])
def test_an_unknown_model_or_format_is_named(params, section):
    params[section]["memes"] = {}
    assert error_of(params) == f"params.yaml: {section}: unknown memes"


def test_a_missing_format_is_named(params):
    del params["formats"]["jsonl"]
    assert error_of(params) == "params.yaml: formats: missing jsonl"


def test_a_format_that_no_corpus_uses_is_validated_too(params):
    params["formats"]["markdown"]["encodings"] = "utf-8"
    assert error_of(params).startswith("params.yaml: formats.markdown.encodings is 'utf-8'")


def test_an_unknown_section_is_named(params):
    params["trainnig"] = {}
    assert error_of(params) == "params.yaml: unknown section trainnig: remove it"


@pytest.mark.slow
@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_rows_of_a_sweep_change_existing_keys_and_are_valid(params, sweep):
    stage, run = SWEEPS[sweep]["target"].split("@")
    section_name = {"evaluate": "generators", "evaluate_classifier": "classifiers"}[stage]
    assert run in params[section_name]
    previous = []
    for changes in SWEEPS[sweep]["rows"].values():
        changed = deepcopy(params)
        for path, value in changes.items():
            *parents, key = path.rpartition(":")[2].split(".")  # config/FILE: comes first
            section = reduce(dict.__getitem__, parents, changed)
            assert section[key] != value, f"{path} is that by default"
            section[key] = value
        assert changed not in previous
        previous.append(changed)
        Path("params.yaml").write_text(yaml.safe_dump(changed))
        validate_params.main()


@pytest.mark.parametrize("key", ["records", "images"])
def test_a_classifier_uses_the_embedded_records_and_images(params, key):
    params["classifiers"]["mm_orient"][key] = "01_ingest"
    assert error_of(params) == (
        f"params.yaml: classifiers.mm_orient.{key} is '01_ingest', but '04_augment' is "
        f"embedded (corpora.memes.{key}): make them equal"
    )


def test_a_corpus_must_name_the_folders_of_its_kind(params):
    params["corpora"]["memes"]["records"] = "02_clean"
    params["classifiers"]["mm_orient"]["records"] = "02_clean"
    message = error_of(params)
    assert message.startswith("params.yaml: corpora.memes has records '02_clean' and images")
    assert message.endswith("a corpus of memes needs '04_augment' and '04_augment': set these")
    params["corpora"]["memes"]["records"] = "04_augment"
    params["corpora"]["posts"]["images"] = "04_augment"
    assert "but a corpus of posts needs '02_clean' and '01_ingest'" in error_of(params)


@pytest.mark.parametrize("section", ["inpaint", "augment"])
def test_all_corpora_of_memes_and_no_others_are_inpainted_and_augmented(params, section):
    params[section]["corpora"] = ["memes", "posts"]
    message = (
        f"{section}.corpora is 'posts', none of the corpora of kind memes: choose one of memes"
    )
    assert error_of(params) == f"params.yaml: {message}"
    params[section]["corpora"] = []
    assert error_of(params) == f"params.yaml: {section}.corpora lacks memes, of kind memes: add it"


def test_without_memes_their_stages_must_have_no_corpus(params):
    del params["corpora"]["memes"], params["classifiers"]["mm_orient"]
    message = "names memes, but no corpus is of kind memes: give [], or add its row to corpora"
    assert error_of(params) == f"params.yaml: inpaint.corpora {message}"
    params["inpaint"]["corpora"] = params["augment"]["corpora"] = []
    Path("params.yaml").write_text(yaml.safe_dump(params))
    validate_params.main()


@pytest.mark.parametrize("model", ["orient", "flexmuse"])
def test_the_model_of_a_classifier_must_be_a_classifier(params, model):
    params["classifiers"]["mm_orient"]["model"] = model
    message = f"classifiers.mm_orient.model is '{model}', none of the models of classifiers"
    assert error_of(params) == f"params.yaml: {message}: choose one of mm_orient | muse"


def test_a_classifier_of_memes_cannot_use_posts(params):
    params["classifiers"]["mm_orient"]["corpus"] = "posts"
    message = "is 'posts', none of the corpora of kind memes: choose one of memes"
    assert error_of(params) == f"params.yaml: classifiers.mm_orient.corpus {message}"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("text.max_subwords", 0, "text.max_subwords is 0: give 1 or more"),
        ("image.grid_size", 0, "image.grid_size is 0: give 1 or more"),
        ("image.image_size", 32, "image.image_size is 32: give 33 or more"),
        ("eval_batch_size", 0, "classifiers.mm_orient.eval_batch_size is 0: give 1 or more"),
        (
            "image.encoder",
            "vgg",
            "image.encoder is 'vgg': choose one of patches | efficientnet-lite0 |",
        ),
        ("task_features.max_subwords", 0, "task_features.max_subwords is 0: give 1 or more"),
    ],
)
def test_values_of_a_classifier_of_memes_have_bounds(params, path, value, message):
    *parents, key = path.split(".")
    reduce(dict.__getitem__, parents, params["classifiers"]["mm_orient"])[key] = value
    assert message in error_of(params)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("inpaint.num_shards", 0, "inpaint.num_shards is 0: give 1 or more"),
        ("inpaint.batch_size", 0, "inpaint.batch_size is 0: give 1 or more"),
        ("inpaint.detection.input_size", 8, "inpaint.detection.input_size is 8: give 32 or more"),
        ("inpaint.detection.max_upscale", 0, "max_upscale is 0: give more than 0"),
        (
            "inpaint.detection.min_recognition_score",
            2,
            "min_recognition_score is 2: give 1 or less",
        ),
        ("inpaint.mask.border_width", -1, "inpaint.mask.border_width is -1: give 0 or more"),
        ("inpaint.inpainting.context_pixels", 0, "context_pixels is 0: give 1 or more"),
        (
            "inpaint.recognition.min_score",
            -1,
            "inpaint.recognition.min_score is -1: give 0 or more",
        ),
        ("parallel.workers", -1, "parallel.workers is -1: give 0 or more"),
        ("augment.num_shards", 257, "augment.num_shards is 257: give 256 or less"),
        (
            "augment.filters.min_semantic_similarity",
            2,
            "min_semantic_similarity is 2: give 1 or less",
        ),
        ("augment.filters.max_tokens", 1, "augment.filters.max_tokens is 1: give 2 or more"),
        ("augment.openai.concurrency", 0, "augment.openai.concurrency is 0: give 1 or more"),
        ("augment.openai.batch.max_requests", 0, "batch.max_requests is 0: give 1"),
        (
            "augment.image.policies.mild.flip_prob",
            2,
            "policies.mild.flip_prob is 2: give 1 or less",
        ),
        ("augment.image.policies.mild.contrast_low", 9, "give contrast_high (1.2) or less"),
        (
            "clean.memes.remove_domains",
            ["com", "."],
            "clean.memes: remove_domains names an empty ending",
        ),
    ],
)
def test_values_of_the_stages_for_memes_have_bounds(params, path, value, message):
    *parents, key = path.split(".")
    reduce(dict.__getitem__, parents, params)[key] = value
    error = error_of(params)
    assert error.startswith(f"params.yaml: {path.split('.')[0]}") and message in error


@pytest.mark.parametrize(
    ("path", "stand_in", "others"),
    [
        (("augment",), "rules", "none or openai:MODEL"),
        (("inpaint", "inpainting"), "telea", "none or lama"),
    ],
)
def test_published_scores_are_not_compared_with_those_of_a_stand_in(params, path, stand_in, others):
    params["report"]["published"]["mm_orient"] = "memotion"
    params["augment"]["backend"], params["inpaint"]["inpainting"]["backend"] = "none", "lama"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    validate_params.main()
    reduce(lambda section, key: section[key], path, params)["backend"] = stand_in
    assert error_of(params) == (
        f"params.yaml: {'.'.join(path)}.backend is {stand_in}, which is not the method of the "
        "paper whose scores report.published compares with mm_orient: set it to "
        f"{others}, or report.published.mm_orient to null"
    )
