"""PolishPPO: its statistics against loops, and the whole phase on a few articles."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from stages import train_sft
from stages.models.tippo.model import policy_loss
from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.features import store as feature_store
from stages.shared.generation import generator as generators
from stages.shared.runtime.stage import InputError
from stages.shared.similarity import embedders
from stages.shared.training.losses import IGNORE_INDEX
from stages.train_preference import __main__ as train_preference
from stages.train_preference import tippo
from stages.train_preference.inputs import PhaseInputs
from tests.support import article_corpus, tiny_flexmuse, tiny_tippo

CONFIG = tiny_tippo.build_preference_config(
    gamma=0.9, discount_steps=10.0, baseline_window=2, num_generations=3
)


def create_project(folder: Path) -> None:
    """Write params.yaml with a phase of four iterations."""
    article_corpus.create_project(folder)
    file = folder / "params.yaml"
    params = yaml.safe_load(file.read_text())
    run = params["generators"]["tippo"] = params["generators"]["flexmuse"] | {"model": "tippo"}
    params["models"]["tippo"]["network"] |= {"d_model": 16, "max_topic_tokens": 8, "max_images": 4}
    params["models"]["tippo"]["preference"] = asdict(CONFIG)
    run["max_tokens"] = 32
    run["sft"] |= {"max_steps": 20, "batch_size": 3, "eval_steps": 10}
    run["preference"] |= {"max_steps": 8, "batch_size": 2, "eval_steps": 4, "learning_rate": 0.001}
    run["quality_monitor"] = {"max_eval_samples": 2, "max_score_drop": 1.0}
    run["generation"]["batch_size"] = 3
    file.write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a corpus and an SFT model."""
    project = tmp_path_factory.mktemp("polish")
    create_project(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("POLYMUSE_HOME", str(project / "home"))
        _, chunk, embed = article_corpus.write_article_corpus(project)
        encoder = article_corpus.write_encoder_dir(project)
        train_sft.cli("tippo", chunk, embed, encoder, output=project / "sft")
    return project


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """That folder; the working directory has its own params.yaml and work folder."""
    create_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return trained


def change(**changes) -> None:
    """Change values of the phase, its schedule and its monitor in params.yaml."""
    file = Path("params.yaml")
    params = yaml.safe_load(file.read_text())
    run = params["generators"]["tippo"]
    for section in (
        params["models"]["tippo"]["preference"],
        run["preference"],
        run["quality_monitor"],
    ):
        section |= {name: value for name, value in changes.items() if name in section}
    file.write_text(yaml.safe_dump(params))


def polish(project: Path, out: Path) -> list[dict[str, float]]:
    names = ("ingest", "chunk/pairs.parquet", "chunk", "embed", "sft/model")
    inputs = PhaseInputs(*(project / name for name in names))
    train_preference.main("tippo", train_preference.load_phase_config("tippo"), inputs, out)
    return history.read_history(out / "history.csv")


def build_phase(project: Path) -> tippo.PolishPPO:
    """The phase before its first step, with literal rewards only."""
    generator = generators.load_generator(project / "sft" / "model")
    config = train_preference.load_phase_config("tippo")
    dataset = generator.build_dataset(
        tiny_flexmuse.make_chunk_rows(), feature_store.read_features(project / "embed")
    )
    rewarded = tippo.RewardedDataset(dataset, None, False)
    return tippo.PolishPPO(generator, rewarded, config.run, config.objective, lambda *_: None)


def record_rewards(phase: tippo.PolishPPO) -> list[dict[str, torch.Tensor]]:
    """A list that collects the rewards of each iteration, plus a synthetic semantic reward."""
    rewards, compute_rewards = [], phase.train_dataset.compute_rewards

    def compute_and_record(indices, texts):
        result = compute_rewards(indices, texts)
        rewards.append(result | {"semantic": 1 - result["literal"] ** 2})
        return rewards[-1]

    phase.train_dataset.compute_rewards = compute_and_record
    return rewards


def test_the_window_advantage_matches_a_loop(project):
    phase = build_phase(project)
    rewards = record_rewards(phase)
    for number in range(4):  # number 0 runs before step 0, for the statistics
        if number:
            phase.batch_at(2 * (number - 1))
        if number < 2:
            continue
        g, h = 0.9 ** (2.5 * number), 0.9 ** (2.5 * (4 - number))  # M = 4 iterations, K = 10
        past_returns = [
            g * literal.item() + h * semantic.item()
            for past in rewards[max(0, number - 2) : number]
            for literal, semantic in zip(past["literal"], past["semantic"], strict=True)
        ]
        returns = g * rewards[number]["literal"] + h * rewards[number]["semantic"]
        mean = sum(past_returns) / len(past_returns)
        deviation = math.sqrt(
            sum((value - mean) ** 2 for value in past_returns) / len(past_returns)
        )
        assert len(past_returns) == 12  # two iterations, two articles, three texts each
        for value, advantage in zip(
            returns.tolist(), phase.rollouts.advantage.tolist(), strict=True
        ):
            assert advantage == pytest.approx(
                (value - mean) / (deviation + 1e-8), rel=1e-4, abs=1e-4
            )


@pytest.mark.parametrize("deviation", ["std", "variance"])
def test_the_article_advantage_matches_a_loop(project, deviation):
    change(baseline="article", advantage_scale=deviation)
    phase = build_phase(project)
    rewards = record_rewards(phase)

    def loop_advantages(values: list[float]) -> list[float]:
        means = [sum(values[3 * item : 3 * item + 3]) / 3 for item in range(2)]
        centered = [value - means[index // 3] for index, value in enumerate(values)]
        spread = (sum(value**2 for value in centered) / 6) ** (0.5 if deviation == "std" else 1)
        assert any(centered)
        return [value / (spread + 1e-8) for value in centered]

    for number in (1, 2):
        result = phase.batch_at(2 * (number - 1))["advantage"].tolist()
        assert rewards[-1]["literal"].view(2, 3).mean(1).unique().numel() == 2
        literal, semantic = (loop_advantages(values.tolist()) for values in rewards[-1].values())
        g, h = 0.9 ** (2.5 * number), 0.9 ** (2.5 * (4 - number))  # M = 4 iterations, K = 10
        returns = [g * x + h * y for x, y in zip(literal, semantic, strict=True)]
        assert result == pytest.approx(loop_advantages(returns), rel=1e-4)
    assert len(rewards) == 2 and not phase.reward_window  # no iteration for statistics


def test_the_article_baseline_needs_several_texts_per_article():
    with pytest.raises(ValueError, match="baseline article needs num_generations of 2 or more"):
        replace(CONFIG, baseline="article", num_generations=1)


@pytest.mark.parametrize(
    ("deviation", "expected"), [("std", math.sqrt(2 / 3)), ("variance", 2 / 3)]
)
def test_the_spread_of_returns_is_their_deviation_or_variance(deviation, expected):
    mean, spread = tippo.compute_return_statistics(torch.tensor([1.0, 2.0, 3.0]), deviation)
    assert (mean.item(), spread.item()) == pytest.approx((2, expected))


def test_tokens_after_the_end_are_ignored():
    ids = torch.tensor([[0, 5, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 5, 6, 7, 8, 9]])
    x = IGNORE_INDEX
    assert tippo.ids_to_labels(ids, end=1).tolist() == [
        [5, 0, 1, x, x],
        [1, x, x, x, x],
        [5, 6, 7, 8, 9],
    ]


def test_rollout_log_probs_match_the_sampling_distribution(project, monkeypatch):
    phase = build_phase(project)
    batch, model = phase.batch_at(0), phase.generator.model
    monkeypatch.setattr(tippo, "FORWARD_BATCH_SIZE", 2)
    with torch.no_grad():
        result = tippo.compute_rollout_log_probs(model, batch, 0.5)
    assert torch.allclose(result, log_probs_by_loop(model, batch, 0.5), atol=1e-4)


@torch.no_grad()
def log_probs_by_loop(model, batch, temperature: float) -> torch.Tensor:
    """log p of each generated token, text by text; 0 after the end.  (R, Y)"""
    output, log_probs = model.encode(batch), torch.zeros(batch["labels"].shape)
    for text, labels in enumerate(batch["labels"]):
        labels = labels[labels != IGNORE_INDEX]
        item = batch["text_of"][text : text + 1]
        ids = torch.cat([torch.zeros(1, dtype=torch.long), labels[:-1]])  # T5 starts with 0
        logits = model.t5(
            encoder_outputs=(output.hidden[item],),
            attention_mask=output.mask[item],
            decoder_input_ids=ids[None],
        ).logits[0]
        token_log_probs = (logits / temperature).log_softmax(-1)
        log_probs[text, : len(labels)] = token_log_probs[torch.arange(len(labels)), labels]
    return log_probs


def test_old_and_reference_log_probs_use_the_sampling_temperature(project):
    change(temperature=0.5)
    phase = build_phase(project)
    model, sft = phase.generator.model, generators.load_generator(project / "sft" / "model").model
    # The first steps of iteration 1, where the policy is SFT, and of iteration 2.
    for step in (0, 2):
        batch = phase.batch_at(step)
        old, reference = log_probs_by_loop(model, batch, 0.5), log_probs_by_loop(sft, batch, 0.5)
        torch.testing.assert_close(batch["old"], old, atol=1e-4, rtol=0)
        torch.testing.assert_close(batch["reference"], reference, atol=1e-4, rtol=0)
        assert torch.allclose(old, reference, atol=1e-4) == (step == 0)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.03 * torch.randn_like(weight)
        new, mask = log_probs_by_loop(model, batch, 0.5), batch["labels"] != IGNORE_INDEX
        expected = policy_loss(new, old, reference, batch["advantage"], mask, phase.config)
        terms = phase.loss(model, batch)
        assert batch["advantage"].any() and not torch.allclose(new, old, atol=0.1)
        for term in ("policy", "kl"):
            assert terms[term].item() == pytest.approx(expected[term].item(), rel=1e-3)


def test_a_window_with_one_return_is_rejected(project):
    change(num_generations=1, baseline_window=1, batch_size=1)
    with pytest.raises(InputError, match="one return, which has no deviation"):
        build_phase(project)


def test_equal_rewards_give_no_advantage(project):
    phase, rewards = build_phase(project), iter([0.0, 0.01])
    phase.train_dataset.compute_rewards = lambda indices, texts: {
        "literal": torch.full((len(indices),), next(rewards), dtype=torch.float64)
    }
    assert phase.batch_at(0)["advantage"].tolist() == [0] * 6


@pytest.mark.slow
def test_texts_are_sampled_from_the_policy_distribution(project):
    """The first token of many texts: a top-k would leave out some tokens."""
    change(num_generations=2000, batch_size=1, temperature=1.5)
    phase = build_phase(project)
    batch = phase.batch_at(0)
    first = batch["labels"][:, 0]
    model = phase.generator.model
    with torch.no_grad():
        output = model.encode(batch)
        start = torch.zeros(1, 1, dtype=torch.long)
        logits = model.t5(
            encoder_outputs=(output.hidden,), attention_mask=output.mask, decoder_input_ids=start
        ).logits[0, 0]
    expected = (logits / 1.5).softmax(-1)
    frequency = torch.bincount(first, minlength=len(expected)) / len(first)
    assert len(expected) > 50  # more than the default top-k of transformers
    error = (expected * (1 - expected) / len(first)).sqrt()
    assert ((frequency - expected).abs() <= 5 * error + 1e-3).all()
    assert torch.isclose(batch["old"][:, 0], expected[first].log(), atol=1e-4).all()


def test_iteration_zero_collects_statistics_without_a_step(project):
    phase = build_phase(project)
    before = {name: value.clone() for name, value in phase.generator.model.state_dict().items()}
    batch = phase.batch_at(0)
    assert len(phase.reward_window) == 2  # includes iteration 0
    after = phase.generator.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Policy and SFT are still equal: no ratio is clipped, and the KL divergence is 0.
    terms = phase.loss(phase.generator.model, batch)
    tokens = batch["labels"] != IGNORE_INDEX
    expected = -(batch["advantage"][:, None] * tokens).sum() / tokens.sum()
    assert terms["policy"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert terms["kl"].item() == pytest.approx(0, abs=1e-6)
    metrics = phase.step_metrics()
    assert (metrics["clip_share"], metrics["kl_to_sft"]) == pytest.approx((0, 0), abs=1e-6)


def test_a_phase_without_steps_is_validated_at_its_start(project, tmp_path):
    change(max_steps=0)
    (row,) = polish(project, tmp_path / "out")
    assert row["step"] == 0 and {"validation_loss", "validation_watch"} <= row.keys()


def test_dropout_is_off_in_the_policy(project):
    phase = build_phase(project)
    batch = phase.batch_at(0)
    model, losses = phase.generator.model, []
    for p in (0.0, 0.5):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = p
        model.train()  # as fit does
        losses.append(phase.loss(model, batch)["kl"].item())
    assert losses[0] == losses[1]


def test_every_step_records_rewards_and_the_kl_divergence_from_sft(project, tmp_path):
    steps = polish(project, tmp_path / "out")
    assert [row["step"] for row in steps] == list(range(9))
    names = {"reward_literal", "return", "entropy", "tokens", "clip_share", "kl_to_sft"}
    assert all(names | {"policy", "kl"} <= row.keys() for row in steps[1:])
    assert "reward_semantic" not in steps[1]
    assert steps[1]["reward_literal"] == steps[2]["reward_literal"] != steps[3]["reward_literal"]
    assert all(row["kl"] == pytest.approx(0.05 * row["kl_to_sft"], rel=1e-4) for row in steps[1:])
    assert not any("time" in name for row in steps for name in row)
    checks = [row for row in steps if "validation_watch" in row]
    assert [row["step"] for row in checks] == [0, 4, 8]
    for check in checks:
        gain = check["validation_reward_literal"] - checks[0]["validation_reward_literal"]
        assert check["validation_loss"] == pytest.approx(-gain)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["window", "article"])
@pytest.mark.parametrize("kill", [3, 4, 5])  # inside an iteration, and before one
def test_a_phase_killed_at_any_step_resumes_to_the_same_bits(
    project, tmp_path, kill, baseline, monkeypatch
):
    change(baseline=baseline)
    whole = polish(project, tmp_path / "whole")
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "other"))
    batch_at = tippo.PolishPPO.batch_at

    def until(self, step):
        if step == kill:
            raise InterruptedError
        return batch_at(self, step)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(tippo.PolishPPO, "batch_at", until)
        polish(project, tmp_path / "out")
    sampled, sample_texts = [], tippo.PolishPPO.sample_texts

    def count_and_sample(self, indices):
        sampled.append(indices)
        return sample_texts(self, indices)

    monkeypatch.setattr(tippo.PolishPPO, "sample_texts", count_and_sample)
    assert polish(project, tmp_path / "out") == whole
    assert article_corpus.read_files(tmp_path / "whole") == article_corpus.read_files(
        tmp_path / "out"
    )
    # Four iterations and number 0, minus those before the kill.
    assert len(sampled) == {3: 2, 4: 2, 5: 1}[kill]


@pytest.mark.slow
def test_training_raises_the_reward(project, tmp_path):
    """After a short SFT, the literal reward has room to rise."""
    change(
        max_steps=80,
        eval_steps=20,
        batch_size=3,
        num_generations=8,
        learning_rate=0.003,
        baseline_window=4,
        kl_coef=0.0,
    )
    steps = polish(project, tmp_path / "out")
    rewards = [row["reward_literal"] for row in steps if "reward_literal" in row]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.05
    scores = [row["validation_reward_literal"] for row in steps if "validation_watch" in row]
    assert max(scores[1:]) > scores[0] + 0.05


def test_the_validation_loss_is_the_gain_minus_its_error_margin(project):
    change(min_gain_standard_errors=2.0)
    phase, rewards = build_phase(project), iter([(0.4, 0.6), (0.5, 0.58), (0.5, 0.69)])
    phase.train_dataset.compute_rewards = lambda indices, texts: {
        "literal": torch.tensor(next(rewards), dtype=torch.float64)
    }
    validate = tippo.build_validator(phase, phase.train_dataset, lambda row, text: 1.0)
    first, lucky, better = (validate(phase.generator.model).loss for _ in range(3))
    assert first == 0
    assert lucky == pytest.approx(2 * 0.06 / math.sqrt(2) - 0.04)  # gains .1 and -.02
    assert better == pytest.approx(2 * 0.005 / math.sqrt(2) - 0.095)  # gains .1 and .09


@pytest.mark.parametrize(
    ("literal", "semantic", "margin", "expected"),
    [
        ([0.6, 0.4], [0.9, 0.9], 1.0, 0.1),  # the literal reward varies too much to count
        ([0.6, 0.4], [0.9, 0.8], 1.0, 0.05 - 0.05 / math.sqrt(2)),
        ([0.4, 0.4], [0.9, 0.9], 1.0, -0.1),  # a sure fall outweighs any gain
        ([0.5, 0.4], [0.9, 0.9], 1.0, -0.05 + 0.05 / math.sqrt(2)),
        ([0.5, 0.4], [0.9, 0.9], 2.0, 0.1),
        ([0.5, 0.4], [0.9, 0.9], 0.0, -0.05),
        ([0.5, 0.5], [0.8, 0.8], 2.0, 0.0),
    ],
)
def test_a_sure_gain_needs_one_reward_to_rise_and_none_to_fall(literal, semantic, margin, expected):
    def make_rewards(*values):
        names = ("literal", "semantic")
        return {
            name: torch.tensor(row, dtype=torch.float64)
            for name, row in zip(names, values, strict=True)
        }

    start = make_rewards([0.5, 0.5], [0.8, 0.8])
    result = tippo.compute_sure_gain(make_rewards(literal, semantic), start, margin)
    assert result == pytest.approx(expected)


@pytest.mark.slow
def test_the_best_weights_have_the_highest_validation_reward(project, tmp_path):
    change(max_steps=40, eval_steps=4, num_generations=4, learning_rate=0.01)
    steps = polish(project, tmp_path / "out")
    best = max(row["validation_reward_literal"] for row in steps if "validation_watch" in row)
    generator, run = (
        generators.load_generator(tmp_path / "out" / "model"),
        load_config(generators.GeneratorRun, "generators", "tippo"),
    )
    rows = [
        row | {"record": f"validation-{row['record']}"} for row in tiny_flexmuse.make_chunk_rows()
    ]
    dataset = generator.build_dataset(rows, feature_store.read_features(project / "embed"))
    texts = generator.generate(dataset.batch([0, 1]), run.generation).texts
    reward = (
        tippo.RewardedDataset(dataset, None, False)
        .compute_rewards([0, 1], texts)["literal"]
        .mean()
        .item()
    )
    assert reward == pytest.approx(best)


GOOD = {"watch": 0.8, "characters": 100.0, "entropy": 1.0, "kl_to_sft": 0.1}


@pytest.mark.parametrize(
    ("current", "reason"),
    [
        ({}, ""),
        ({"watch": 0.75}, ""),
        ({"watch": 0.69}, "quality_monitor.max_score_drop"),
        ({"kl_to_sft": 0.51}, "max_kl"),
        ({"entropy": 0.29}, "min_entropy"),
        ({"characters": 151.0}, "max_length_change"),
        ({"characters": 66.0}, "max_length_change"),
        ({"characters": 149.0, "entropy": 0.31, "kl_to_sft": 0.49, "watch": 0.71}, ""),
    ],
)
def test_a_collapse_names_its_reason(current, reason):
    config = replace(CONFIG, max_kl=0.5, min_entropy_ratio=0.3, max_length_change=0.5)
    result = tippo.find_collapse_reason(GOOD | current, GOOD, 0.1, config)
    assert reason in result and bool(result) == bool(reason)


def test_a_collapse_ends_the_phase_and_keeps_the_best_weights(project, tmp_path, capsys):
    change(max_kl=1e-9, max_steps=40)
    steps = polish(project, tmp_path / "out")
    assert len(steps) == 5  # the first validation after the start
    assert "max_kl" in capsys.readouterr().err
    before, after = (
        article_corpus.read_files(path) for path in (project / "sft/model", tmp_path / "out/model")
    )
    assert before["model.safetensors"] == after["model.safetensors"]


def test_the_papers_discounts_are_warned_about(project, tmp_path, capsys):
    tippo.warn_vanishing_discounts(replace(CONFIG, gamma=0.95, discount="literal"), 20_000)
    message = capsys.readouterr().err
    assert "R_literal weighs 1.7e-223 and R_semantic 1.7e-223" in message
    assert "in 96% of the iterations" in message  # .95^m < 1e-8 from m = 360 to M - 360
    tippo.warn_vanishing_discounts(CONFIG, 20_000)
    assert capsys.readouterr().err == ""


def test_rewards_take_the_best_reference_of_the_joined_paragraphs():
    rows = [
        [{"references": ["a", "b"]}, {"references": ["c", "d"]}],
        [{"references": ["red", "blue"]}],
    ]
    dataset = SimpleNamespace(get_chunks=rows.__getitem__, __len__=lambda: 2)
    rewarded = tippo.RewardedDataset.__new__(tippo.RewardedDataset)
    rewarded.embedder, rewarded.raw = None, False
    rewarded.references = [embedders.join_references(dataset.get_chunks(i)) for i in range(2)]
    assert rewarded.references == [["a\nc", "b\nd"], ["red", "blue"]]
    rewards = rewarded.compute_rewards([0, 1], [["b", "d"], ["blue"]])
    assert rewards["literal"].tolist() == [1, 1]
