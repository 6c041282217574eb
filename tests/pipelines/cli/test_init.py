"""`polymuse init` writes parameters that are valid, and nothing if it cannot decide."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import project, validate_params
from pipelines.cli import init, main, preset
from stages.shared.core.config import read_params
from stages.shared.runtime.stage import InputError
from tests.support import user_data
from tests.support.project_files import clone_project

CHINESE = ["一只小狗在绿色的草地上跑", "妈妈今天做了很好吃的面条", "明天我们一起去海边看日出"]


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A copy of the project, with a work folder of its own."""
    folder = clone_project(tmp_path)
    monkeypatch.setenv("POLYMUSE_HOME", str(folder / ".polymuse"))
    return folder


def run_init(monkeypatch, folder: Path, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["polymuse", "init", str(folder), *options])
    main()


def read_files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in [folder / "params.yaml", folder / "config/formats.yaml"]]


def test_memes_alone_keep_mm_orient_and_what_it_needs(workspace, monkeypatch, capsys):
    memes = user_data.memes_table(workspace / "data/00_raw/memes")
    before = read_files(workspace)
    run_init(monkeypatch, workspace, "--data", str(memes))
    output = capsys.readouterr().out
    params = read_params(workspace)
    assert list(params["corpora"]) == ["captions", "memes"]
    assert params["corpora"]["captions"]["format"] == "synthetic"
    assert params["corpora"]["memes"] == {
        "kind": "memes",
        "format": "table",
        "path": "data/00_raw/memes",
        "records": "04_augment",
        "images": "04_augment",
    }
    assert params["generators"] == {} and list(params["classifiers"]) == ["mm_orient"]
    assert params["chunk"]["corpora"] == ["captions"] and params["align"]["corpora"] == ["memes"]
    assert params["align"]["encoder"] == "efficientnet-lite0"
    overlay = preset.create_yaml().load(Path("presets/real_memes.yaml"))["classifiers"]
    training = params["classifiers"]["mm_orient"]["training"]
    assert training == training | overlay["mm_orient"]["training"]
    assert list(params["formats"]["table"]["tasks"]) == ["valence", "joy"]
    assert "classifiers.muse_entities" in output and "task valence: column Valence" in output
    assert "polymuse preset --undo" in output
    monkeypatch.chdir(workspace)
    assert "`polymuse init`" in preset.undo_preset()
    assert read_files(workspace) == before


def test_texts_that_the_table_lacks_are_recognized_and_embedded(workspace, monkeypatch, tmp_path):
    memes = user_data.memes_table(tmp_path / "memes")
    run_init(monkeypatch, workspace, "--data", str(memes), "--text", "")
    params = read_params(workspace)
    assert params["formats"]["table"]["columns"]["text"] is None
    assert params["inpaint"]["ocr"] == "when_missing"
    assert params["embed"]["min_supported_fraction"] == 0


def test_every_kind_together_keeps_every_run(workspace, monkeypatch, tmp_path):
    folders = [
        user_data.markdown_articles(tmp_path / "notes"),
        user_data.jsonl_captions(tmp_path / "captions"),
        user_data.twitter_tweets(tmp_path / "tweets"),
        user_data.mvsa_posts(tmp_path / "posts"),
        user_data.hateful_memes(tmp_path / "memes"),
    ]
    before = read_params(workspace)
    run_init(monkeypatch, workspace, *(f"--data={folder}" for folder in folders))
    params = read_params(workspace)
    assert [row["path"] for row in params["corpora"].values()] == list(map(str, folders))
    for section in ("generators", "classifiers"):
        assert list(params[section]) == list(before[section])
    assert params["chunk"]["corpora"] == ["articles", "captions"]
    assert params["align"]["corpus"] == "captions"
    assert params["align"]["corpora"] == ["articles", "captions", "posts", "memes"]


def test_articles_with_one_text_keep_all_their_images(workspace, monkeypatch, tmp_path, capsys):
    articles = user_data.jsonl_one_text_articles(tmp_path / "articles")
    run_init(monkeypatch, workspace, "--data", str(articles))
    params = read_params(workspace)
    assert params["chunk"]["one_text_corpora"] == ["articles"]
    networks = [params["models"][name]["network"] for name in ("flexmuse", "tippo")]
    assert {network["max_images"] for network in networks} == {5}
    assert "one text about all images" in capsys.readouterr().out


def test_drawings_keep_the_tiny_encoder_and_the_default_settings(workspace, monkeypatch, tmp_path):
    captions = user_data.jsonl_captions(tmp_path / "captions", user_data.write_drawing)
    before = read_params(workspace)
    run_init(monkeypatch, workspace, "--data", str(captions))
    params = read_params(workspace)
    assert params["align"] == before["align"] and params["models"] == before["models"]
    assert list(params["corpora"]) == ["captions"] and list(params["generators"]) == [
        "tippo_captions"
    ]
    run_init(monkeypatch, workspace, "--data", str(captions), "--force", "--images", "photographs")
    assert read_params(workspace)["align"]["encoder"] == "efficientnet-lite0"


def test_captions_that_are_not_english_leave_the_encoder_to_synthetic_ones(
    workspace, monkeypatch, tmp_path, capsys
):
    captions = user_data.coco_cn_captions(tmp_path / "captions")
    run_init(monkeypatch, workspace, "--data", str(captions))
    params = read_params(workspace)
    assert set(params["corpora"]) == {"captions", "synthetic"}
    assert params["chunk"]["corpora"] == ["captions", "synthetic"]
    assert params["align"]["corpus"] == "synthetic" and params["align"]["encoder"] == "tiny"
    assert "no corpus has photographs with English texts" in capsys.readouterr().out


def test_a_classifier_of_another_language_needs_a_text_encoder(
    workspace, monkeypatch, tmp_path, capsys
):
    sentences = [f"{CHINESE[n % 3]}{n}" for n in range(user_data.NUM_ROWS)]
    posts = user_data.jsonl_posts(tmp_path / "posts", sentences)
    before = read_files(workspace)
    with pytest.raises(SystemExit):
        run_init(monkeypatch, workspace, "--data", str(posts))
    assert "mostly in 'zh'" in (error := capsys.readouterr().err) and "--text-encoder" in error
    assert read_files(workspace) == before
    run_init(monkeypatch, workspace, "--data", str(posts), "--text-encoder", "some/bert")
    text = read_params(workspace)["classifiers"]["muse_sentiment"]["text"]
    assert text["encoder"] == "some/bert"


def test_other_data_are_replaced_only_by_force(workspace, monkeypatch, tmp_path, capsys):
    memes = user_data.memes_table(tmp_path / "memes")
    posts = user_data.jsonl_posts(tmp_path / "posts")
    run_init(monkeypatch, workspace, "--data", str(posts))
    before = read_files(workspace)
    with pytest.raises(SystemExit):
        run_init(monkeypatch, workspace, "--data", str(memes))
    assert "names data already: corpora.posts" in (error := capsys.readouterr().err)
    assert "--force" in error and read_files(workspace) == before
    run_init(monkeypatch, workspace, "--data", f"posts={posts}", "--force")
    assert list(read_params(workspace)["corpora"]) == ["captions", "posts"]


def test_a_run_that_was_removed_is_brought_back_by_undo(workspace, monkeypatch, tmp_path, capsys):
    memes = user_data.memes_table(tmp_path / "memes")
    posts = user_data.jsonl_posts(tmp_path / "posts")
    run_init(monkeypatch, workspace, "--data", str(posts))
    with pytest.raises(SystemExit):
        run_init(monkeypatch, workspace, "--data", str(memes), "--force")
    error = capsys.readouterr().err
    assert "no run of mm_orient on the corpus memes" in error and "preset --undo" in error
    monkeypatch.chdir(workspace)
    preset.undo_preset()
    run_init(monkeypatch, workspace, "--data", str(memes), "--data", str(posts))
    assert list(read_params(workspace)["classifiers"]) == ["muse_sentiment", "mm_orient"]


def test_parameters_that_are_not_valid_are_not_kept(workspace, monkeypatch, tmp_path, capsys):
    path = workspace / "params.yaml"
    posts = user_data.jsonl_posts(tmp_path / "posts")
    path.write_text(path.read_text().replace("unicode_form: NFKC", "unicode_form: NFX", 1))
    before = read_files(workspace)
    with pytest.raises(SystemExit):
        run_init(monkeypatch, workspace, "--data", str(posts))
    assert "clean.unicode_form is 'NFX'" in capsys.readouterr().err
    assert read_files(workspace) == before


def test_a_new_project_is_a_clone_and_the_data_stay_where_they_are(tmp_path, monkeypatch, capsys):
    source = clone_project(tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, "commit", "-qm", "Start"], cwd=source, check=True)
    monkeypatch.setattr(init, "CODE_DIR", source)
    monkeypatch.delenv("POLYMUSE_HOME")
    tweets = user_data.twitter_tweets(tmp_path / "tweets")
    files = sorted(tweets.rglob("*"))
    folder = tmp_path / "new"
    run_init(monkeypatch, folder, "--data", f"tweets={tweets}")
    assert project.is_project(folder) and Path.cwd() == folder
    assert read_params(folder)["corpora"]["tweets"]["path"] == str(tweets)
    assert sorted(tweets.rglob("*")) == files
    assert f"cd {folder}" in capsys.readouterr().out
    validate_params.main()
    assert (folder / ".polymuse/presets.json").is_file()  # so that the change can be undone


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("project/data", "is neither a project nor empty"),
        ("project/new", "is inside the project"),
        ("full", "is neither a project nor empty"),
    ],
)
def test_a_folder_that_is_no_place_for_a_project_is_refused(workspace, tmp_path, folder, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").write_text("a")
    with pytest.raises(InputError, match=message):
        init.choose_template(tmp_path / folder)


def test_data_are_named_by_kind_or_by_folder_alone():
    folder = Path.cwd() / "a=b"
    assert init.parse_data(["memes=x", "./a=b"]) == [("memes", Path.cwd() / "x"), (None, folder)]
    with pytest.raises(InputError, match="'meme' is none of articles"):
        init.parse_data(["meme=x"])
