"""Names in params.yaml of earlier versions, and what they are called now."""

from collections.abc import Iterator
from typing import Any

from stages.shared.modeling import saved_config
from stages.shared.runtime.stage import InputError

MAX_LISTED = 8  # renamed keys that the message lists
SCHEDULE_KEYS = {
    "steps": "max_steps",
    "batch": "batch_size",
    "warmup": "warmup_ratio",
    "clip_norm": "max_grad_norm",
    "validate_every": "eval_steps",
}
# Section, by its dotted path of today (* is any row) -> old key -> key of today.
RENAMED_KEYS: dict[str, dict[str, str]] = {
    "": {
        "writers": "generators",
        "readers": "classifiers",
        "label": "classify",
        "score": "evaluate_classifier",
        "read": "cli_label",
        "write": "cli_write",
        "engine": "parallel",
    },
    "corpora.*": {"pictures": "images"},
    "formats.synthetic": {
        "size": "image_size",
        "captions": "captions_per_image",
        "caption_share": "caption_ratio",
        "tweet_share": "tweet_ratio",
        "post_share": "post_ratio",
        "one_slot_share": "single_slot_fraction",
        "held_out_pictures": "held_out_images_fraction",
        "held_out_titles": "held_out_titles_fraction",
        "held_out_names": "held_out_names_fraction",
        "tweet_rule": "entity_type_rule",
        "memes": "meme_style",
        "meme_share": "meme_ratio",
        "meme_zoom": "meme_scale",
        "meme_quality": "meme_jpeg_quality",
        "meme_noise": "meme_label_noise",
    },
    "formats.vist": {"text": "text_version", "folders": "image_folders"},
    "formats.memotion": {
        "truth": "test_label_files",
        "folders": "image_folders",
        "labels": "label_sets",
        "validation": "validation_fraction",
    },
    "formats.coco_cn": {"captions": "caption_source", "folders": "image_folders"},
    "formats.twitter": {
        "types": "entity_types",
        "tags": "entity_type_map",
        "folders": "image_folders",
    },
    "formats.flickr8k_cn": {"captions": "caption_sets", "folder": "image_folder"},
    "formats.table": {"folder": "image_folder", "suffix": "image_suffix"},
    "formats.table.tasks.*": {"otherwise": "default_label"},
    "formats.mvsa": {
        "labels": "label_files",
        "folder": "data_folder",
        "merge": "label_merge",
        "validation": "validation_fraction",
        "test": "test_fraction",
    },
    "ingest": {
        "shards": "num_shards",
        "max_rejected": "max_rejected_fraction",
        "validation": "validation_fraction",
        "test": "test_fraction",
    },
    "clean": {"unicode": "unicode_form", "links": "remove_urls"},
    "clean.memes": {
        "mentions": "remove_mentions",
        "sites": "remove_domains",
        "lines": "line_breaks",
    },
    "inpaint": {
        "shards": "num_shards",
        "batch": "batch_size",
        "recognise": "ocr",
        "find": "detection",
        "paint": "inpainting",
        "read": "recognition",
    },
    "inpaint.detection": {
        "side": "input_size",
        "enlarge": "max_upscale",
        "unclip": "unclip_ratio",
        "max_height": "max_line_height",
        "sure_height": "verify_above_height",
        "sure_score": "verify_below_score",
        "readable": "min_recognition_score",
    },
    "inpaint.mask": {
        "rim": "border_width",
        "plain": "min_uniform_fraction",
        "levels": "color_tolerance",
        "ends": "line_extension",
    },
    "inpaint.inpainting": {"context": "context_pixels", "side": "max_crop_size"},
    "parallel": {"kind": "backend"},
    "augment": {
        "paraphrases": "num_paraphrases",
        "shards": "num_shards",
        "picture": "image",
    },
    "augment.filters": {
        "near_duplicate": "near_duplicate_threshold",
        "longest": "max_length_ratio",
        "short": "short_text_characters",
        "drift": "min_semantic_similarity",
    },
    "augment.openai": {
        "examples": "num_few_shot",
        "answer_tokens": "max_completion_tokens",
        "retries": "max_retries",
        "attempts": "max_attempts",
        "max_failed": "max_failed_fraction",
        "max_tokens_total": "max_total_tokens",
        "price_sent": "input_token_price",
        "price_received": "output_token_price",
        "batch_api": "use_batch_api",
    },
    "augment.openai.batch": {"requests": "max_requests", "poll": "poll_interval"},
    "augment.image": {"look": "policy", "quality": "jpeg_quality", "looks": "policies"},
    "augment.image.policies.*": {"flip": "flip_prob"},
    "chunk": {
        "alone": "single_chunk_articles",
        "similarity_min": "min_similarity",
        "similarity_max": "max_similarity",
        "max_rejected": "max_rejected_per_chosen",
    },
    "align.tiny": {
        "patch": "patch_size",
        "heads": "num_heads",
        "layers": "num_layers",
        "temperature": "initial_temperature",
    },
    "align.tiny.schedule": SCHEDULE_KEYS,
    "embed": {
        "image_batch": "image_batch_size",
        "text_batch": "text_batch_size",
        "min_supported": "min_supported_fraction",
    },
    "illustrate": {"shards": "num_shards"},
    "illustrate.diffusers": {
        "steps": "num_inference_steps",
        "guidance": "guidance_scale",
        "size": "image_size",
    },
    "illustrate.openai": {"retries": "max_retries"},
    "decoders.tiny": {
        "vocabulary": "vocab_size",
        "layers": "num_layers",
        "heads": "num_heads",
    },
    "rewards.openai": {"batch": "batch_size", "retries": "max_retries"},
    "predict": {"attention_items": "max_attention_samples"},
    "evaluate": {
        "bertscore_items": "max_bertscore_samples",
        "reward_items": "max_reward_samples",
        "meteor_seconds": "meteor_timeout",
        "ceiling_below": "max_below_ceiling",
        "ceiling_above": "max_above_ceiling_standard_errors",
        "over_masking": "max_masked_fraction",
        "uniform_entropy": "max_attention_entropy",
        "single_spread": "min_attention_spread",
    },
    "classify": {
        "examples": "num_examples",
        "drawn": "num_generation_examples",
        "samples": "num_images_per_prompt",
        "embedded": "num_projection_samples",
    },
    "evaluate_classifier": {
        "draws": "num_bootstrap_samples",
        "ceiling_below": "max_below_ceiling",
        "ceiling_above": "max_above_ceiling_standard_errors",
    },
    "judge": {
        "answer_tokens": "max_completion_tokens",
        "retries": "max_retries",
        "attempts": "max_attempts",
        "max_tokens_total": "max_total_tokens",
        "max_failed": "max_failed_fraction",
        "items": "max_samples",
        "lowest": "min_score",
        "highest": "max_score",
    },
    "report": {
        "examples": "num_examples",
        "thumbnail": "thumbnail_size",
        "crisp": "max_pixelated_size",
        "bins": "num_bins",
        "maps": "num_attention_maps",
        "map_size": "attention_map_size",
        "review": "num_review_articles",
        "near_identical": "near_identical_threshold",
        "unrelated": "unrelated_threshold",
        "inpainted": "num_inpainted_memes",
        "paraphrased": "num_paraphrased_memes",
        "inert_density": "min_graph_density",
        "inert_isolated": "max_isolated_fraction",
        "complete_density": "max_graph_density",
        "even_attention": "max_attention_entropy",
    },
    "cli_label": {"batch": "batch_size"},
    "cli_write": {
        "images": "default_num_images",
        "picture": "max_image_size",
        "crisp": "max_pixelated_size",
    },
    "training": {"checkpoint_seconds": "checkpoint_interval_seconds"},
    "models.flexmuse.preference": {
        "form": "loss_type",
        "length_normalised": "length_normalized",
    },
    "models.tippo.preference": {
        "literal": "literal_reward",
        "semantic": "semantic_reward",
        "window": "baseline_window",
        "deviation": "advantage_scale",
        "clip": "clip_range",
        "epochs": "num_ppo_epochs",
        "kl": "kl_coef",
        "rollouts": "num_generations",
        "min_entropy": "min_entropy_ratio",
        "margin": "min_gain_standard_errors",
    },
    "generators.*.sft": SCHEDULE_KEYS,
    "generators.*.preference": SCHEDULE_KEYS,
    "generators.*": {"watch": "quality_monitor"},
    "generators.*.quality_monitor": {
        "items": "max_eval_samples",
        "max_drop": "max_score_drop",
    },
    "generators.*.generation": {"beams": "num_beams", "batch": "batch_size"},
    "classifiers.*": {
        "pictures": "images",
        "picture": "image",
        "batch": "eval_batch_size",
    },
    "classifiers.*.text": saved_config.TEXT_KEYS,
    "classifiers.*.image": saved_config.IMAGE_KEYS,
    "classifiers.*.training": SCHEDULE_KEYS,
    "classifiers.*.task_features": saved_config.TASK_FEATURE_KEYS,
    "formats": {"sample": "synthetic"},
    "run": {"expected_seconds": "cpu_budget"},
    "run.cpu_budget": {
        "train": "train_classifier",
        "label": "classify",
        "score": "evaluate_classifier",
        "train@muse_entities": "train_classifier@muse_entities",
    },
} | {f"models.{model}.network": keys for model, keys in saved_config.NETWORK_KEYS.items()}
RENAMED_FORMATS = {"sample": "synthetic"}  # values of corpora.*.format

_NAMES = {  # (section, ..., old key) -> key of today
    (*filter(None, section.split(".")), *path.split(".")): new
    for section, keys in RENAMED_KEYS.items()
    for path, new in keys.items()
}


def check_names(params: dict[str, Any]) -> None:
    """Raises InputError if `params`, the content of params.yaml, uses names of earlier versions."""
    renamed = [f"{old} is now {new}" for old, new in find_renamed(params)]
    if renamed:
        listed = ", ".join(renamed[:MAX_LISTED])
        rest = len(renamed) - MAX_LISTED
        more = f" and {rest} more" if rest > 0 else ""
        raise InputError(
            f"params.yaml uses names of an earlier version: {listed}{more}; rename them (see "
            "CHANGELOG.md)"
        )


def find_renamed(params: dict[str, Any]) -> list[tuple[str, str]]:
    """The old names in `params` as (dotted path, name of today), top-level sections first."""
    renamed = sorted(_find_keys(params, "", ()), key=lambda pair: pair[0].count("."))
    for row, corpus in (params.get("corpora") or {}).items():
        old = corpus.get("format") if isinstance(corpus, dict) else None
        if old in RENAMED_FORMATS:
            renamed.append((f"corpora.{row}.format {old}", RENAMED_FORMATS[old]))
    return renamed


def _find_keys(
    values: dict[str, Any], prefix: str, section: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """The old names in `values` at the path `prefix`; `section` is that path in names of today."""
    for key, value in values.items():
        new = _current_name((*section, key))
        if new is not None:
            yield prefix + key, new
        if isinstance(value, dict):
            yield from _find_keys(value, f"{prefix}{key}.", (*section, new or key))


def _current_name(path: tuple[str, ...]) -> str | None:
    """What the key at `path` is called today; None if it is not an old name."""
    rows = [(*path[:place], "*", *path[place + 1 :]) for place in range(1, len(path) - 1)]
    return next((_NAMES[row] for row in [path, *rows] if row in _NAMES), None)
