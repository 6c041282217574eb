"""PolishPPO, the preference phase of TIPPo: texts are drawn, rewarded, made more or less likely.

One iteration: `rollouts` texts are drawn for each of `batch` articles; G_m weighs their two rewards
(stages/models/tippo/rewards.py), and how far a text's return lies from those it is compared with is its
advantage (eq. 6): the last `window` iterations, as in the paper, or the other texts about its
article. Then `epochs` steps of the optimizer, each over all of these texts, follow PPO's clipped
objective and are held to the SFT model. m counts iterations from 1; where the past is what they are
compared with, one before them makes the statistics and no step.

Where the paper is silent: returns of the past are weighed as those of now are, or the drift of G_m
from one m to the next would count as merit. Beside the others about its article eq. 6 is taken of
each reward, and again of the sum as G_m weighs them (GDPO, arXiv:2601.05242): letters vary three
times as much among these texts as meaning does, and would rule a sum of both as they are. The model
is that of writing: no dropout, nothing hidden, the stored prototype. Texts in a language that the
embedder does not read are left out.

Best are the weights with which one reward of validation texts has risen most, by more than `margin`
of its standard errors, while none has fallen by as many; else those of SFT. Of several looks at a
few articles one is always lucky; and in a sum of both the noise of letters hides a gain in meaning.
The phase ends when these texts have become worse by the watched score, or the policy is collapsing;
see `collapse`.
"""

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.tippo import rewards
from stages.models.tippo.model import (
    EPSILON,
    PreferenceConfig,
    compute_advantage,
    kl_estimate,
    policy_loss,
    reward_discounts,
    total_return,
)
from stages.shared.core.config import load_config
from stages.shared.features import store as feature_store
from stages.shared.generation import chunk_dataset, decoding
from stages.shared.generation import generator as generators
from stages.shared.runtime.stage import InputError
from stages.shared.similarity import embedders
from stages.shared.torch_setup.devices import inference_context
from stages.shared.training.batching import Batch, shuffled_batch, to_device
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import ValidationResult, fit, seed_everything
from stages.shared.training.losses import IGNORE_INDEX, token_log_probs
from stages.train_preference.quality_monitor import (
    TextScorer,
    build_scorer,
    compute_mean_score,
    generate_texts,
)

FORWARD_BATCH_SIZE = 32  # texts


class RewardedDataset:
    """Items with what a text about each of them earns."""

    def __init__(self, items, embedder: embedders.Embedder | None, raw: bool):
        self.dataset, self.embedder, self.raw = items, embedder, raw
        chunks = map(items.chunks_of, range(len(items)))
        self.references = [embedders.join_references(of_item) for of_item in chunks]

    def __len__(self) -> int:
        return len(self.dataset)

    def compute_rewards(self, indices: list[int], texts: list[list[str]]) -> dict[str, Tensor]:
        """Of one text a chunk of each item: literal (B,), and semantic (B,) where it is known."""
        written = list(map(embedders.join_paragraphs, texts))
        references = [self.references[index] for index in indices]
        pairs = zip(written, references, strict=True)
        found = {
            "literal": [rewards.compute_literal_reward(text, of, self.raw) for text, of in pairs]
        }
        if self.embedder:
            found["semantic"] = rewards.compute_semantic_rewards(self.embedder, written, references)
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def compute_return_statistics(returns: Tensor, deviation: str) -> tuple[Tensor, Tensor]:
    """mu_m and delta_m of eq. 6: the mean of returns, and their deviation or variance."""
    spread = returns.std(correction=0) if deviation == "std" else returns.var(correction=0)
    return returns.mean(), spread


def compute_article_advantages(values: Tensor, numbers: PreferenceConfig) -> Tensor:
    """Eq. 6 of how far each text lies from the mean of those about its article.

    values (R,): `rollouts` in a row for each article  -> (R,)
    """
    means = values.view(-1, numbers.num_generations).mean(1)
    apart = values - means.repeat_interleave(numbers.num_generations)
    return compute_advantage(apart, *compute_return_statistics(apart, numbers.advantage_scale))


def ids_to_labels(ids: Tensor, end: int) -> Tensor:
    """Written ids (R, Y + 1) as labels (R, Y), IGNORED after the end. The id of padding tells
    nothing: it may be drawn before the end like any other."""
    labels = ids[:, 1:].clone()
    ended = (labels == end).cumsum(1) - (labels == end).long() > 0
    return labels.masked_fill(ended, IGNORE_INDEX)


def compute_rollout_log_probs(model, batch: Batch, temperature: float) -> Tensor:
    """log p of each written token as it was drawn, 0 after the end.  (R, Y)

    batch: of articles; text_of (R,) the number of the article that a text is about, labels (R, Y).
    Texts of like length are read together, so that little is padded.
    """
    labels, articles = batch["labels"], model.encode(batch)
    lengths = (labels != IGNORE_INDEX).sum(1)
    order, found = lengths.argsort(stable=True), []
    for texts in order.split(FORWARD_BATCH_SIZE):
        memory, read = (
            articles.select(batch["text_of"][texts]),
            labels[texts, : lengths[texts].max()],
        )
        logits = decoding.compute_logits(model.t5, memory.hidden, memory.mask, read)
        values = token_log_probs(logits / temperature, read)
        found.append(F.pad(values, (0, labels.shape[1] - values.shape[1])))
    return torch.cat(found)[order.argsort()]


class PolishPPO:
    """The phase: what fit asks for batches, loss and state."""

    def __init__(
        self,
        writer: generators.TextGenerator,
        trained: RewardedDataset,
        run: generators.GeneratorRun,
        log: Callable,
    ):
        self.generator, self.train_dataset, self.run, self.log = writer, trained, run, log
        self.config: PreferenceConfig = generators.load_preference_config(run)
        self.uses_window_baseline = (
            self.config.baseline == "window"
        )  # else texts have others of their article
        if (
            self.uses_window_baseline
            and run.preference.batch_size
            * self.config.num_generations
            * self.config.baseline_window
            < 2
        ):
            raise InputError(
                "models.tippo.preference: with batch, rollouts and window 1 the past is one "
                "return, which has no deviation: raise one of them"
            )
        self.reference_model = copy.deepcopy(writer.model).eval().requires_grad_(False)
        self.num_iterations = -(-run.preference.max_steps // self.config.num_ppo_epochs)  # M
        self.reward_window: list[dict[str, Tensor]] = []  # rewards of the last iterations
        self.rollouts: Batch = {}  # the texts of the present one
        self.prompt_indices: list[int] = []  # the articles that they are about
        self.metrics: dict[str, float] = {}  # of the present iteration and the latest step
        self.start_metrics: dict[str, float] = {}  # of what must not collapse
        self.start_rewards: dict[
            str, Tensor
        ] = {}  # (N,) by each watched article's text before step 0
        self.start_time, self.rollout_seconds = (
            time.monotonic(),
            0.0,
        )  # of this process; spent in drawing

    def batch_at(self, step: int) -> Batch:
        if self.uses_window_baseline and not self.reward_window:
            self.run_iteration(0)
        if step % self.config.num_ppo_epochs == 0:
            self.run_iteration(step // self.config.num_ppo_epochs + 1)
            share = self.rollout_seconds / (time.monotonic() - self.start_time)
            self.log({"share_of_time_in_rollouts": share}, step)
        return self.train_dataset.dataset.batch(self.prompt_indices) | self.rollouts

    def run_iteration(self, number: int) -> None:
        """Draw texts, reward them, and compare them."""
        schedule, numbers = self.run.preference, self.config
        self.prompt_indices = shuffled_batch(
            len(self.train_dataset), schedule.batch_size, schedule.seed, number
        )
        text_of = torch.arange(schedule.batch_size).repeat_interleave(numbers.num_generations)
        indices = [self.prompt_indices[place] for place in text_of.tolist()]
        seed_everything(schedule.seed, number)
        labels, texts = self.sample_texts(indices)
        earned = self.train_dataset.compute_rewards(indices, texts)
        self.rollouts = self.add_log_probs({"text_of": text_of, "labels": labels})
        self.rollouts["advantage"] = self.compute_advantages(earned, number).float()
        if self.uses_window_baseline:
            self.reward_window = [*self.reward_window, earned][-numbers.baseline_window :]
        tokens = labels != IGNORE_INDEX
        self.metrics = {f"reward_{name}": values.mean().item() for name, values in earned.items()}
        self.metrics |= {
            "return": self.compute_returns(earned, number).mean().item(),
            # Nats a token: -log p of what was drawn.
            "entropy": -(self.rollouts["old"].sum() / tokens.sum()).item(),
            "tokens": tokens.sum(1).float().mean().item(),
        }
        self.start_metrics = {"entropy": self.metrics["entropy"]} | self.start_metrics

    def compute_returns(self, earned: dict[str, Tensor], number: int) -> Tensor:
        """G_m of each text; the literal reward alone where there is no other.  (R,)"""
        if "semantic" not in earned:
            return earned["literal"]
        return total_return(
            earned["literal"], earned["semantic"], number, self.num_iterations, self.config
        )

    def compute_advantages(self, earned: dict[str, Tensor], number: int) -> Tensor:
        """The advantage of each text by its rewards; 0 before there is a past.  (R,)"""
        numbers = self.config
        if not self.uses_window_baseline:
            apart = {
                name: compute_article_advantages(values, numbers) for name, values in earned.items()
            }
            return compute_article_advantages(self.compute_returns(apart, number), numbers)
        now = self.compute_returns(earned, number)
        if not self.reward_window:
            return torch.zeros_like(now)
        before = torch.cat([self.compute_returns(past, number) for past in self.reward_window])
        return compute_advantage(now, *compute_return_statistics(before, numbers.advantage_scale))

    def sample_texts(self, indices: list[int]) -> tuple[Tensor, list[list[str]]]:
        """One text of each item in one batch: its labels, and the texts of its chunks."""
        began = time.monotonic()
        drawing = replace(
            self.run.generation, num_beams=1, temperature=self.config.temperature, top_p=1.0
        )
        self.generator.model.eval()
        written = self.generator.generate(self.train_dataset.dataset.batch(indices), drawing)
        labels = ids_to_labels(written.token_ids.cpu(), self.generator.tokenizer.eos_token_id)
        self.rollout_seconds += time.monotonic() - began
        return labels, written.texts

    def add_log_probs(self, rollouts: Batch) -> Batch:
        """With what the policy and the SFT model say of each token of them now."""
        batch = self.train_dataset.dataset.batch(self.prompt_indices) | rollouts
        batch = to_device(batch, next(self.generator.model.parameters()).device)
        with inference_context():
            old = compute_rollout_log_probs(self.generator.model, batch, self.config.temperature)
            reference = compute_rollout_log_probs(
                self.reference_model, batch, self.config.temperature
            )
        return rollouts | {
            "old": old.float().cpu().clone(),
            "reference": reference.float().cpu().clone(),
        }

    def loss(self, model, batch: Batch) -> dict[str, Tensor]:
        model.eval()  # fit calls train(); with any dropout it would be another policy than wrote
        new = compute_rollout_log_probs(model, batch, self.config.temperature)
        mask = batch["labels"] != IGNORE_INDEX
        old, reference = batch["old"], batch["reference"]
        terms = policy_loss(new, old, reference, batch["advantage"], mask, self.config)
        with torch.no_grad():
            moved = ((new - old).exp() - 1).abs() > self.config.clip_range
            self.metrics |= {
                "clip_share": (moved & mask).sum().item() / mask.sum().item(),
                "kl_to_sft": kl_estimate(new, reference)[mask].mean().item(),
            }
        return terms

    def state_dict(self) -> dict:
        return {
            "past": self.reward_window,
            "rollouts": self.rollouts,
            "earned": self.start_rewards,
            "plain": [self.prompt_indices, self.metrics, self.start_metrics],
        }

    def load_state_dict(self, state: dict) -> None:
        self.reward_window = [to_device(earned, torch.device("cpu")) for earned in state["past"]]
        self.rollouts = to_device(state["rollouts"], torch.device("cpu"))
        self.start_rewards = to_device(state["earned"], torch.device("cpu"))
        self.prompt_indices, self.metrics, self.start_metrics = state["plain"]

    def step_metrics(self) -> dict[str, float]:
        return self.metrics


def find_collapse_reason(
    now: dict[str, float], start: dict[str, float], max_drop: float, numbers: PreferenceConfig
) -> str:
    """Why the phase has to end; "" where it may go on.

    watch: the score of validation texts, which no reward knows; characters: their mean length;
    entropy: of drawn texts; kl_to_sft: how far these are from SFT, both in nats a token.
    """
    change = now["characters"] / max(1.0, start["characters"])
    most = 1 + numbers.max_length_change
    reasons = {
        "the watched score has dropped by more than quality_monitor.max_score_drop": (
            start["watch"] - now["watch"] > max_drop
        ),
        "the policy is further from SFT than max_kl": now.get("kl_to_sft", 0.0) > numbers.max_kl,
        "the entropy is below min_entropy_ratio of what it was": (
            now.get("entropy", 0.0) < numbers.min_entropy_ratio * start.get("entropy", 0.0)
        ),
        "the length has changed by more than max_length_change": not 1 / most <= change <= most,
    }
    return next((reason for reason, found in reasons.items() if found), "")


def compute_sure_gain(earned: dict[str, Tensor], start: dict[str, Tensor], margin: float) -> float:
    """The largest gain of a reward, less `margin` errors; below 0 where one has surely fallen.

    earned, start: the rewards of N texts (N,) now and before the first step
    """
    gains = torch.stack([earned[name] - before for name, before in start.items()])
    mean, error = gains.mean(1), margin * gains.std(1, correction=0) / gains.shape[1] ** 0.5
    worst, best = (mean + error).min().item(), (mean - error).max().item()
    return worst if worst < 0 else best


def build_validator(polish: PolishPPO, watched: RewardedDataset, score: TextScorer):
    """What texts about the first of the watched items earn, and whether anything has collapsed."""
    indices = list(range(min(len(watched), polish.run.quality_monitor.max_eval_samples)))

    def validate(model) -> ValidationResult:
        texts = generate_texts(polish.generator, watched.dataset, indices, polish.run.generation)
        earned = watched.compute_rewards(indices, texts)
        metrics = {f"reward_{name}": values.mean().item() for name, values in earned.items()}
        polish.start_rewards = polish.start_rewards or earned
        loss = -compute_sure_gain(
            earned, polish.start_rewards, polish.config.min_gain_standard_errors
        )
        metrics["watch"] = compute_mean_score(watched.dataset, indices, texts, score)
        characters = [len(embedders.join_paragraphs(paragraphs)) for paragraphs in texts]
        metrics["characters"] = sum(characters) / len(characters)
        polish.start_metrics = metrics | polish.start_metrics
        reason = find_collapse_reason(
            polish.metrics | metrics,
            polish.start_metrics,
            polish.run.quality_monitor.max_score_drop,
            polish.config,
        )
        if reason:
            print(f"PolishPPO ends: {reason}; the best weights are kept", file=sys.stderr)
        return ValidationResult(metrics, loss, stop=bool(reason))

    return validate


def warn_vanishing_discounts(numbers: PreferenceConfig, iterations: int) -> None:
    """Say what the paper's own discounts leave of the rewards."""
    if numbers.discount != "literal":
        return
    weights = [reward_discounts(m, iterations, numbers) for m in range(iterations + 1)]
    literal, semantic = weights[iterations // 2]
    lost = sum(max(pair) < EPSILON for pair in weights) / len(weights)
    print(
        f"WARNING: models.tippo.preference.discount is literal: half-way through {iterations} "
        f"iterations R_literal weighs {literal:.1e} and R_semantic {semantic:.1e}, and in "
        f"{lost:.0%} of the iterations both weigh less than the {EPSILON:g} that eq. 6 adds to the "
        "deviation, so that nothing is learned: `progress` spreads the exponents over the phase",
        file=sys.stderr,
    )


def train(
    name: str,
    run: generators.GeneratorRun,
    folders: list[Path],
    writer: generators.TextGenerator,
    log,
) -> list[dict[str, float]]:
    """The steps of the phase; `writer` is left with its best weights."""
    ingest, _, chunk_folder, feature_folder, _ = folders
    cached = feature_store.read_features(feature_folder, chunk_folder / "features")
    numbers, limits = (
        generators.load_preference_config(run),
        load_config(embedders.RewardConfig, "rewards"),
    )
    rows = chunk_dataset.load_training_chunks(chunk_folder)
    embedder = embedders.load_embedder(
        numbers.semantic_reward, [row["language"] for row in rows], limits
    )

    def rewarded(rows: list[dict]) -> RewardedDataset:
        read = [
            row for row in rows if embedder is None or embedder.supports_language(row["language"])
        ]
        return RewardedDataset(
            writer.build_dataset(read, cached), embedder, numbers.literal_reward == "raw"
        )

    trained = rewarded(rows)
    watched = rewarded(chunk_dataset.load_chunks(chunk_folder, "validation", with_picture=True))
    if not len(watched):  # few articles: watch, and choose weights, on those trained on
        watched = trained
    polish = PolishPPO(writer, trained, run, log)
    warn_vanishing_discounts(numbers, polish.num_iterations)
    return fit(
        writer.model,
        polish.loss,
        polish.batch_at,
        run.preference,
        name=f"train_preference@{name}",
        key=fingerprint(
            [run.preference, run.quality_monitor, run.generation, numbers, limits], folders
        ),
        validate=build_validator(polish, watched, build_scorer(ingest)),
        phase=polish,
        log=log,
    )
