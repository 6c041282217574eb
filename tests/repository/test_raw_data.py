"""Raw data under DVC, as docs/raw-data.md describes it, with a local S3 server as the remote."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.support import tiny_dvc_project
from tests.support.project_files import ROOT

BUCKET = "corpora"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
FILES = {"rows.jsonl": '{"text": "a"}\n', "images/1.png": "an image", "images/2.png": "another"}


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket of a local S3 server."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        bucket = boto3.resource("s3", endpoint_url=address).Bucket(BUCKET)
        bucket.create()
        yield bucket
    finally:
        server.stop()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with this project's settings for git and DVC, and one commit."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    project = tmp_path / "project"
    for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    git(project, "init", "-q")
    commit(project)
    return project


def git(folder: Path, *arguments: str) -> str:
    name = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    command = ["git", *name, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(project: Path) -> None:
    git(project, "add", "--all")  # without --force: .gitignore must not name these files
    git(project, "commit", "-q", "-m", "A version")


def dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_corpus(folder: Path, **changes: str) -> None:
    for name, content in (FILES | changes).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def read_corpus(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_text() for file in files}


def add_corpus(project: Path, name: str = "mine", **changes: str) -> None:
    write_corpus(project / "data/00_raw" / name, **changes)
    dvc(project, "add", f"data/00_raw/{name}")
    commit(project)


def use_bucket(project: Path, bucket) -> None:
    address = bucket.meta.client.meta.endpoint_url
    dvc(project, "remote", "add", "--default", "storage", f"s3://{BUCKET}/polymuse")
    dvc(project, "remote", "modify", "storage", "endpointurl", address)
    commit(project)


@pytest.mark.parametrize("name", ["mine", "articles/mine"])
def test_a_corpus_is_added_and_git_tracks_its_hash_alone(project, name):
    add_corpus(project, name)
    tracked = git(project, "ls-files", "data").split()
    assert [file for file in tracked if not file.endswith("/.gitignore")] == [
        f"data/00_raw/{name}.dvc"
    ]
    assert git(project, "status", "--porcelain") == ""


def test_the_default_remote_survives_a_start_from_scratch(project):
    add_corpus(project)
    dvc(project, "push", "data/00_raw/mine.dvc")
    assert git(project, "status", "--porcelain") == ""
    for name in (".polymuse", ".dvc/cache", "data/00_raw/mine"):
        shutil.rmtree(project / name, ignore_errors=True)
    dvc(project, "pull", "data/00_raw/mine.dvc")
    assert read_corpus(project / "data/00_raw/mine") == FILES


@pytest.mark.slow
def test_a_corpus_is_pushed_to_s3_and_pulled_in_a_clone(project, bucket, tmp_path):
    use_bucket(project, bucket)
    add_corpus(project)
    dvc(project, "push", "data/00_raw/mine.dvc")
    assert len(list(bucket.objects.all())) == len(FILES) + 1  # and the list of the folder
    git(tmp_path, "clone", "-q", str(project), "clone")
    dvc(tmp_path / "clone", "pull", "data/00_raw/mine.dvc")
    assert read_corpus(tmp_path / "clone/data/00_raw/mine") == FILES


@pytest.mark.slow
def test_gc_removes_the_versions_that_the_workspace_does_not_use(project, bucket):
    use_bucket(project, bucket)
    add_corpus(project)
    dvc(project, "push", "data/00_raw/mine.dvc")
    add_corpus(project, **{"rows.jsonl": "{}\n"})
    dvc(project, "push", "data/00_raw/mine.dvc")
    assert len(list(bucket.objects.all())) == len(FILES) + 3
    dvc(project, "gc", "--all-commits", "--cloud", "--force")
    assert len(list(bucket.objects.all())) == len(FILES) + 3
    dvc(project, "gc", "--workspace", "--cloud", "--force")
    assert len(list(bucket.objects.all())) == len(FILES) + 1
    shutil.rmtree(project / ".dvc/cache")
    shutil.rmtree(project / "data/00_raw/mine")
    dvc(project, "pull", "data/00_raw/mine.dvc")
    assert read_corpus(project / "data/00_raw/mine") == FILES | {"rows.jsonl": "{}\n"}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_file_is_imported_and_updated_from_its_address(project, bucket, scheme):
    use_bucket(project, bucket)
    table = bucket.Object("published/table.csv")
    table.put(Body=b"text\na\n", ACL="public-read")
    address = "remote://storage/../published/table.csv"
    if scheme == "http":
        address = f"{bucket.meta.client.meta.endpoint_url}/{BUCKET}/published/table.csv"
        assert urlopen(address).read() == b"text\na\n"
    (project / "data/00_raw").mkdir(parents=True)
    dvc(project, "import-url", address, "data/00_raw/table.csv")
    commit(project)
    file = project / "data/00_raw/table.csv"
    assert file.read_text() == "text\na\n"
    assert "data/00_raw/table.csv.dvc" in git(project, "ls-files", "data").split()
    table.put(Body=b"text\nb\n", ACL="public-read")
    dvc(project, "update", "data/00_raw/table.csv.dvc")
    assert file.read_text() == "text\nb\n"


def test_stages_follow_a_corpus_that_dvc_tracks(tmp_path):
    """A changed corpus makes its stages stale, before and after `dvc add`."""
    stage = tiny_dvc_project.make_copy_stage("copy", "data/00_raw/mine/rows.jsonl")
    project = tiny_dvc_project.create_project(tmp_path / "project", ingest=stage)
    corpus, tracked = project / "data/00_raw/mine", project / "data/00_raw/mine.dvc"
    write_corpus(corpus)
    dvc(project, "add", "data/00_raw/mine")
    hashes = set()
    for content in ("first\n", "second\n"):
        write_corpus(corpus, **{"rows.jsonl": content})
        done = polymuse(project, "run")
        assert (done.returncode, done.stderr) == (0, "")
        assert (project / "copy").read_text() == f"{content}copy\n"
        hashes.add(tracked.read_text())
    assert len(hashes) == 2
    assert "Everything is up to date." in polymuse(project, "run").stdout


def polymuse(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    environment = os.environ | {"POLYMUSE_HOME": str(project.parent / "home")}
    environment |= {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
