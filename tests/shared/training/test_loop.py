import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter, OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from stages.shared.data import history
from stages.shared.runtime.stage import InputError
from stages.shared.training.batching import length_bucketed_batch, shuffled_batch
from stages.shared.training.checkpoint import Checkpoint, fingerprint
from stages.shared.training.loop import ValidationResult, _parameter_groups, fit
from stages.shared.training.schedule import Schedule
from tests.support.project_files import ROOT

PARAMS = "training:\n  checkpoint_interval_seconds: {seconds}\n"


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
    }
    return Schedule(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
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
def test_numbers_out_of_bounds_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        schedule(**changes)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(PARAMS.format(seconds=0.0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return tmp_path


def regression():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(16, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])

    def loss(model, batch):
        noise = 0.01 * torch.randn_like(batch["y"])  # randomness in the step, as a gate has
        return {"error": (model(batch["x"]) - batch["y"] + noise).square().mean()}

    def batch_at(step):
        rows = shuffled_batch(16, 4, 0, step)
        return {"x": x[rows], "y": y[rows]}

    return model, loss, batch_at


def test_a_batch_is_memorised_and_every_term_is_in_the_history(workplace):
    model, loss, batch_at = regression()
    rows = fit(model, loss, batch_at, schedule(max_steps=200), name="t", key="k")
    assert [row["step"] for row in rows] == list(range(1, 201))
    assert rows[-1]["error"] == rows[-1]["loss"] < 0.01 < rows[0]["loss"]


@pytest.mark.parametrize(
    ("validated", "expected"), [(True, {"step": 0, "validation_loss": 3.0}), (False, {"step": 0})]
)
def test_a_run_of_no_steps_keeps_its_weights_and_has_a_row(workplace, validated, expected):
    model, loss, batch_at = regression()
    before = [weight.clone() for weight in model.parameters()]
    validate = (lambda model: ValidationResult({}, 3.0)) if validated else None
    rows = fit(model, loss, batch_at, schedule(max_steps=0), name="a", key="k", validate=validate)
    assert rows == [expected]
    assert all(map(torch.equal, model.parameters(), before))
    history.write_history(workplace / "history.csv", rows)
    assert history.read_history(workplace / "history.csv") == rows
    header = (workplace / "history.csv").read_text().split("\n")[0].split(",")
    assert header[:2] == ["step", "loss"]  # what dvc.yaml plots


def test_each_epoch_shows_every_item_once_in_another_order():
    first, second = (
        [i for s in steps for i in shuffled_batch(8, 4, 0, s)] for steps in ((0, 1), (2, 3))
    )
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second
    assert sorted(shuffled_batch(3, 6, 0, 0)) == [0, 0, 1, 1, 2, 2]  # a batch larger than the data


def test_items_of_like_length_share_a_batch_and_every_epoch_shows_each_once():
    lengths = torch.randint(1, 100, (512,), generator=torch.Generator().manual_seed(0)).tolist()

    def padded(batches):
        """The share of what batches hold that is padding."""
        rows = [[lengths[item] for item in batch] for batch in batches]
        return 1 - sum(map(sum, rows)) / sum(max(row) * len(row) for row in rows)

    found = [length_bucketed_batch(lengths, 16, 0, step) for step in range(64)]
    for epoch in found[:32], found[32:]:
        assert sorted(item for batch in epoch for item in batch) == list(range(512))
    assert {frozenset(batch) for batch in found[:32]}.isdisjoint(map(frozenset, found[32:]))
    assert (
        padded(found) < 0.12 < 0.4 < padded(shuffled_batch(512, 16, 0, step) for step in range(64))
    )
    assert found == [length_bucketed_batch(lengths, 16, 0, step) for step in range(64)]
    assert found[0] != length_bucketed_batch(lengths, 16, 1, 0)
    longest = [max(lengths[item] for item in batch) for batch in found[:8]]
    assert longest != sorted(longest)  # the short do not always come first


@pytest.mark.parametrize(("items", "batch"), [(1, 4), (3, 6), (7, 2), (16, 4)])
def test_buckets_of_few_items_show_all_of_them_as_often(items, batch):
    shown = Counter(
        i for step in range(items) for i in length_bucketed_batch([5] * items, batch, 0, step)
    )
    assert shown == dict.fromkeys(range(items), batch)


def test_the_learning_rate_warms_up_to_its_peak_and_ends_near_zero():
    rates = [schedule(max_steps=100).lr_scale(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[99] < 0.001


def test_a_stopped_run_goes_on_from_its_checkpoint_to_the_same_bits(workplace):
    whole, loss, batch_at = regression()
    expected = fit(whole, loss, batch_at, schedule(), name="whole", key="k")

    class Killed(Exception):
        pass

    def until(step):
        if step == 17:
            raise Killed
        return batch_at(step)

    broken, loss, _ = regression()
    with pytest.raises(Killed):
        fit(broken, loss, until, schedule(), name="broken", key="k")
    resumed, loss, _ = regression()
    asked, logged = [], []
    history = fit(
        resumed,
        loss,
        lambda step: asked.append(step) or batch_at(step),
        schedule(),
        name="broken",
        key="k",
        log=lambda metrics, step: logged.append(step),
    )
    assert asked == list(range(17, 30))
    assert logged == list(range(1, 31))  # what came before the kill is tracked again
    assert history == expected
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


class Drawing:
    """A phase that draws noise from the present weights, for three steps at a time."""

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


@pytest.mark.parametrize("kill", [15, 16, 17])  # before the first step of three, and inside
def test_what_a_phase_keeps_is_resumed_with_the_weights_and_what_it_notes_is_told(workplace, kill):
    whole, loss, batch_at = regression()
    phase = Drawing(whole, batch_at)
    expected = fit(whole, loss, phase.batch, schedule(), name="whole", key="k", phase=phase)
    assert expected[4]["noise"] == expected[3]["noise"] != expected[2]["noise"]
    broken, _, _ = regression()
    first = Drawing(broken, batch_at)

    def until(step):
        if step == kill:
            raise InterruptedError
        return first.batch(step)

    with pytest.raises(InterruptedError):
        fit(broken, loss, until, schedule(), name="broken", key="k", phase=first)
    resumed, _, _ = regression()
    second = Drawing(resumed, batch_at)
    history = fit(resumed, loss, second.batch, schedule(), name="broken", key="k", phase=second)
    assert history == expected and second.steps == list(range(30))
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def layered():
    """As `regression`, of two layers: `body` was trained before, `head` was not."""
    _, loss, batch_at = regression()
    torch.manual_seed(1)
    model = nn.Sequential(OrderedDict(body=nn.Linear(3, 3), head=nn.Linear(3, 1)))
    return model, loss, batch_at


def moved(rates, **changes):
    """How far each weight is from its start after one step of Adam without decay."""
    model, loss, batch_at = layered()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    changes = {"max_steps": 1, "warmup_ratio": 0.0, "weight_decay": 0.0} | changes
    fit(model, loss, batch_at, schedule(**changes), name="a", key=f"{rates}", lr_multipliers=rates)
    return {name: (weight - before[name]).abs() for name, weight in model.named_parameters()}


def test_weights_of_a_name_learn_at_their_own_share_of_the_rate(workplace):
    """The first step of Adam is the rate, whatever the gradient."""
    steps = {name: step.max().item() for name, step in moved({"body.": 0.1, "other.": 9.0}).items()}
    assert steps == pytest.approx(
        {"body.weight": 0.005, "body.bias": 0.005, "head.weight": 0.05, "head.bias": 0.05}, rel=1e-3
    )


def test_of_several_beginnings_of_a_name_the_longest_counts(workplace):
    steps = moved({"": 0.5, "body.": 0.1, "body.bias": 0.0})
    assert steps["body.weight"].max().item() == pytest.approx(0.005, rel=1e-3)
    assert steps["body.bias"].max().item() == 0.0
    assert steps["head.bias"].max().item() == pytest.approx(0.025, rel=1e-3)


def test_matrices_decay_and_biases_do_not_at_every_rate(workplace):
    model, _, _ = layered()
    groups = _parameter_groups(model, schedule(weight_decay=0.3), {"body.": 0.1})
    found = [
        (g["factor"], g["weight_decay"], [tuple(w.shape) for w in g["params"]]) for g in groups
    ]
    assert sorted(found) == [
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


def test_a_resumed_run_keeps_the_share_of_each_weight(workplace):
    rates = {"body.": 0.1}
    whole, loss, batch_at = layered()
    expected = fit(whole, loss, batch_at, schedule(), name="whole", key="k", lr_multipliers=rates)

    def until(step):
        if step == 17:
            raise InterruptedError
        return batch_at(step)

    broken, _, _ = layered()
    with pytest.raises(InterruptedError):
        fit(broken, loss, until, schedule(), name="broken", key="k", lr_multipliers=rates)
    resumed, _, _ = layered()
    assert fit(resumed, loss, batch_at, schedule(), name="broken", key="k", lr_multipliers=rates) == expected
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    even, _, _ = layered()
    fit(even, loss, batch_at, schedule(), name="even", key="k")
    assert not torch.equal(even.body.weight, whole.body.weight)


def test_another_key_starts_afresh(workplace):
    model, loss, batch_at = regression()
    fit(model, loss, batch_at, schedule(), name="t", key="one")
    asked = []
    fit(model, loss, lambda s: asked.append(s) or batch_at(s), schedule(), name="t", key="two")
    assert asked[0] == 0
    assert Checkpoint("t", "one").read() is None  # one checkpoint a run is kept


def test_sigkill_in_the_middle_ends_with_the_same_bits(workplace):
    script = workplace / "train.py"
    script.write_text(
        textwrap.dedent("""
        import sys, time, torch
        from tests.shared.training.test_loop import regression, schedule
        from stages.shared.training.loop import fit
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
    again, whole = start("killed", 0), start("whole", 0)
    steps = again.communicate()[0].split()
    whole.communicate()
    assert int(steps[0]) >= 12  # it did resume
    first, second = torch.load("killed.pt"), torch.load("whole.pt")
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_the_best_weights_are_kept_and_patience_ends_the_run(workplace):
    model, loss, batch_at = regression()
    losses = iter([5.0, 1.0, 2.0, 3.0])
    seen = []

    def validate(model):
        seen.append({name: w.clone() for name, w in model.state_dict().items()})
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
    assert rows[-1]["step"] == 30  # best at 10, then two without a better one
    assert torch.equal(model.weight, seen[1]["weight"])
    assert not torch.equal(model.weight, seen[-1]["weight"])


def test_a_validation_can_stop_at_once_and_its_weights_are_never_the_best(workplace):
    model, loss, batch_at = regression()
    start = model.weight.detach().clone()
    results = iter([ValidationResult({}, 5.0), ValidationResult({"watch": 0.1}, 0.0, stop=True)])
    rows = fit(
        model, loss, batch_at, schedule(), name="t", key="k", validate=lambda model: next(results)
    )
    assert rows[-1]["step"] == 10
    assert rows[-1]["validation_watch"] == 0.1
    assert torch.equal(model.weight, start)


def test_a_loss_that_is_not_finite_stops_with_a_sentence(workplace):
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


def test_the_key_changes_with_numbers_weights_dropout_and_inputs(tmp_path):
    (tmp_path / "a").write_text("1")
    torch.manual_seed(0)
    keys = {fingerprint([schedule(), nn.Linear(2, 2)], [tmp_path])}
    torch.manual_seed(0)
    keys.add(fingerprint([schedule(), nn.Linear(2, 2)], [tmp_path]))
    assert len(keys) == 1
    torch.manual_seed(0)
    keys.add(fingerprint([schedule(max_steps=31), nn.Linear(2, 2)], [tmp_path]))
    keys.add(fingerprint([schedule(), nn.Linear(2, 2)], [tmp_path]))  # other weights
    for rate in (0.1, 0.2):
        keys.add(fingerprint([schedule(), nn.Dropout(rate)], [tmp_path]))
    (tmp_path / "a").write_text("2")
    torch.manual_seed(0)
    keys.add(fingerprint([schedule(), nn.Linear(2, 2)], [tmp_path]))
    assert len(keys) == 6
