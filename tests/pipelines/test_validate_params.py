"""A slip in params.yaml is one sentence that names its key and the fix, before a stage runs."""

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
SUITES = yaml.safe_load(Path("sweeps.yaml").read_text())


@pytest.fixture
def params(tmp_path, monkeypatch) -> dict:
    """params.yaml as shipped, in a folder that is current and has its corpora."""
    values = read_params()
    monkeypatch.chdir(tmp_path)
    for corpus in values["corpora"].values():
        Path(corpus["path"]).mkdir(parents=True)
    return values


def fault(params: dict) -> str:
    """What is said about these params."""
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError) as error:
        validate_params.main()
    return str(error.value)


def test_the_params_as_shipped_pass(params):
    Path("params.yaml").write_text(yaml.safe_dump(params))
    validate_params.main()


@pytest.mark.parametrize("overlay", sorted(Path("presets").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_params_pass_under_every_preset(params, overlay):
    files = preset.merge_overlay(SHIPPED, (ROOT / overlay).read_text(), overlay.name)
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    validate_params.main()


def test_the_tiny_encoder_learns_from_a_corpus_that_is_there(params):
    del params["corpora"]["captions"]
    params["chunk"]["corpora"].remove("captions")
    said = "align.corpus is 'captions', none of the corpora of kind articles or captions"
    assert fault(params) == f"params.yaml: {said}: choose one of articles"


def test_tweets_alone_leave_nothing_that_the_encoder_of_pictures_can_learn_from(params):
    params["corpora"] = {"tweets": params["corpora"]["tweets"]}
    params["chunk"]["corpora"] = []
    params["classifiers"] = {"muse_entities": params["classifiers"]["muse_entities"]}
    params["generators"] = {}
    said = fault(params)
    assert "but no corpus is of kind articles or captions: put the row of captions back" in said


@pytest.mark.parametrize("key", ["align", "chunk"])
def test_tweets_are_not_cut_into_chunks(params, key):
    params["align"]["corpus"] = "tweets"
    params["chunk"]["corpora"] = ["captions", "tweets"] if key == "chunk" else ["captions"]
    said = f"{key}.corpus is 'tweets'" if key == "align" else "chunk.corpora is 'tweets'"
    choices = "none of the corpora of kind articles or captions: choose one of articles | captions"
    assert fault(params) == f"params.yaml: {said}, {choices}"


def test_the_encoder_learns_from_a_corpus_that_is_cut_into_chunks(params):
    params["chunk"]["corpora"] = ["articles"]
    said = "align.corpus is 'captions', none of the chunk.corpora: choose one of articles"
    assert fault(params) == f"params.yaml: {said}"


@pytest.mark.parametrize("corpus", ["captions", "recipes"])
def test_a_run_learns_from_a_corpus_of_articles(params, corpus):
    params["generators"]["flexmuse"]["corpus"] = corpus
    said = f"is '{corpus}', none of the corpora of kind articles: choose one of articles"
    assert fault(params) == f"params.yaml: generators.flexmuse.corpus {said}"


def test_a_corpus_that_is_cut_into_chunks_has_a_row(params):
    params["chunk"]["corpora"].append("memes")
    assert fault(params).startswith("params.yaml: chunk.corpora is 'memes', none of the corpora")


def test_a_run_without_any_articles_is_told_to_add_some(params):
    del params["corpora"]["articles"]
    params["chunk"]["corpora"].remove("articles")
    assert fault(params).endswith("none of the corpora of kind articles: there is none: add one")


def test_a_run_names_a_model_that_is_there(params):
    params["generators"]["flexmuse"]["model"] = "muse"
    assert fault(params).startswith(
        "params.yaml: generators.flexmuse.model is 'muse', none of the models"
    )


def test_a_corpus_names_a_format_that_is_there(params):
    params["corpora"]["articles"]["format"] = "phrases"
    formats = " | ".join(sorted(validate_params.FORMATS))
    assert {"memotion", "synthetic", "vist"} <= set(validate_params.FORMATS)
    said = f"is 'phrases', none of the formats: choose one of {formats}"
    assert fault(params) == f"params.yaml: corpora.articles.format {said}"


def test_a_corpus_is_of_a_kind_that_is_there(params):
    params["corpora"]["captions"]["kind"] = "caption"
    choices = "choose one of articles | captions | tweets | posts | memes"
    assert fault(params).endswith(f"kind is 'caption': {choices}")


def test_a_corpus_is_of_a_kind_that_its_format_holds(params):
    params["corpora"]["captions"]["format"] = "markdown"
    said = "kind is 'captions', none of the kinds of format markdown: choose one of articles"
    assert fault(params) == f"params.yaml: corpora.captions.{said}"


@pytest.mark.parametrize("format", ["synthetic", "markdown"])
def test_the_path_of_a_corpus_exists(params, format):
    params["corpora"]["articles"] |= {"format": format, "path": "elsewhere"}
    said = fault(params)
    assert said.startswith(
        "params.yaml: corpora.articles.path is 'elsewhere', which does not exist"
    )


def test_there_is_at_least_one_corpus_and_one_run(params):
    params["generators"] = {}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    validate_params.main()  # readers alone are enough
    params["classifiers"] = {}
    assert fault(params).startswith("params.yaml: generators and classifiers have no row")
    params["corpora"] = {}
    assert fault(params).startswith("params.yaml: corpora have no row")


def test_a_part_that_no_model_has_is_unknown(params):
    params["models"]["flexmuse"]["netwrok"] = {}
    assert fault(params) == "params.yaml: models.flexmuse: unknown netwrok"


@pytest.mark.parametrize("section", ["models", "formats"])
def test_a_section_without_a_file_of_its_name_is_unknown(params, section):
    params[section]["memes"] = {}
    assert fault(params) == f"params.yaml: {section}: unknown memes"


def test_a_format_that_is_missing_is_named(params):
    del params["formats"]["jsonl"]
    assert fault(params) == "params.yaml: formats: missing jsonl"


def test_a_format_that_no_corpus_uses_is_read_too(params):
    params["formats"]["markdown"]["encodings"] = "utf-8"
    assert fault(params).startswith("params.yaml: formats.markdown.encodings is 'utf-8'")


def test_a_section_that_no_stage_reads_is_unknown(params):
    params["trainnig"] = {}
    assert fault(params) == "params.yaml: unknown section trainnig: remove it"


@pytest.mark.parametrize("suite", SUITES)
def test_the_rows_of_a_suite_change_keys_that_exist_into_params_that_pass(params, suite):
    verb, run = SUITES[suite]["target"].split("@")
    family = {"evaluate": "generators", "evaluate_classifier": "classifiers"}[verb]
    assert run in params[family]
    seen = []
    for changes in SUITES[suite]["rows"].values():
        changed = deepcopy(params)
        for path, value in changes.items():
            *above, key = path.rpartition(":")[2].split(".")  # config/FILE: comes first
            section = reduce(dict.__getitem__, above, changed)
            assert section[key] != value, f"{path} is that by default"
            section[key] = value
        assert changed not in seen
        seen.append(changed)
        Path("params.yaml").write_text(yaml.safe_dump(changed))
        validate_params.main()


@pytest.mark.parametrize("what", ["records", "images"])
def test_a_reader_learns_from_what_was_embedded_of_its_corpus(params, what):
    params["classifiers"]["mm_orient"][what] = "01_ingest"
    assert fault(params) == (
        f"params.yaml: classifiers.mm_orient.{what} is '01_ingest', but '04_augment' is "
        f"embedded (corpora.memes.{what}): make them equal"
    )


def test_a_corpus_names_the_folders_of_its_kind(params):
    params["corpora"]["memes"]["records"] = "02_clean"
    params["classifiers"]["mm_orient"]["records"] = "02_clean"
    said = fault(params)
    assert said.startswith("params.yaml: corpora.memes has records '02_clean' and images")
    assert said.endswith("a corpus of memes needs '04_augment' and '04_augment': set these")
    params["corpora"]["memes"]["records"] = "04_augment"
    params["corpora"]["posts"]["images"] = "04_augment"
    assert "but a corpus of posts needs '02_clean' and '01_ingest'" in fault(params)


@pytest.mark.parametrize("section", ["inpaint", "augment"])
def test_every_corpus_of_memes_and_no_other_is_inpainted_and_augmented(params, section):
    params[section]["corpora"] = ["memes", "posts"]
    said = f"{section}.corpora is 'posts', none of the corpora of kind memes: choose one of memes"
    assert fault(params) == f"params.yaml: {said}"
    params[section]["corpora"] = []
    assert fault(params) == f"params.yaml: {section}.corpora lacks memes, of kind memes: add it"


def test_without_memes_their_stages_are_told_to_have_none(params):
    del params["corpora"]["memes"], params["classifiers"]["mm_orient"]
    said = "names memes, but no corpus is of kind memes: give [], or add its row to corpora"
    assert fault(params) == f"params.yaml: inpaint.corpora {said}"
    params["inpaint"]["corpora"] = params["augment"]["corpora"] = []
    Path("params.yaml").write_text(yaml.safe_dump(params))
    validate_params.main()


@pytest.mark.parametrize(("reader", "model"), [("mm_orient", "orient"), ("mm_orient", "flexmuse")])
def test_a_reader_names_a_model_of_readers(params, reader, model):
    params["classifiers"][reader]["model"] = model
    said = f"classifiers.{reader}.model is '{model}', none of the models of classifiers"
    assert fault(params) == f"params.yaml: {said}: choose one of mm_orient | muse"


def test_a_reader_of_memes_is_not_given_posts(params):
    params["classifiers"]["mm_orient"]["corpus"] = "posts"
    said = "is 'posts', none of the corpora of kind memes: choose one of memes"
    assert fault(params) == f"params.yaml: classifiers.mm_orient.corpus {said}"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("text.max_subwords", 0, "text.max_subwords is 0: give 1 or more"),
        ("image.grid_size", 0, "image.grid_size is 0: give 1 or more"),
        ("image.image_size", 32, "image.image_size is 32: give 33 or more"),
        ("eval_batch_size", 0, "classifiers.mm_orient.eval_batch_size is 0: give 1 or more"),
        ("image.encoder", "vgg", "image.encoder is 'vgg': choose one of patches | resnet18 |"),
        ("task_features.max_subwords", 0, "task_features.max_subwords is 0: give 1 or more"),
    ],
)
def test_numbers_of_a_reader_of_memes_have_bounds(params, path, value, said):
    *above, key = path.split(".")
    reduce(dict.__getitem__, above, params["classifiers"]["mm_orient"])[key] = value
    assert said in fault(params)


@pytest.mark.parametrize(
    ("path", "value", "said"),
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
        ("augment.image.policies.mild.contrast_low", 9, "give two factors from 0, the lower one"),
        (
            "clean.memes.remove_domains",
            ["com", "."],
            "clean.memes: remove_domains names an empty ending",
        ),
    ],
)
def test_numbers_of_the_stages_of_memes_have_bounds(params, path, value, said):
    *above, key = path.split(".")
    reduce(dict.__getitem__, above, params)[key] = value
    found = fault(params)
    assert found.startswith(f"params.yaml: {path.split('.')[0]}") and said in found
