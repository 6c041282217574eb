import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter, OrderedDict
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from stages.shared.data import history
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device
from stages.shared.training import loop
from stages.shared.training.batching import Prefetcher, length_bucketed_batch, shuffled_batch
from stages.shared.training.checkpoint import Checkpoint, fingerprint
from stages.shared.training.loop import ValidationResult, _parameter_groups
from stages.shared.training.schedule import Schedule
from tests.support.project_files import ROOT

fit = partial(loop.fit, checkpoint_interval_seconds=0.0)  # a checkpoint after every step


def schedule(**changes) -> Schedule:
    values = {
        "seed": 3,
        "max_steps": 30,
        "batch_size": 4,
        "learning_rate": 0.05,
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "eval_steps": 10,
        "patience": 10,
        "lr_scheduler_type": "cosine",
        "keep": "best",
    }
    return Schedule(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1}, "max_steps\n.*greater than or equal to 0"),
        ({"batch_size": 0}, "batch_size\n.*greater than or equal to 1"),
        ({"learning_rate": -0.1}, "learning_rate\n.*greater than or equal to 0"),
        ({"warmup_ratio": 1.5}, "warmup_ratio\n.*less than or equal to 1"),
        ({"weight_decay": -1.0}, "weight_decay\n.*greater than or equal to 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm\n.*greater than or equal to 0"),
        ({"eval_steps": 0}, "eval_steps\n.*greater than or equal to 1"),
        ({"patience": 0}, "patience\n.*greater than or equal to 1"),
    ],
)
def test_values_out_of_bounds_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        schedule(**changes)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return tmp_path


def regression():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(16, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])

    def loss(model, batch):
        noise = 0.01 * torch.randn_like(batch["y"])  # random like a sampled gate
        return {"error": (model(batch["x"]) - batch["y"] + noise).square().mean()}

    def batch_at(step):
        rows = shuffled_batch(16, 4, 0, step)
        return {"x": x[rows], "y": y[rows]}

    return model, loss, batch_at


def test_a_batch_is_memorized_and_every_loss_term_is_in_the_history(project):
    model, loss, batch_at = regression()
    rows = fit(model, loss, batch_at, schedule(max_steps=200), name="t", key="k")
    assert [row["step"] for row in rows] == list(range(1, 201))
    assert rows[-1]["error"] == rows[-1]["loss"] < 0.01 < rows[0]["loss"]


def test_after_step_follows_the_update_and_precedes_the_validation(project):
    model, loss, batch_at = regression()
    events, weights = [], model.weight.detach().clone()

    def after_step(current):
        assert current is model and not torch.equal(current.weight, weights)
        weights.copy_(current.weight.detach())
        events.append("step")

    def validate(current):
        events.append("validation")
        return ValidationResult({}, 1.0)

    config = schedule(max_steps=2, eval_steps=1, warmup_ratio=0.0)
    fit(
        model,
        loss,
        batch_at,
        config,
        name="hook",
        key="k",
        validate=validate,
        after_step=after_step,
    )
    assert events == ["validation", "step", "validation", "step", "validation"]


@pytest.mark.parametrize(
    ("validated", "expected"), [(True, {"step": 0, "validation_loss": 3.0}), (False, {"step": 0})]
)
def test_a_run_without_steps_keeps_its_weights_and_has_one_row(project, validated, expected):
    model, loss, batch_at = regression()
    before = [weight.clone() for weight in model.parameters()]
    validate = (lambda model: ValidationResult({}, 3.0)) if validated else None
    rows = fit(model, loss, batch_at, schedule(max_steps=0), name="a", key="k", validate=validate)
    assert rows == [expected]
    assert all(map(torch.equal, model.parameters(), before))
    history.write_history(project / "history.csv", rows)
    assert history.read_history(project / "history.csv") == rows
    header = (project / "history.csv").read_text().split("\n")[0].split(",")
    assert header[:2] == ["step", "loss"]  # plotted by dvc.yaml


def test_each_epoch_has_every_item_once_in_another_order():
    first, second = (
        [i for s in steps for i in shuffled_batch(8, 4, 0, s)] for steps in ((0, 1), (2, 3))
    )
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second
    larger_than_dataset = shuffled_batch(3, 6, 0, 0)
    assert sorted(larger_than_dataset) == [0, 0, 1, 1, 2, 2]


def test_buckets_group_items_by_length_and_every_epoch_has_each_once():
    lengths = torch.randint(1, 100, (512,), generator=torch.Generator().manual_seed(0)).tolist()

    def padded(batches):
        """The fraction of padding in the batches."""
        rows = [[lengths[item] for item in batch] for batch in batches]
        return 1 - sum(map(sum, rows)) / sum(max(row) * len(row) for row in rows)

    batches = [length_bucketed_batch(lengths, 16, 0, step) for step in range(64)]
    for epoch in batches[:32], batches[32:]:
        assert sorted(item for batch in epoch for item in batch) == list(range(512))
    assert {frozenset(batch) for batch in batches[:32]}.isdisjoint(map(frozenset, batches[32:]))
    assert (
        padded(batches)
        < 0.12
        < 0.4
        < padded(shuffled_batch(512, 16, 0, step) for step in range(64))
    )
    assert batches == [length_bucketed_batch(lengths, 16, 0, step) for step in range(64)]
    assert batches[0] != length_bucketed_batch(lengths, 16, 1, 0)
    longest = [max(lengths[item] for item in batch) for batch in batches[:8]]
    assert longest != sorted(longest)  # batches are not sorted by length


@pytest.mark.parametrize(("items", "batch"), [(1, 4), (3, 6), (7, 2), (16, 4)])
def test_buckets_of_few_items_have_each_item_equally_often(items, batch):
    counts = Counter(
        i for step in range(items) for i in length_bucketed_batch([5] * items, batch, 0, step)
    )
    assert counts == dict.fromkeys(range(items), batch)


def test_the_learning_rate_warms_up_and_decays_to_zero():
    scales = [schedule(max_steps=100).lr_scale(step) for step in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[9] == scales[10] == max(scales) == 1.0
    assert scales[99] < 0.001


@pytest.mark.parametrize(
    ("kind", "expected"), [("linear", [1.0, 0.75, 0.5, 0.25]), ("constant", [1.0] * 4)]
)
def test_after_the_warm_up_the_learning_rate_decays_linearly_or_stays(kind, expected):
    """10 of 50 steps are warm-up; the others are 40, of which 0, 10, 20 and 30 have passed."""
    config = schedule(max_steps=50, warmup_ratio=0.2, lr_scheduler_type=kind)
    assert [config.lr_scale(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [config.lr_scale(step) for step in (10, 20, 30, 40)] == pytest.approx(expected)


def test_training_is_on_the_device_of_all_stages(project, monkeypatch):
    """accelerate would choose Apple's GPU, which encoders and generation do not use."""
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    model, loss, batch_at = regression()
    devices = []

    def record_device(model, batch):
        devices.append(batch["x"].device)
        return loss(model, batch)

    fit(model, record_device, batch_at, schedule(max_steps=1), name="t", key="k")
    assert devices == [get_device()]


def test_an_interrupted_run_resumes_to_the_same_bits(project):
    uninterrupted, loss, batch_at = regression()
    expected = fit(uninterrupted, loss, batch_at, schedule(), name="whole", key="k")

    class Killed(Exception):
        pass

    def until(step):
        if step == 17:
            raise Killed
        return batch_at(step)

    interrupted, loss, _ = regression()
    with pytest.raises(Killed):
        fit(interrupted, loss, until, schedule(), name="broken", key="k")
    resumed, loss, _ = regression()
    steps, logged = [], []
    history = fit(
        resumed,
        loss,
        lambda step: steps.append(step) or batch_at(step),
        schedule(),
        name="broken",
        key="k",
        log=lambda metrics, step: logged.append(step),
    )
    assert steps == list(range(17, 30))
    assert logged == list(range(1, 31))  # steps before the interruption are tracked again
    assert history == expected
    assert all(map(torch.equal, uninterrupted.parameters(), resumed.parameters()))


class NoisyPhase:
    """A phase that computes noise from the current weights every three steps."""

    def __init__(self, model, batch_at):
        self.model, self.batch_at, self.steps, self.noise = model, batch_at, [], None

    def batch(self, step):
        self.steps.append(step)
        if step % 3 == 0:
            with torch.no_grad():
                self.noise = self.model(torch.ones(1, 3)).sum() + torch.tensor(float(step))
        batch = self.batch_at(step)
        return batch | {"y": batch["y"] + 0.01 * self.noise}

    def state_dict(self):
        return {"noise": self.noise, "steps": self.steps}

    def load_state_dict(self, state):
        self.noise, self.steps = state["noise"], state["steps"]

    def step_metrics(self):
        return {"noise": self.noise.item()}


@pytest.mark.parametrize("kill", [15, 16, 17])  # before and within three steps
def test_the_state_of_a_phase_is_resumed_and_its_metrics_are_recorded(project, kill):
    uninterrupted, loss, batch_at = regression()
    phase = NoisyPhase(uninterrupted, batch_at)
    expected = fit(uninterrupted, loss, phase.batch, schedule(), name="whole", key="k", phase=phase)
    assert expected[4]["noise"] == expected[3]["noise"] != expected[2]["noise"]
    interrupted, _, _ = regression()
    first = NoisyPhase(interrupted, batch_at)

    def until(step):
        if step == kill:
            raise InterruptedError
        return first.batch(step)

    with pytest.raises(InterruptedError):
        fit(interrupted, loss, until, schedule(), name="broken", key="k", phase=first)
    resumed, _, _ = regression()
    second = NoisyPhase(resumed, batch_at)
    history = fit(resumed, loss, second.batch, schedule(), name="broken", key="k", phase=second)
    assert history == expected and second.steps == list(range(30))
    assert all(map(torch.equal, uninterrupted.parameters(), resumed.parameters()))


def layered():
    """Like `regression` with two layers, body and head."""
    _, loss, batch_at = regression()
    torch.manual_seed(1)
    model = nn.Sequential(OrderedDict(body=nn.Linear(3, 3), head=nn.Linear(3, 1)))
    return model, loss, batch_at


def weight_changes(lr_multipliers, **changes):
    """The change of each weight after one step of Adam without decay."""
    model, loss, batch_at = layered()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    changes = {"max_steps": 1, "warmup_ratio": 0.0, "weight_decay": 0.0} | changes
    fit(
        model,
        loss,
        batch_at,
        schedule(**changes),
        name="a",
        key=f"{lr_multipliers}",
        lr_multipliers=lr_multipliers,
    )
    return {name: (weight - before[name]).abs() for name, weight in model.named_parameters()}


def test_learning_rates_are_multiplied_by_prefix(project):
    """The first step of Adam equals the learning rate for any gradient."""
    steps = {
        name: step.max().item()
        for name, step in weight_changes({"body.": 0.1, "other.": 9.0}).items()
    }
    assert steps == pytest.approx(
        {"body.weight": 0.005, "body.bias": 0.005, "head.weight": 0.05, "head.bias": 0.05}, rel=1e-3
    )


def test_the_longest_matching_prefix_counts(project):
    steps = weight_changes({"": 0.5, "body.": 0.1, "body.bias": 0.0})
    assert steps["body.weight"].max().item() == pytest.approx(0.005, rel=1e-3)
    assert steps["body.bias"].max().item() == 0.0
    assert steps["head.bias"].max().item() == pytest.approx(0.025, rel=1e-3)


def test_matrices_decay_and_biases_do_not_in_every_group(project):
    model, _, _ = layered()
    groups = _parameter_groups(model, schedule(weight_decay=0.3), {"body.": 0.1})
    settings = [
        (g["factor"], g["weight_decay"], [tuple(w.shape) for w in g["params"]]) for g in groups
    ]
    assert sorted(settings) == [
        (0.1, 0.0, [(3,)]),
        (0.1, 0.3, [(3, 3)]),
        (1.0, 0.0, [(1,)]),
        (1.0, 0.3, [(1, 3)]),
    ]


def test_the_gains_of_weight_norm_do_not_decay():
    convolution = weight_norm(nn.Conv2d(3, 5, 2))
    decaying, still = _parameter_groups(convolution, schedule(weight_decay=0.3), {})
    assert [tuple(w.shape) for w in decaying["params"]] == [(5, 3, 2, 2)]
    assert sorted(tuple(w.shape) for w in still["params"]) == [(5,), (5, 1, 1, 1)]


def test_a_resumed_run_keeps_the_learning_rate_multipliers(project):
    lr_multipliers = {"body.": 0.1}
    uninterrupted, loss, batch_at = layered()
    expected = fit(
        uninterrupted,
        loss,
        batch_at,
        schedule(),
        name="whole",
        key="k",
        lr_multipliers=lr_multipliers,
    )

    def until(step):
        if step == 17:
            raise InterruptedError
        return batch_at(step)

    interrupted, _, _ = layered()
    with pytest.raises(InterruptedError):
        fit(
            interrupted,
            loss,
            until,
            schedule(),
            name="broken",
            key="k",
            lr_multipliers=lr_multipliers,
        )
    resumed, _, _ = layered()
    assert (
        fit(
            resumed,
            loss,
            batch_at,
            schedule(),
            name="broken",
            key="k",
            lr_multipliers=lr_multipliers,
        )
        == expected
    )
    assert all(map(torch.equal, uninterrupted.parameters(), resumed.parameters()))
    uniform, _, _ = layered()
    fit(uniform, loss, batch_at, schedule(), name="even", key="k")
    assert not torch.equal(uniform.body.weight, uninterrupted.body.weight)


def test_another_key_starts_from_scratch(project):
    model, loss, batch_at = regression()
    fit(model, loss, batch_at, schedule(), name="t", key="one")
    steps = []
    fit(model, loss, lambda s: steps.append(s) or batch_at(s), schedule(), name="t", key="two")
    assert steps[0] == 0
    assert Checkpoint("t", "one").read() is None  # one checkpoint per run is kept


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(project):
    script = project / "train.py"
    script.write_text(
        textwrap.dedent("""
        import sys, time, torch
        from tests.shared.training.test_loop import fit, regression, schedule
        model, loss, batch_at = regression()
        def slow(step):
            print(step, flush=True)
            time.sleep(float(sys.argv[2]))
            return batch_at(step)
        fit(model, loss, slow, schedule(), name=sys.argv[1], key="k")
        torch.save(model.state_dict(), sys.argv[1] + ".pt")
    """)
    )
    root = str(ROOT)
    environment = os.environ | {"PYTHONPATH": root}

    def start(name, pause):
        command = [sys.executable, str(script), name, str(pause)]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    killed = start("killed", 0.05)
    while int(killed.stdout.readline()) < 12:
        pass
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    resumed_run, uninterrupted = start("killed", 0), start("whole", 0)
    steps = resumed_run.communicate()[0].split()
    uninterrupted.communicate()
    assert int(steps[0]) >= 12  # it has resumed
    first, second = torch.load("killed.pt"), torch.load("whole.pt")
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_the_best_weights_are_kept_and_patience_ends_the_run(project):
    model, loss, batch_at = regression()
    losses = iter([5.0, 1.0, 2.0, 3.0])
    states = []

    def validate(model):
        states.append({name: w.clone() for name, w in model.state_dict().items()})
        return ValidationResult({}, next(losses))

    rows = fit(
        model,
        loss,
        batch_at,
        schedule(max_steps=100, patience=2),
        name="t",
        key="k",
        validate=validate,
    )
    assert rows[-1]["step"] == 30  # best at 10, then two validations without improvement
    assert torch.equal(model.weight, states[1]["weight"])
    assert not torch.equal(model.weight, states[-1]["weight"])


def test_the_last_weights_are_kept_if_the_schedule_says_so(project):
    model, loss, batch_at = regression()
    states = []

    def validate(model):
        states.append(model.weight.detach().clone())
        return ValidationResult({}, float(len(states)))  # the first is the best

    config = schedule(keep="last")
    fit(model, loss, batch_at, config, name="t", key="k", validate=validate)
    assert torch.equal(model.weight, states[-1]) and not torch.equal(model.weight, states[0])


def test_a_validation_can_stop_the_run_and_its_weights_are_not_kept(project):
    model, loss, batch_at = regression()
    start = model.weight.detach().clone()
    results = iter([ValidationResult({}, 5.0), ValidationResult({"watch": 0.1}, 0.0, stop=True)])
    rows = fit(
        model, loss, batch_at, schedule(), name="t", key="k", validate=lambda model: next(results)
    )
    assert rows[-1]["step"] == 10
    assert rows[-1]["validation_watch"] == 0.1
    assert torch.equal(model.weight, start)


def test_a_loss_that_is_not_finite_is_an_input_error(project):
    model, _, batch_at = regression()
    with pytest.raises(InputError, match="lower learning_rate"):
        fit(
            model,
            lambda model, batch: {"error": model(batch["x"]).sum() * float("nan")},
            batch_at,
            schedule(),
            name="t",
            key="k",
        )


def test_the_fingerprint_depends_on_configs_weights_dropout_and_inputs(tmp_path):
    (tmp_path / "a").write_text("1")
    torch.manual_seed(0)
    keys = {fingerprint([schedule(), nn.Linear(2, 2)], [tmp_path], "align")}
    torch.manual_seed(0)
    keys.add(fingerprint([schedule(), nn.Linear(2, 2)], [tmp_path], "align"))
    assert len(keys) == 1
    torch.manual_seed(0)
    keys.add(fingerprint([schedule(max_steps=31), nn.Linear(2, 2)], [tmp_path], "align"))
    keys.add(fingerprint([schedule(), nn.Linear(2, 2)], [tmp_path], "align"))  # other weights
    for rate in (0.1, 0.2):
        keys.add(fingerprint([schedule(), nn.Dropout(rate)], [tmp_path], "align"))
    (tmp_path / "a").write_text("2")
    torch.manual_seed(0)
    keys.add(fingerprint([schedule(), nn.Linear(2, 2)], [tmp_path], "align"))
    assert len(keys) == 6


def test_the_shuffle_of_an_epoch_is_drawn_once(monkeypatch):
    num_draws = 0

    def count_draws(*arguments, **options):
        nonlocal num_draws
        num_draws += 1
        return randperm(*arguments, **options)

    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", count_draws)
    batches = [shuffled_batch(1001, 7, 12, step) for step in range(286)]
    assert num_draws == 2
    generator = torch.Generator().manual_seed(12 * 1_000_003)
    first_epoch = [item for batch in batches[:143] for item in batch]
    assert first_epoch == randperm(1001, generator=generator).tolist()


@pytest.mark.parametrize(
    ("cost", "least_interval", "pause"), [(0.1, 20.0, 20.0), (4.0, 20.0, 200.0), (4.0, 0.0, 0.0)]
)
def test_checkpoints_take_at_most_two_percent_of_the_time(cost, least_interval, pause):
    assert loop.compute_checkpoint_pause(cost, least_interval) == pause


def test_slow_checkpoints_are_rare(project, monkeypatch):
    """A step takes 1 s and a checkpoint 3 s: one after 20 s, the next 150 s later."""
    model, loss, batch_at = regression()
    clock, saved = [0.0], []

    def step_of_one_second(model, batch):
        clock[0] += 1
        return loss(model, batch)

    def write_in_three_seconds(self, state):
        clock[0] += 3
        saved.append(state["plain"][0])

    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Checkpoint, "write", write_in_three_seconds)
    config = schedule(max_steps=400, eval_steps=1000)
    arguments = {"name": "slow", "key": "k", "checkpoint_interval_seconds": 20.0}
    loop.fit(model, step_of_one_second, batch_at, config, **arguments)
    assert saved == [21, 172, 323]


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_the_history_does_not_depend_on_when_losses_are_fetched(project, monkeypatch, seconds):
    model, loss, batch_at = regression()
    expected = fit(model, loss, batch_at, schedule(), name="each", key="k")
    monkeypatch.setattr(loop, "FETCH_SECONDS", seconds)
    logged, (model, loss, batch_at) = [], regression()
    rows = loop.fit(
        model,
        loss,
        batch_at,
        schedule(),
        name="late",
        key="k",
        checkpoint_interval_seconds=1e9,
        validate=lambda model: ValidationResult({}, 1.0),
        log=lambda metrics, step: logged.append(step),
    )
    assert [{k: row[k] for k in expected[0]} for row in rows[1:]] == expected
    assert logged == list(range(31))


def test_a_loss_that_is_fetched_late_is_named_by_its_step(project, monkeypatch):
    model, loss, batch_at = regression()
    monkeypatch.setattr(loop, "FETCH_SECONDS", 1e9)

    def nan_at_step_4(model, batch):
        terms = loss(model, batch)
        return {"error": terms["error"] * (float("nan") if batch["step"] == 3 else 1)}

    with pytest.raises(InputError, match="nan at step 4:"):
        loop.fit(
            model,
            nan_at_step_4,
            lambda step: batch_at(step) | {"step": step},
            schedule(),
            name="t",
            key="k",
            checkpoint_interval_seconds=1e9,
        )


def test_prefetched_batches_are_those_of_the_steps():
    made = []

    def batch_at(step):
        made.append(step)
        if step == 5:
            raise InputError("a damaged image")
        return {"items": torch.tensor(shuffled_batch(16, 4, 0, step)), "step": step}

    prefetched = Prefetcher(batch_at, 7)
    for step in (2, 3, 4):
        batch = prefetched(step)
        assert batch["step"] == step
        assert batch["items"].tolist() == shuffled_batch(16, 4, 0, step)
    with pytest.raises(InputError, match="damaged"):
        prefetched(5)
    assert prefetched(6)["step"] == 6 and made == [2, 3, 4, 5, 6]  # none beyond the last step
