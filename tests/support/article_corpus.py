"""A handful of articles on disk as ingest, chunk and embed leave them, for later stages."""

import json
from pathlib import Path

from stages.shared.core import schemas
from stages.shared.features import store as feature_store
from tests.support import tiny_flexmuse

SPLITS = ("train", "validation", "test")
SLOTS = {"topic": {}, "picture": {"animal": {"cat": ["cat"], "dog": ["dog"]}}}


def write_article_corpus(folder: Path, *, slots: bool = True) -> list[Path]:
    """The folders ingest, chunk and embed: eight chunks in three articles for each split."""
    ingest, chunk, embed = (folder / name for name in ("ingest", "chunk", "embed"))
    for path in (ingest, chunk, embed):
        path.mkdir(parents=True)
    rows, pairs = [], []
    for number, split in enumerate(SPLITS):
        for row in tiny_flexmuse.make_chunk_rows():
            rows.append(row | {"record": f"{split}-{row['record']}", "split": split})
        for pair in tiny_flexmuse.make_pairs():
            place = {"group": 3 * number + pair["group"], "record": f"{split}-{pair['record']}"}
            pairs.append(pair | place)
    schemas.write_parquet(chunk / "chunks.parquet", rows, schemas.CHUNKS)
    schemas.write_parquet(chunk / "pairs.parquet", pairs, schemas.PREFERENCE_PAIRS)
    if slots:
        _write_truth(ingest, rows)
    cached = tiny_flexmuse.build_features()
    pictures = [{"pooled": cached.pooled[row], "patches": cached.patches[row]} for row in range(8)]
    titles = [
        {"pooled": cached.text_pooled[row], "tokens": cached.tokens[row][cached.token_mask[row]]}
        for row in range(4)
    ]
    texts = list(cached.text_index), cached.subwords, titles
    feature_store.write_features(embed, (list(cached.image_index), pictures), texts)
    return [ingest, chunk, embed]


def write_encoder_dir(folder: Path) -> Path:
    """A folder as align leaves it: two files of an encoder, nested, and a report about it."""
    target = folder / "encoder"
    (target / "weights").mkdir(parents=True, exist_ok=True)
    (target / "encoder.json").write_text("{}")
    (target / "weights" / "pictures").write_text("1")
    (target / "summary.json").write_text("{}")
    return target


def _write_truth(ingest: Path, rows: list[dict]) -> None:
    (ingest / "slots.json").write_text(json.dumps(SLOTS))
    facts = [
        {
            "record": row["record"],
            "position": row["position"],
            "slot": "animal",
            "value": "dog" if "dog" in row["text"] else "cat",
        }
        for row in rows
    ]
    schemas.write_parquet(ingest / "facts.parquet", facts, schemas.FACTS)
    foils = [
        {
            "record": row["record"],
            "position": row["position"],
            "slot": "animal",
            "text": row["text"].replace("cat", "dog"),
        }
        for row in rows
        if "cat" in row["text"] and row["split"] != "train"
    ]
    schemas.write_parquet(ingest / "foils.parquet", foils, schemas.FOILS)


def create_project(folder: Path) -> None:
    """params.yaml as shipped, with training that takes a second."""
    import yaml

    params = yaml.safe_load(Path("params.yaml").read_text())
    params["training"]["checkpoint_interval_seconds"] = 0.0
    params["decoders"]["tiny"] |= {"d_ff": 32, "vocab_size": 400, "dropout": 0.2}
    params["models"]["flexmuse"]["network"] |= {"d_model": 16, "max_topic_tokens": 8}
    run = params["generators"]["flexmuse"]
    run["max_tokens"] = 24
    run["sft"] |= {"max_steps": 20, "batch_size": 4, "eval_steps": 10}
    run["preference"] |= {"max_steps": 6, "batch_size": 2, "eval_steps": 3, "learning_rate": 0.001}
    run["quality_monitor"] = {"max_eval_samples": 4, "max_score_drop": 1.0}
    run["generation"]["batch_size"] = 3
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def read_files(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
