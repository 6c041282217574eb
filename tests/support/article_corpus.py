"""A few articles as ingest, chunk and embed write them, for tests of later stages."""

import json
from pathlib import Path

from stages.shared.core import schemas
from stages.shared.features import store as feature_store
from tests.support import tiny_flexmuse

SPLITS = ("train", "validation", "test")
SLOTS = {"topic": {}, "picture": {"animal": {"cat": ["cat"], "dog": ["dog"]}}}


def write_article_corpus(folder: Path, *, slots: bool = True) -> list[Path]:
    """Write the folders ingest, chunk and embed: three articles with eight chunks per split."""
    ingest, chunk, embed = (folder / name for name in ("ingest", "chunk", "embed"))
    for path in (ingest, chunk, embed):
        path.mkdir(parents=True)
    rows, pairs = [], []
    for number, split in enumerate(SPLITS):
        for row in tiny_flexmuse.make_chunk_rows():
            rows.append(row | {"record": f"{split}-{row['record']}", "split": split})
        for pair in tiny_flexmuse.make_pairs():
            key = {"group": 3 * number + pair["group"], "record": f"{split}-{pair['record']}"}
            pairs.append(pair | key)
    schemas.write_parquet(chunk / "chunks.parquet", rows, schemas.CHUNKS)
    schemas.write_parquet(chunk / "pairs.parquet", pairs, schemas.PREFERENCE_PAIRS)
    if slots:
        _write_facts(ingest, rows)
    features = tiny_flexmuse.build_features()
    pictures = [
        {"pooled": features.pooled[row], "patches": features.patches[row]} for row in range(8)
    ]
    titles = [
        {
            "pooled": features.text_pooled[row],
            "tokens": features.tokens[row][features.token_mask[row]],
        }
        for row in range(4)
    ]
    texts = list(features.text_index), features.subwords, titles
    feature_store.write_features(embed, (list(features.image_index), pictures), texts)
    return [ingest, chunk, embed]


def write_encoder_dir(folder: Path) -> Path:
    """A folder as align writes it: two files of an encoder, one nested, and a report."""
    target = folder / "encoder"
    (target / "weights").mkdir(parents=True, exist_ok=True)
    (target / "encoder.json").write_text("{}")
    (target / "weights" / "pictures").write_text("1")
    (target / "summary.json").write_text("{}")
    return target


def _write_facts(ingest: Path, rows: list[dict]) -> None:
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
    """Write params.yaml with models that train in a second."""
    import yaml

    from stages.shared.core.config import read_params

    params = read_params()
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
