"""PolishPPO: its statistics against loops, and the whole phase on a handful of articles."""

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
from tests.support import article_corpus, tiny_flexmuse, tiny_tippo

NUMBERS = tiny_tippo.build_preference_config(
    gamma=0.9, discount_steps=10.0, baseline_window=2, num_generations=3
)


def project(folder: Path) -> None:
    """params.yaml with a phase of four iterations."""
    article_corpus.create_project(folder)
    file = folder / "params.yaml"
    params = yaml.safe_load(file.read_text())
    run = params["generators"]["tippo"] = params["generators"]["flexmuse"] | {"model": "tippo"}
    params["models"]["tippo"]["network"] |= {"d_model": 16, "max_topic_tokens": 8, "max_images": 4}
    params["models"]["tippo"]["preference"] = asdict(NUMBERS)
    run["max_tokens"] = 32
    run["sft"] |= {"max_steps": 20, "batch_size": 3, "eval_steps": 10}
    run["preference"] |= {"max_steps": 8, "batch_size": 2, "eval_steps": 4, "learning_rate": 0.001}
    run["quality_monitor"] = {"max_eval_samples": 2, "max_score_drop": 1.0}
    run["generation"]["batch_size"] = 3
    file.write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a corpus and an SFT model."""
    place = tmp_path_factory.mktemp("polish")
    project(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("POLYMUSE_HOME", str(place / "home"))
        _, chunk, embed = article_corpus.write_article_corpus(place)
        run = load_config(generators.GeneratorRun, "generators", "tippo")
        train_sft.main(
            "tippo", run, [chunk, embed, article_corpus.write_encoder_dir(place)], place / "sft"
        )
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """That folder, with params and a work folder of the test's own."""
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return trained


def change(**numbers) -> None:
    """Of the phase, its schedule and its watch, in params.yaml."""
    file = Path("params.yaml")
    params = yaml.safe_load(file.read_text())
    run = params["generators"]["tippo"]
    for section in (
        params["models"]["tippo"]["preference"],
        run["preference"],
        run["quality_monitor"],
    ):
        section |= {name: value for name, value in numbers.items() if name in section}
    file.write_text(yaml.safe_dump(params))


def folders(place: Path) -> list[Path]:
    names = ("ingest", "chunk/pairs.parquet", "chunk", "embed", "sft/model")
    return [place / name for name in names]


def polish(place: Path, out: Path) -> list[dict[str, float]]:
    train_preference.main(
        "tippo", load_config(generators.GeneratorRun, "generators", "tippo"), folders(place), out
    )
    return history.read_history(out / "history.csv")


def phase(place: Path) -> tippo.PolishPPO:
    """The phase before its first step."""
    writer, run = (
        generators.load_generator(place / "sft" / "model"),
        load_config(generators.GeneratorRun, "generators", "tippo"),
    )
    items = writer.build_dataset(
        tiny_flexmuse.make_chunk_rows(), feature_store.read_features(place / "embed")
    )
    return tippo.PolishPPO(writer, tippo.RewardedDataset(items, None, False), run, lambda *_: None)


def noted(of_phase: tippo.PolishPPO) -> list[dict[str, torch.Tensor]]:
    """The rewards of its iterations as they come; another is added, known in closed form."""
    earned, of_items = [], of_phase.train_dataset.compute_rewards

    def rewards_of(indices, texts):
        found = of_items(indices, texts)
        earned.append(found | {"semantic": 1 - found["literal"] ** 2})
        return earned[-1]

    of_phase.train_dataset.compute_rewards = rewards_of
    return earned


def test_returns_are_compared_with_the_last_iterations_as_a_loop_does(place):
    of_phase = phase(place)
    earned = noted(of_phase)
    for number in range(4):  # the first of them before step 0, for the statistics
        if number:
            of_phase.batch_at(2 * (number - 1))
        if number < 2:
            continue
        g, h = 0.9 ** (2.5 * number), 0.9 ** (2.5 * (4 - number))  # M = 4 iterations, K = 10
        before = [
            g * literal.item() + h * semantic.item()
            for past in earned[max(0, number - 2) : number]
            for literal, semantic in zip(past["literal"], past["semantic"], strict=True)
        ]
        now = g * earned[number]["literal"] + h * earned[number]["semantic"]
        mean = sum(before) / len(before)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in before) / len(before))
        assert len(before) == 12  # two iterations of two articles with three texts
        for value, found in zip(now.tolist(), of_phase.rollouts["advantage"].tolist(), strict=True):
            assert found == pytest.approx((value - mean) / (deviation + 1e-8), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("deviation", ["std", "variance"])
def test_rewards_are_compared_with_those_of_their_article_as_a_loop_does(place, deviation):
    change(baseline="article", advantage_scale=deviation)
    of_phase = phase(place)
    earned = noted(of_phase)

    def compared(values: list[float]) -> list[float]:
        means = [sum(values[3 * item : 3 * item + 3]) / 3 for item in range(2)]
        apart = [value - means[place // 3] for place, value in enumerate(values)]
        spread = (sum(value**2 for value in apart) / 6) ** (0.5 if deviation == "std" else 1)
        assert any(apart)
        return [value / (spread + 1e-8) for value in apart]

    for number in (1, 2):
        found = of_phase.batch_at(2 * (number - 1))["advantage"].tolist()
        assert earned[-1]["literal"].view(2, 3).mean(1).unique().numel() == 2
        literal, semantic = (compared(of.tolist()) for of in earned[-1].values())
        g, h = 0.9 ** (2.5 * number), 0.9 ** (2.5 * (4 - number))  # M = 4 iterations, K = 10
        returns = [g * x + h * y for x, y in zip(literal, semantic, strict=True)]
        assert found == pytest.approx(compared(returns), rel=1e-4)
    assert len(earned) == 2 and not of_phase.reward_window  # no iteration is spent on statistics


def test_one_text_an_article_has_no_other_to_be_compared_with():
    with pytest.raises(ValueError, match="baseline article needs num_generations of 2 or more"):
        replace(NUMBERS, baseline="article", num_generations=1)


@pytest.mark.parametrize(
    ("deviation", "expected"), [("std", math.sqrt(2 / 3)), ("variance", 2 / 3)]
)
def test_the_spread_of_the_past_is_its_deviation_or_its_variance(deviation, expected):
    mean, spread = tippo.compute_return_statistics(torch.tensor([1.0, 2.0, 3.0]), deviation)
    assert (mean.item(), spread.item()) == pytest.approx((2, expected))


def test_what_follows_the_end_of_a_written_text_is_no_token_of_it():
    ids = torch.tensor([[0, 5, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 5, 6, 7, 8, 9]])
    x = IGNORE_INDEX
    assert tippo.ids_to_labels(ids, end=1).tolist() == [
        [5, 0, 1, x, x],
        [1, x, x, x, x],
        [5, 6, 7, 8, 9],
    ]


def test_log_probs_are_those_of_the_distribution_that_is_drawn_from(place, monkeypatch):
    of_phase = phase(place)
    batch, model = of_phase.batch_at(0), of_phase.generator.model
    monkeypatch.setattr(tippo, "FORWARD_BATCH_SIZE", 2)
    with torch.no_grad():
        found = tippo.compute_rollout_log_probs(model, batch, 0.5)
    assert torch.allclose(found, by_hand(model, batch, 0.5), atol=1e-4)


@torch.no_grad()
def by_hand(model, batch, temperature: float) -> torch.Tensor:
    """log p of each written token, text by text; 0 after a text's end.  (R, Y)"""
    memory, found = model.encode(batch), torch.zeros(batch["labels"].shape)
    for text, labels in enumerate(batch["labels"]):
        labels = labels[labels != IGNORE_INDEX]
        item = batch["text_of"][text : text + 1]
        ids = torch.cat([torch.zeros(1, dtype=torch.long), labels[:-1]])  # T5 starts with 0
        logits = model.t5(
            encoder_outputs=(memory.hidden[item],),
            attention_mask=memory.mask[item],
            decoder_input_ids=ids[None],
        ).logits[0]
        of_tokens = (logits / temperature).log_softmax(-1)
        found[text, : len(labels)] = of_tokens[torch.arange(len(labels)), labels]
    return found


def test_the_ratio_is_to_what_wrote_and_the_distance_to_sft_at_the_temperature_of_drawing(place):
    change(temperature=0.5)
    of_phase = phase(place)
    model, sft = of_phase.generator.model, generators.load_generator(place / "sft" / "model").model
    for step in (0, 2):  # the first of iteration 1, when the policy is SFT, and of iteration 2
        batch = of_phase.batch_at(step)
        wrote, reference = by_hand(model, batch, 0.5), by_hand(sft, batch, 0.5)
        torch.testing.assert_close(batch["old"], wrote, atol=1e-4, rtol=0)
        torch.testing.assert_close(batch["reference"], reference, atol=1e-4, rtol=0)
        assert torch.allclose(wrote, reference, atol=1e-4) == (step == 0)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.03 * torch.randn_like(weight)
        now, mask = by_hand(model, batch, 0.5), batch["labels"] != IGNORE_INDEX
        expected = policy_loss(now, wrote, reference, batch["advantage"], mask, of_phase.config)
        found = of_phase.loss(model, batch)
        assert batch["advantage"].any() and not torch.allclose(now, wrote, atol=0.1)
        for term in ("policy", "kl"):
            assert found[term].item() == pytest.approx(expected[term].item(), rel=1e-3)


def test_a_past_of_one_return_is_refused(place):
    change(num_generations=1, baseline_window=1, batch_size=1)
    with pytest.raises(InputError, match="one return, which has no deviation"):
        phase(place)


def test_texts_that_all_earn_the_same_teach_nothing(place):
    """As empty ones do."""
    of_phase, earned = phase(place), iter([0.0, 0.01])
    of_phase.train_dataset.compute_rewards = lambda indices, texts: {
        "literal": torch.full((len(indices),), next(earned), dtype=torch.float64)
    }
    assert of_phase.batch_at(0)["advantage"].tolist() == [0] * 6


def test_texts_are_drawn_with_the_probabilities_of_the_policy(place):
    """What is drawn first, many times over: no token is left out, as a top-k would do."""
    change(num_generations=2000, batch_size=1, temperature=1.5)
    of_phase = phase(place)
    batch = of_phase.batch_at(0)
    first = batch["labels"][:, 0]
    model = of_phase.generator.model
    with torch.no_grad():
        memory = model.encode(batch)
        start = torch.zeros(1, 1, dtype=torch.long)
        logits = model.t5(
            encoder_outputs=(memory.hidden,), attention_mask=memory.mask, decoder_input_ids=start
        ).logits[0, 0]
    expected = (logits / 1.5).softmax(-1)
    found = torch.bincount(first, minlength=len(expected)) / len(first)
    assert len(expected) > 50  # what transformers' default would cut
    error = (expected * (1 - expected) / len(first)).sqrt()
    assert ((found - expected).abs() <= 5 * error + 1e-3).all()
    assert torch.isclose(batch["old"][:, 0], expected[first].log(), atol=1e-4).all()


def test_the_first_iteration_makes_statistics_and_no_step(place):
    of_phase = phase(place)
    before = {name: value.clone() for name, value in of_phase.generator.model.state_dict().items()}
    batch = of_phase.batch_at(0)
    assert len(of_phase.reward_window) == 2  # of iteration 0 too
    after = of_phase.generator.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Policy and SFT are the same yet: no ratio is clipped, and nothing holds back.
    terms = of_phase.loss(of_phase.generator.model, batch)
    tokens = batch["labels"] != IGNORE_INDEX
    expected = -(batch["advantage"][:, None] * tokens).sum() / tokens.sum()
    assert terms["policy"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert terms["kl"].item() == pytest.approx(0, abs=1e-6)
    noted = of_phase.step_metrics()
    assert (noted["clip_share"], noted["kl_to_sft"]) == pytest.approx((0, 0), abs=1e-6)


def test_a_phase_of_no_steps_is_measured_as_it_starts(place, tmp_path):
    change(max_steps=0)
    (row,) = polish(place, tmp_path / "out")
    assert row["step"] == 0 and {"validation_loss", "validation_watch"} <= row.keys()


def test_the_policy_is_the_model_of_writing_dropout_is_off(place):
    of_phase = phase(place)
    batch = of_phase.batch_at(0)
    model, losses = of_phase.generator.model, []
    for p in (0.0, 0.5):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = p
        model.train()  # as fit does
        losses.append(of_phase.loss(model, batch)["kl"].item())
    assert losses[0] == losses[1]


def test_every_step_notes_what_was_earned_and_how_far_the_policy_is_from_sft(place, tmp_path):
    steps = polish(place, tmp_path / "out")
    assert [row["step"] for row in steps] == list(range(9))
    noted = {"reward_literal", "return", "entropy", "tokens", "clip_share", "kl_to_sft"}
    assert all(noted | {"policy", "kl"} <= row.keys() for row in steps[1:])
    assert "reward_semantic" not in steps[1]
    assert steps[1]["reward_literal"] == steps[2]["reward_literal"] != steps[3]["reward_literal"]
    assert all(row["kl"] == pytest.approx(0.05 * row["kl_to_sft"], rel=1e-4) for row in steps[1:])
    assert not any("time" in name for row in steps for name in row)
    checks = [row for row in steps if "validation_watch" in row]
    assert [row["step"] for row in checks] == [0, 4, 8]
    for check in checks:
        gain = check["validation_reward_literal"] - checks[0]["validation_reward_literal"]
        assert check["validation_loss"] == pytest.approx(-gain)


@pytest.mark.parametrize("baseline", ["window", "article"])
@pytest.mark.parametrize("kill", [3, 4, 5])  # inside an iteration, and before one
def test_a_phase_killed_at_any_step_ends_with_the_same_bits(
    place, tmp_path, kill, baseline, monkeypatch
):
    change(baseline=baseline)
    whole = polish(place, tmp_path / "whole")
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "other"))
    batch_at = tippo.PolishPPO.batch_at

    def until(self, step):
        if step == kill:
            raise InterruptedError
        return batch_at(self, step)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(tippo.PolishPPO, "batch_at", until)
        polish(place, tmp_path / "out")
    drawn, draw = [], tippo.PolishPPO.sample_texts

    def counted(self, indices):
        drawn.append(indices)
        return draw(self, indices)

    monkeypatch.setattr(tippo.PolishPPO, "sample_texts", counted)
    assert polish(place, tmp_path / "out") == whole
    assert article_corpus.read_files(tmp_path / "whole") == article_corpus.read_files(
        tmp_path / "out"
    )
    assert len(drawn) == {3: 2, 4: 2, 5: 1}[kill]  # four iterations and the first, less those made


def test_a_reward_that_can_be_raised_is_raised(place, tmp_path):
    """Articles learned for a moment only: the letters of what is drawn come nearer to them."""
    change(
        max_steps=80,
        eval_steps=20,
        batch_size=3,
        num_generations=8,
        learning_rate=0.003,
        baseline_window=4,
        kl_coef=0.0,
    )
    steps = polish(place, tmp_path / "out")
    earned = [row["reward_literal"] for row in steps if "reward_literal" in row]
    assert sum(earned[-10:]) / 10 > sum(earned[:10]) / 10 + 0.05
    written = [row["validation_reward_literal"] for row in steps if "validation_watch" in row]
    assert max(written[1:]) > written[0] + 0.05


def test_weights_are_better_than_those_of_sft_by_more_than_the_error_of_the_gain(place):
    change(min_gain_standard_errors=2.0)
    of_phase, earned = phase(place), iter([(0.4, 0.6), (0.5, 0.58), (0.5, 0.69)])
    of_phase.train_dataset.compute_rewards = lambda indices, texts: {
        "literal": torch.tensor(next(earned), dtype=torch.float64)
    }
    validate = tippo.build_validator(of_phase, of_phase.train_dataset, lambda row, text: 1.0)
    first, lucky, better = (validate(of_phase.generator.model).loss for _ in range(3))
    assert first == 0
    assert lucky == pytest.approx(2 * 0.06 / math.sqrt(2) - 0.04)  # gains .1 and -.02
    assert better == pytest.approx(2 * 0.005 / math.sqrt(2) - 0.095)  # gains .1 and .09


@pytest.mark.parametrize(
    ("literal", "semantic", "margin", "expected"),
    [
        ([0.6, 0.4], [0.9, 0.9], 1.0, 0.1),  # letters lie too far apart to say anything
        ([0.6, 0.4], [0.9, 0.8], 1.0, 0.05 - 0.05 / math.sqrt(2)),
        ([0.4, 0.4], [0.9, 0.9], 1.0, -0.1),  # a sure fall, whatever else has risen
        ([0.5, 0.4], [0.9, 0.9], 1.0, -0.05 + 0.05 / math.sqrt(2)),
        ([0.5, 0.4], [0.9, 0.9], 2.0, 0.1),
        ([0.5, 0.4], [0.9, 0.9], 0.0, -0.05),
        ([0.5, 0.5], [0.8, 0.8], 2.0, 0.0),
    ],
)
def test_one_reward_has_to_rise_and_none_may_fall(literal, semantic, margin, expected):
    def rewarded(*values):
        names = ("literal", "semantic")
        return {
            name: torch.tensor(of, dtype=torch.float64)
            for name, of in zip(names, values, strict=True)
        }

    start = rewarded([0.5, 0.5], [0.8, 0.8])
    found = tippo.compute_sure_gain(rewarded(literal, semantic), start, margin)
    assert found == pytest.approx(expected)


def test_the_best_weights_are_those_whose_texts_earn_most(place, tmp_path):
    change(max_steps=40, eval_steps=4, num_generations=4, learning_rate=0.01)
    steps = polish(place, tmp_path / "out")
    best = max(row["validation_reward_literal"] for row in steps if "validation_watch" in row)
    writer, run = (
        generators.load_generator(tmp_path / "out" / "model"),
        load_config(generators.GeneratorRun, "generators", "tippo"),
    )
    rows = [
        row | {"record": f"validation-{row['record']}"} for row in tiny_flexmuse.make_chunk_rows()
    ]
    items = writer.build_dataset(rows, feature_store.read_features(place / "embed"))
    texts = writer.generate(items.batch([0, 1]), run.generation).texts
    earned = (
        tippo.RewardedDataset(items, None, False)
        .compute_rewards([0, 1], texts)["literal"]
        .mean()
        .item()
    )
    assert earned == pytest.approx(best)


GOOD = {"watch": 0.8, "characters": 100.0, "entropy": 1.0, "kl_to_sft": 0.1}


@pytest.mark.parametrize(
    ("now", "reason"),
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
def test_a_collapse_is_named(now, reason):
    numbers = replace(NUMBERS, max_kl=0.5, min_entropy_ratio=0.3, max_length_change=0.5)
    found = tippo.find_collapse_reason(GOOD | now, GOOD, 0.1, numbers)
    assert reason in found and bool(found) == bool(reason)


def test_a_collapse_ends_the_phase_and_keeps_the_weights_from_before(place, tmp_path, capsys):
    change(max_kl=1e-9, max_steps=40)
    steps = polish(place, tmp_path / "out")
    assert len(steps) == 5 and "max_kl" in capsys.readouterr().err  # at the first check after start
    before, after = (
        article_corpus.read_files(path) for path in (place / "sft/model", tmp_path / "out/model")
    )
    assert before["model.safetensors"] == after["model.safetensors"]


def test_the_paper_s_own_discounts_are_warned_of_with_numbers(place, tmp_path, capsys):
    tippo.warn_vanishing_discounts(replace(NUMBERS, gamma=0.95, discount="literal"), 20_000)
    said = capsys.readouterr().err
    assert "R_literal weighs 1.7e-223 and R_semantic 1.7e-223" in said
    assert "in 96% of the iterations" in said  # .95^m < 1e-8 from m = 360 to M - 360
    tippo.warn_vanishing_discounts(NUMBERS, 20_000)
    assert capsys.readouterr().err == ""


def test_of_several_references_the_best_counts_and_an_article_is_its_paragraphs():
    rows = [
        [{"references": ["a", "b"]}, {"references": ["c", "d"]}],
        [{"references": ["red", "blue"]}],
    ]
    items = SimpleNamespace(get_chunks=rows.__getitem__, __len__=lambda: 2)
    rewarded = tippo.RewardedDataset.__new__(tippo.RewardedDataset)
    rewarded.embedder, rewarded.raw = None, False
    rewarded.references = [embedders.join_references(items.get_chunks(i)) for i in range(2)]
    assert rewarded.references == [["a\nc", "b\nd"], ["red", "blue"]]
    earned = rewarded.compute_rewards([0, 1], [["b", "d"], ["blue"]])
    assert earned["literal"].tolist() == [1, 1]
