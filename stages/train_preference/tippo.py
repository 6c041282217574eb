"""PolishPPO, TIPPo's preference phase: sample texts, reward them, make them more or less likely.

One iteration samples `num_generations` texts for each of `batch_size` articles. G_m weighs their
two rewards (stages/models/tippo/rewards.py). The advantage of a text (eq. 6) is the distance of its
return from those it is compared with: the last `baseline_window` iterations, as in the paper, or
the other texts about its article. Then follow `num_ppo_epochs` optimizer steps on all of these
texts, with PPO's clipped objective and a penalty on the KL divergence from the SFT model. m counts
iterations from 1; with the baseline `window`, an iteration before them collects statistics without
a step.

Where the paper is silent:
- Past returns are weighed like current ones; otherwise the drift of G_m between iterations would
  count as an advantage.
- With the baseline `article`, eq. 6 is applied to each reward, and again to their sum weighed by
  G_m (GDPO, arXiv:2601.05242). Literal rewards vary three times as much among these texts as
  semantic ones and would dominate a plain sum.
- The policy is the model as in generation: no dropout, nothing dropped, the stored prototype.
- Texts in a language that the embedder does not support are left out.

The best weights are those where one reward of validation texts has risen most, by more than
`min_gain_standard_errors`, while none has fallen by as many; otherwise those of SFT. Among several
validations of a few articles one is always lucky, and in a sum of both rewards the noise of the
literal one hides a gain of the semantic one. The phase ends when the monitored score has dropped or
the policy collapses; see `find_collapse_reason`.
"""

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.tippo import rewards
from stages.models.tippo.model import (
    EPSILON,
    Model,
    PreferenceConfig,
    compute_advantage,
    kl_estimate,
    policy_loss,
    reward_discounts,
    total_return,
)
from stages.shared.features import store as feature_store
from stages.shared.generation import chunk_dataset, decoding
from stages.shared.generation import generator as generators
from stages.shared.generation.article_dataset import ArticleDataset
from stages.shared.runtime.stage import InputError
from stages.shared.similarity import embedders
from stages.shared.torch_setup.devices import inference_context
from stages.shared.training.batching import Batch, shuffled_batch, to_device
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import LossTerms, ValidationResult, fit, seed_everything
from stages.shared.training.losses import IGNORE_INDEX, token_log_probs
from stages.train_preference.inputs import PhaseConfig, PhaseInputs
from stages.train_preference.quality_monitor import (
    TextScorer,
    build_scorer,
    compute_mean_score,
    generate_texts,
)

FORWARD_BATCH_SIZE = 32  # texts
TippoGenerator = generators.TextGenerator[Model, ArticleDataset]
Rewards = dict[str, Tensor]  # literal, and semantic if there is an embedder: one value per text


class RewardedDataset:
    """Articles with the rewards of texts generated for them."""

    def __init__(self, dataset: ArticleDataset, embedder: embedders.Embedder | None, raw: bool):
        """raw: see compute_literal_reward"""
        self.dataset, self.embedder, self.raw = dataset, embedder, raw
        items = map(dataset.get_chunks, range(len(dataset)))
        self.references = [embedders.join_references(chunks) for chunks in items]

    def __len__(self) -> int:
        return len(self.dataset)

    def compute_rewards(self, indices: list[int], texts: list[list[str]]) -> Rewards:
        """Rewards (B,) of one text per chunk of each item."""
        joined = list(map(embedders.join_paragraphs, texts))
        references = [self.references[index] for index in indices]
        values = {
            "literal": [
                rewards.compute_literal_reward(text, item_references, self.raw)
                for text, item_references in zip(joined, references, strict=True)
            ]
        }
        if self.embedder:
            values["semantic"] = rewards.compute_semantic_rewards(self.embedder, joined, references)
        return {name: torch.tensor(row, dtype=torch.float64) for name, row in values.items()}


def compute_return_statistics(returns: Tensor, advantage_scale: str) -> tuple[Tensor, Tensor]:
    """mu_m and delta_m of eq. 6: the mean of returns, and their standard deviation or variance."""
    spread = returns.std(correction=0) if advantage_scale == "std" else returns.var(correction=0)
    return returns.mean(), spread


def compute_article_advantages(values: Tensor, config: PreferenceConfig) -> Tensor:
    """Eq. 6 on the distance of each text from the mean of its article.

    values (R,): `num_generations` consecutive texts per article  -> (R,)
    """
    means = values.view(-1, config.num_generations).mean(1)
    centered = values - means.repeat_interleave(config.num_generations)
    return compute_advantage(centered, *compute_return_statistics(centered, config.advantage_scale))


def ids_to_labels(ids: Tensor, end: int) -> Tensor:
    """Generated ids (R, Y + 1) as labels (R, Y), IGNORE_INDEX after the end token.

    The padding id does not mark the end: it may be sampled before it like any other token.
    """
    labels = ids[:, 1:].clone()
    has_ended = (labels == end).cumsum(1) - (labels == end).long() > 0
    return labels.masked_fill(has_ended, IGNORE_INDEX)


def compute_rollout_log_probs(model: Model, batch: Batch, temperature: float) -> Tensor:
    """log p of each generated token at the sampling temperature, 0 after the end.  (R, Y)

    batch: of articles, with text_of (R,), the index of each text's article, and labels (R, Y).
    Texts of similar length are processed together, to reduce padding.
    """
    labels, articles = batch["labels"], model.encode(batch)
    lengths = (labels != IGNORE_INDEX).sum(1)
    order, log_probs = lengths.argsort(stable=True), []
    for texts in order.split(FORWARD_BATCH_SIZE):
        output = articles.select(batch["text_of"][texts])
        text_labels = labels[texts, : lengths[texts].max()]
        logits = decoding.compute_logits(model.t5, output.hidden, output.mask, text_labels)
        values = token_log_probs(logits / temperature, text_labels)
        log_probs.append(F.pad(values, (0, labels.shape[1] - values.shape[1])))
    return torch.cat(log_probs)[order.argsort()]


@dataclass(frozen=True)
class Rollouts:
    """The R texts of one iteration: `num_generations` for each of B articles.

    old and reference hold log p of each token under the policy that sampled it and under the SFT
    model, at the sampling temperature and 0 after the end.
    """

    articles: list[int]  # B indices in the training dataset
    text_of: Tensor  # (R,) the index in `articles` of each text's article
    labels: Tensor  # (R, Y)
    old: Tensor  # (R, Y)
    reference: Tensor  # (R, Y)
    advantage: Tensor  # (R,)
    metrics: dict[str, float]  # of the iteration

    @property
    def tensors(self) -> Batch:
        """What the loss reads besides the articles."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def compute_rollout_metrics(
    text_rewards: Rewards, returns: Tensor, old: Tensor, labels: Tensor
) -> dict[str, float]:
    """Mean rewards, return, entropy (nats per token) and length of an iteration's texts."""
    tokens = labels != IGNORE_INDEX
    metrics = {f"reward_{name}": values.mean().item() for name, values in text_rewards.items()}
    return metrics | {
        "return": returns.mean().item(),
        "entropy": -(old.sum() / tokens.sum()).item(),  # -log p of the sampled tokens
        "tokens": tokens.sum(1).float().mean().item(),
    }


@dataclass(frozen=True)
class PhaseStart:
    """The first validation, which later ones are compared with."""

    metrics: dict[str, float]  # watch, characters; entropy of the first iteration
    rewards: Rewards  # (N,) of the monitored articles


class PolishPPO:
    """Batches, loss and state of the phase, as `fit` needs them."""

    def __init__(
        self,
        generator: TippoGenerator,
        train_dataset: RewardedDataset,
        run: generators.GeneratorRun,
        config: PreferenceConfig,
        log: Callable,
    ):
        self.generator, self.train_dataset, self.run, self.log = generator, train_dataset, run, log
        self.config = config
        # Otherwise texts are compared with others about their article.
        self.uses_window_baseline = config.baseline == "window"
        num_texts = run.preference.batch_size * config.num_generations
        if self.uses_window_baseline and num_texts * config.baseline_window < 2:
            raise InputError(
                "models.tippo.preference: with batch_size, num_generations and baseline_window of "
                "1 the window holds one return, which has no deviation: raise one of them"
            )
        self.reference_model = copy.deepcopy(generator.model).eval().requires_grad_(False)
        self.num_iterations = -(-run.preference.max_steps // config.num_ppo_epochs)  # M
        self.rollouts: Rollouts | None = None  # of the current iteration
        self.update_metrics: dict[str, float] = {}  # of its latest step
        self.reward_window: list[Rewards] = []  # of the last iterations
        self.first_entropy: float | None = None
        self.start: PhaseStart | None = None
        self.start_time = time.monotonic()  # of this process
        self.rollout_seconds = 0.0

    def batch_at(self, step: int) -> Batch:
        """The articles and rollouts of a step; the first step of an iteration samples new ones."""
        if self.uses_window_baseline and not self.reward_window:
            self.start_iteration(0)
        rollouts = self.rollouts
        if rollouts is None or step % self.config.num_ppo_epochs == 0:
            rollouts = self.start_iteration(step // self.config.num_ppo_epochs + 1)
            share = self.rollout_seconds / (time.monotonic() - self.start_time)
            self.log({"share_of_time_in_rollouts": share}, step)
        return self.train_dataset.dataset.batch(rollouts.articles) | rollouts.tensors

    def start_iteration(self, number: int) -> Rollouts:
        """Replace the rollouts by texts of the current policy, and store their rewards."""
        rollouts, text_rewards = self.sample_rollouts(number)
        self.rollouts = rollouts
        self.update_metrics = {}
        if self.first_entropy is None:
            self.first_entropy = rollouts.metrics["entropy"]
        if self.uses_window_baseline:
            window = [*self.reward_window, text_rewards]
            self.reward_window = window[-self.config.baseline_window :]
        return rollouts

    def sample_rollouts(self, number: int) -> tuple[Rollouts, Rewards]:
        """Sample the texts of an iteration, compute their rewards and advantages."""
        schedule, num_generations = self.run.preference, self.config.num_generations
        articles = shuffled_batch(
            len(self.train_dataset), schedule.batch_size, schedule.seed, number
        )
        text_of = torch.arange(schedule.batch_size).repeat_interleave(num_generations)
        indices = [articles[place] for place in text_of.tolist()]
        seed_everything(schedule.seed, number)
        labels, texts = self.sample_texts(indices)
        text_rewards = self.train_dataset.compute_rewards(indices, texts)
        old, reference = self.compute_log_probs(articles, text_of, labels)
        advantage = self.compute_advantages(text_rewards, number).float()
        returns = self.compute_returns(text_rewards, number)
        metrics = compute_rollout_metrics(text_rewards, returns, old, labels)
        rollouts = Rollouts(articles, text_of, labels, old, reference, advantage, metrics)
        return rollouts, text_rewards

    def sample_texts(self, indices: list[int]) -> tuple[Tensor, list[list[str]]]:
        """One text per item, in one batch: its labels, and the texts of its chunks."""
        start = time.monotonic()
        sampling = replace(
            self.run.generation,
            num_beams=1,
            temperature=self.config.temperature,
            top_p=1.0,
            no_repeat_ngram_size=0,
        )
        self.generator.model.eval()
        batch = self.train_dataset.dataset.batch(indices)
        generation = self.generator.generate(batch, sampling)
        labels = ids_to_labels(generation.token_ids.cpu(), self.generator.tokenizer.eos_token_id)
        self.rollout_seconds += time.monotonic() - start
        return labels, generation.texts

    def compute_log_probs(
        self, articles: list[int], text_of: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """log p of each token under the current policy and the SFT model.  -> (R, Y), (R, Y)"""
        batch = self.train_dataset.dataset.batch(articles) | {"text_of": text_of, "labels": labels}
        batch = to_device(batch, next(self.generator.model.parameters()).device)
        with inference_context():
            old, reference = (
                compute_rollout_log_probs(model, batch, self.config.temperature)
                for model in (self.generator.model, self.reference_model)
            )
        return old.float().cpu().clone(), reference.float().cpu().clone()

    def compute_returns(self, text_rewards: Rewards, number: int) -> Tensor:
        """G_m of each text; the literal reward if it is the only one.  (R,)"""
        literal = text_rewards["literal"]
        if "semantic" not in text_rewards:
            return literal
        return total_return(
            literal, text_rewards["semantic"], number, self.num_iterations, self.config
        )

    def compute_advantages(self, text_rewards: Rewards, number: int) -> Tensor:
        """The advantage of each text over what it is compared with.  (R,)"""
        if self.uses_window_baseline:
            return self.compute_window_advantages(text_rewards, number)
        advantages = {
            name: compute_article_advantages(values, self.config)
            for name, values in text_rewards.items()
        }
        return compute_article_advantages(self.compute_returns(advantages, number), self.config)

    def compute_window_advantages(self, text_rewards: Rewards, number: int) -> Tensor:
        """Eq. 6 over the returns of the last iterations; 0 while there are none.  (R,)"""
        returns = self.compute_returns(text_rewards, number)
        if not self.reward_window:
            return torch.zeros_like(returns)
        past = torch.cat([self.compute_returns(entry, number) for entry in self.reward_window])
        statistics = compute_return_statistics(past, self.config.advantage_scale)
        return compute_advantage(returns, *statistics)

    def loss(self, model: Model, batch: Batch) -> LossTerms:
        """policy_loss, with its diagnostics stored in `update_metrics`."""
        model.eval()  # fit calls train(); with dropout it would not be the policy that sampled
        new = compute_rollout_log_probs(model, batch, self.config.temperature)
        mask = batch["labels"] != IGNORE_INDEX
        old, reference = batch["old"], batch["reference"]
        terms = policy_loss(new, old, reference, batch["advantage"], mask, self.config)
        with torch.no_grad():
            is_clipped = ((new - old).exp() - 1).abs() > self.config.clip_range
            self.update_metrics = {
                "clip_share": (is_clipped & mask).sum().item() / mask.sum().item(),
                "kl_to_sft": kl_estimate(new, reference)[mask].mean().item(),
            }
        return terms

    def step_metrics(self) -> dict[str, float]:
        return (self.rollouts.metrics if self.rollouts else {}) | self.update_metrics

    def state_dict(self) -> dict:
        return {
            "rollouts": vars(self.rollouts) if self.rollouts else None,
            "update_metrics": self.update_metrics,
            "reward_window": self.reward_window,
            "first_entropy": self.first_entropy,
            "start": vars(self.start) if self.start else None,
        }

    def load_state_dict(self, state: dict) -> None:
        cpu = torch.device("cpu")
        rollouts, start = state["rollouts"], state["start"]
        self.rollouts = Rollouts(**to_device(rollouts, cpu)) if rollouts else None
        self.update_metrics = state["update_metrics"]
        self.reward_window = [to_device(entry, cpu) for entry in state["reward_window"]]
        self.first_entropy = state["first_entropy"]
        self.start = (
            PhaseStart(start["metrics"], to_device(start["rewards"], cpu)) if start else None
        )


def find_collapse_reason(
    current: dict[str, float],
    start: dict[str, float],
    max_score_drop: float,
    config: PreferenceConfig,
) -> str:
    """Why the phase has to end; "" if it may continue.

    current, start: metrics. watch: the score of validation texts, independent of the rewards;
    characters: their mean length; entropy: of sampled texts; kl_to_sft: their distance from SFT.
    The last two are in nats per token.
    """
    length_ratio = current["characters"] / max(1.0, start["characters"])
    max_kl = math.inf if config.max_kl is None else config.max_kl
    max_change = math.inf if config.max_length_change is None else config.max_length_change
    reasons = {
        "the monitored score has dropped by more than quality_monitor.max_score_drop": (
            start["watch"] - current["watch"] > max_score_drop
        ),
        "the KL divergence from SFT exceeds max_kl": (current.get("kl_to_sft", 0.0) > max_kl),
        "the entropy is below min_entropy_ratio of its first value": (
            current.get("entropy", 0.0) < config.min_entropy_ratio * start.get("entropy", 0.0)
        ),
        "the length has changed by more than max_length_change": (
            not 1 / (1 + max_change) <= length_ratio <= 1 + max_change
        ),
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def compute_sure_gain(current: Rewards, start: Rewards, num_standard_errors: float) -> float:
    """The largest gain of a reward minus its error margin; below 0 if one has surely fallen.

    current, start: rewards (N,) of the same items now and before the first step.
    """
    gains = torch.stack([current[name] - before for name, before in start.items()])
    mean = gains.mean(1)
    margin = num_standard_errors * gains.std(1, correction=0) / gains.shape[1] ** 0.5
    worst, best = (mean + margin).min().item(), (mean - margin).max().item()
    return worst if worst < 0 else best


def build_validator(
    polish: PolishPPO, validation: RewardedDataset, score: TextScorer
) -> Callable[[Model], ValidationResult]:
    """A function that rewards texts for the first validation items and detects a collapse."""
    indices = list(range(min(len(validation), polish.run.quality_monitor.max_eval_samples)))

    def validate(model: Model) -> ValidationResult:
        texts = generate_texts(polish.generator, validation.dataset, indices, polish.run.generation)
        text_rewards = validation.compute_rewards(indices, texts)
        metrics = {f"reward_{name}": values.mean().item() for name, values in text_rewards.items()}
        metrics["watch"] = compute_mean_score(validation.dataset, indices, texts, score)
        characters = [len(embedders.join_paragraphs(paragraphs)) for paragraphs in texts]
        metrics["characters"] = sum(characters) / len(characters)
        if polish.start is None:
            entropy = {} if polish.first_entropy is None else {"entropy": polish.first_entropy}
            polish.start = PhaseStart(metrics | entropy, text_rewards)
        gain = compute_sure_gain(
            text_rewards, polish.start.rewards, polish.config.min_gain_standard_errors
        )
        reason = find_collapse_reason(
            polish.step_metrics() | metrics,
            polish.start.metrics,
            polish.run.quality_monitor.max_score_drop,
            polish.config,
        )
        if reason:
            print(f"PolishPPO ends: {reason}; the best weights are kept", file=sys.stderr)
        return ValidationResult(metrics, -gain, stop=bool(reason))

    return validate


def warn_vanishing_discounts(config: PreferenceConfig, num_iterations: int) -> None:
    """Print how little weight the paper's own discounts leave to the rewards."""
    if config.discount != "literal":
        return
    weights = [reward_discounts(m, num_iterations, config) for m in range(num_iterations + 1)]
    literal, semantic = weights[num_iterations // 2]
    vanishing = sum(max(pair) < EPSILON for pair in weights) / len(weights)
    print(
        f"WARNING: models.tippo.preference.discount is literal: half-way through {num_iterations} "
        f"iterations R_literal weighs {literal:.1e} and R_semantic {semantic:.1e}, and in "
        f"{vanishing:.0%} of the iterations both weigh less than the {EPSILON:g} that eq. 6 adds "
        "to the deviation, so that nothing is learned. `progress` spreads the exponents over the "
        "phase",
        file=sys.stderr,
    )


def train(
    name: str,
    config: PhaseConfig,
    inputs: PhaseInputs,
    generator: TippoGenerator,
    log: Callable,
) -> list[dict[str, float]]:
    """Train `generator`, which keeps its best weights.  -> the rows of history.csv"""
    run, objective = config.run, config.objective
    features = feature_store.read_features(inputs.features, inputs.chunks / "features")
    rows = chunk_dataset.load_training_chunks(inputs.chunks)
    languages = [row["language"] for row in rows]
    embedder = embedders.load_embedder(objective.semantic_reward, languages, config.rewards)

    def build_rewarded_dataset(rows: list[dict]) -> RewardedDataset:
        if embedder is not None:
            rows = [row for row in rows if embedder.supports_language(row["language"])]
        dataset = generator.build_dataset(rows, features)
        return RewardedDataset(dataset, embedder, objective.literal_reward == "raw")

    train_dataset = build_rewarded_dataset(rows)
    rows = chunk_dataset.load_chunks(inputs.chunks, "validation", require_image=True)
    validation = build_rewarded_dataset(rows)
    if not len(validation):  # a small corpus: validate on the training articles
        validation = train_dataset
    polish = PolishPPO(generator, train_dataset, run, objective, log)
    warn_vanishing_discounts(objective, polish.num_iterations)
    configs = [run.preference, run.quality_monitor, run.generation, objective, config.rewards]
    return fit(
        generator.model,
        polish.loss,
        polish.batch_at,
        run.preference,
        name=f"train_preference@{name}",
        key=fingerprint(configs, inputs.paths, "train_preference", run.model),
        checkpoint_interval_seconds=config.checkpoint_interval_seconds,
        validate=build_validator(polish, validation, build_scorer(inputs.ingest)),
        phase=polish,
        log=log,
    )
