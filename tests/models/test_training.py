import io
import logging
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from support.data import ArrayDataset, Recorder, Slots, blobs, context, curve, digits, part
from support.networks import ImageNetwork, export_program, mlp, plain_cnn, residual_cnn
from torch import nn

from lathe_api.data import Metric, Objective, Task
from lathe_api.recipe import Schedule
from lathe_optimizers.context import Progress
from lathe_optimizers.errors import InputError, StageError
from lathe_optimizers.passes import fitting, training
from lathe_optimizers.passes.losses import task_loss
from lathe_optimizers.passes.programs import load_program, set_training, unlift

pytestmark = pytest.mark.models
CLASSIFY = task_loss(Task.CLASSIFICATION)


class Killed(Exception):  # noqa: N818 - the end of a process
    pass


def graph(network=None, seed=0):
    torch.manual_seed(seed)
    network = network if network is not None else plain_cnn(8)
    gm = unlift(export_program(network, torch.rand(2, 1, 16, 16)))
    training.training_mode(gm)
    return gm


def options(**changes):
    return training.FitOptions(**({"epochs": 3, "batch_size": 16, "learning_rate": 1e-3, "seed": 5} | changes))


def content(network):
    return {name: t.clone() for name, t in network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def kill_after(epoch):
    def report(progress: Progress):
        if progress.epoch == epoch:
            raise Killed

    return report


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_killed_training_resumes_to_the_same_bits(tmp_path, schedule, killed_after):
    data, how = blobs(70), options(schedule=schedule)
    whole = graph()
    full = training.fit(whole, data, CLASSIFY, how, slot="train", ctx=context(tmp_path))
    slots, broken = Slots(), graph()
    ctx = context(tmp_path, checkpoints=slots, report=kill_after(killed_after))
    with pytest.raises(Killed):
        training.fit(broken, data, CLASSIFY, how, slot="train", ctx=ctx)
    resumed = graph()
    rest = training.fit(resumed, data, CLASSIFY, how, slot="train", ctx=context(tmp_path, checkpoints=slots))
    assert same(content(whole), content(resumed))
    assert not same(content(whole), content(broken))
    assert rest.resumed_epochs == killed_after
    assert full.losses[killed_after:] == rest.losses


def test_a_finished_training_is_not_trained_again(tmp_path):
    slots, data = Slots(), blobs(40)
    first, second = graph(), graph()
    training.fit(first, data, CLASSIFY, options(), slot="train", ctx=context(tmp_path, checkpoints=slots))
    again = training.fit(second, data, CLASSIFY, options(), slot="train", ctx=context(tmp_path, checkpoints=slots))
    assert again.losses == ()
    assert same(content(first), content(second))


def damaged(data):
    return data[: len(data) // 2]


def not_a_training(data):
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    return buffer.getvalue()


def with_other_tensors(data):
    state = torch.load(io.BytesIO(data), weights_only=True)
    state["tensors"] = {k: v + 1 for k, v in state["tensors"].items() if "weight" in k}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("spoil", [damaged, not_a_training, with_other_tensors, lambda _: b"no zip at all"])
def test_an_unusable_checkpoint_is_told_and_changes_nothing(tmp_path, caplog, spoil):
    slots, clean = Slots(), graph()
    training.fit(clean, blobs(40), CLASSIFY, options(), slot="train", ctx=context(tmp_path, checkpoints=slots))
    slots.content["train"] = spoil(slots.content["train"])
    again = graph()
    with caplog.at_level(logging.WARNING):
        found = training.fit(
            again, blobs(40), CLASSIFY, options(), slot="train", ctx=context(tmp_path, checkpoints=slots)
        )
    assert found.resumed_epochs == 0
    assert same(content(clean), content(again))
    assert "the checkpoint train" in caplog.text


def test_a_checkpoint_of_other_settings_is_not_taken(tmp_path, caplog):
    slots = Slots()
    training.fit(graph(), blobs(40), CLASSIFY, options(epochs=2), slot="t", ctx=context(tmp_path, checkpoints=slots))
    clean, again = graph(), graph()
    how = options(epochs=2, learning_rate=2e-3)
    training.fit(clean, blobs(40), CLASSIFY, how, slot="t", ctx=context(tmp_path))
    training.fit(again, blobs(40), CLASSIFY, how, slot="t", ctx=context(tmp_path, checkpoints=slots))
    assert same(content(clean), content(again))
    assert "of another training" in caplog.text


def test_a_checkpoint_that_would_run_code_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    buffer = io.BytesIO()
    torch.save({"identity": Attack()}, buffer)
    slots = Slots()
    slots.content |= {"train": buffer.getvalue(), "attack": buffer.getvalue()}
    training.fit(
        graph(), blobs(40), CLASSIFY, options(epochs=1), slot="train", ctx=context(tmp_path, checkpoints=slots)
    )
    assert not (tmp_path / "owned").exists()
    torch.load(io.BytesIO(slots.content["attack"]), weights_only=False)
    assert (tmp_path / "owned").exists(), "the attack is none"


def test_no_random_state_and_no_switch_outside_is_touched(tmp_path):
    def outside():
        return [
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global state is what must not change
            random.getstate(),
            torch.get_deterministic_debug_mode(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ]

    gm, ctx = graph(), context(tmp_path)
    before = outside()
    training.fit(gm, blobs(40), CLASSIFY, options(epochs=1), slot="t", ctx=ctx)
    assert outside() == before
    gm = graph(mlp())
    with pytest.raises(StageError):
        training.fit(gm, blobs(40), lambda _, out: out[0].sum() * float("nan"), options(), slot="u", ctx=ctx)
    assert outside()[3:] == before[3:]


def test_the_same_seed_gives_the_same_weights_in_any_process(tmp_path):
    script = textwrap.dedent("""
        import hashlib, sys, torch
        from pathlib import Path
        from lathe_api.data import Task
        from lathe_optimizers.passes import training
        from lathe_optimizers.passes.losses import task_loss
        from lathe_optimizers.passes.programs import unlift
        from support.data import blobs, context
        from support.networks import ImageNetwork, export_program, mlp, plain_cnn
        torch.manual_seed(0)
        gm = unlift(export_program(plain_cnn(8), torch.rand(2, 1, 16, 16)))
        training.training_mode(gm)
        how = training.FitOptions(epochs=2, batch_size=16, learning_rate=1e-3)
        training.fit(gm, blobs(40), task_loss(Task.CLASSIFICATION), how, slot="t", ctx=context(Path(sys.argv[1])))
        print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in gm.state_dict().values())).hexdigest())
    """)
    found = []
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1", "PYTHONPATH": "tests"}
        command = [sys.executable, "-c", script, str(tmp_path)]
        found.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found[0].strip()) == 64
    assert found[0] == found[1]


@pytest.mark.parametrize(("samples", "size", "steps"), [(40, 16, 3), (33, 16, 2), (2, 16, 1), (5, 1, 5)])
def test_every_sample_is_seen_once_an_epoch_and_none_alone(tmp_path, samples, size, steps):
    seen = []

    def loss(batch, outputs):
        seen.append(batch.index)
        return CLASSIFY(batch, outputs)

    gm = graph(ImageNetwork(nn.Flatten(), nn.Linear(256, 10))) if size == 1 else graph()
    result = training.fit(gm, blobs(samples), loss, options(epochs=2, batch_size=size), slot="t", ctx=context(tmp_path))
    assert result.steps == 2 * steps == len(seen)
    for epoch in (seen[:steps], seen[steps:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(samples))
        assert all(len(index) > 1 for index in epoch) or size == 1
    assert samples == 2 or not np.array_equal(*(np.concatenate(e) for e in (seen[:steps], seen[steps:])))
    assert all(t.isfinite().all() for t in content(gm).values())


@pytest.mark.parametrize(("samples", "size"), [(10, 1), (1, 16)])
def test_batches_of_one_are_refused_for_batch_norm(tmp_path, samples, size):
    with pytest.raises(InputError, match=r"batchSize.*BatchNorm.*at least 2"):
        training.fit(graph(), blobs(samples), CLASSIFY, options(batch_size=size), slot="t", ctx=context(tmp_path))


def test_a_diverging_training_ends_with_the_remedy_and_leaves_no_checkpoint(tmp_path):
    slots = Slots()
    data = blobs(40)
    data.inputs["image"][7] = np.inf
    with pytest.raises(StageError, match=r"epoch 1 of step t .*learningRate.*0\.001"):
        training.fit(graph(), data, CLASSIFY, options(), slot="t", ctx=context(tmp_path, checkpoints=slots))
    assert slots.content == {}


def test_weights_that_are_lost_in_the_last_step_are_noticed(tmp_path):
    def zero_with_a_gradient_of_nan(batch, outputs):
        return (outputs[0] * 0).sum().sqrt()

    with pytest.raises(StageError, match="the loss is 0, or a weight"):
        training.fit(
            graph(), blobs(16), zero_with_a_gradient_of_nan, options(epochs=1), slot="t", ctx=context(tmp_path)
        )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule.CONSTANT, [1, 1, 1, 1, 1]),
        (Schedule.COSINE, [1, 0.853553, 0.5, 0.146447, 0]),
        (Schedule.ONE_CYCLE, [0.04, 0.84, 0.811745, 0.283058, 0]),
    ],
)
def test_the_rate_follows_its_schedule(schedule, expected):
    how = options(schedule=schedule, learning_rate=1.0)
    assert [fitting.rate(how, step, 100) for step in (0, 25, 50, 75, 100)] == pytest.approx(expected, abs=1e-5)


def test_progress_stays_in_its_span_and_names_epoch_and_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "REPORT_SECONDS", float("inf"))
    recorder = Recorder()
    ctx = context(tmp_path, report=recorder)
    training.fit(graph(), blobs(40), CLASSIFY, options(), slot="train", ctx=ctx, span=training.Span(0.2, 0.8))
    ends = [p for p in recorder.reports if p.epoch]
    assert [p.epoch for p in ends][-3:] == [1, 2, 3]
    assert [p.fraction for p in ends][-3:] == pytest.approx([0.4, 0.6, 0.8])
    assert all(p.step == "train" and p.epochs == 3 and p.loss > 0 for p in ends)


def test_a_long_epoch_reports_inside_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "REPORT_SECONDS", -1.0)
    recorder = Recorder()
    training.fit(graph(), blobs(64), CLASSIFY, options(epochs=1), slot="t", ctx=context(tmp_path, report=recorder))
    assert [p.fraction for p in recorder.reports] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert [p.epoch for p in recorder.reports] == [0, 0, 0, 0, 1]


def test_parameters_without_gradient_stay(tmp_path):
    gm = graph()
    frozen = next(iter(gm.parameters())).requires_grad_(requires_grad=False)
    before = frozen.clone()
    training.fit(gm, blobs(40), CLASSIFY, options(epochs=1), slot="t", ctx=context(tmp_path))
    assert torch.equal(before, frozen)


def test_batch_norm_without_moving_statistics_is_trained_as_it_infers(tmp_path):
    network = residual_cnn(8, 1, 1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.running_mean.uniform_(-1, 1)
    gm = graph(network)
    statistics = {k: v for k, v in content(gm).items() if "running" in k}
    training.fit(gm, blobs(40), CLASSIFY, options(epochs=1), slot="t", ctx=context(tmp_path))
    probe = torch.rand(4, 1, 16, 16)
    trained = gm(probe)
    set_training(gm, on=False)
    assert torch.equal(trained, gm(probe))
    assert same(statistics, {k: v for k, v in content(gm).items() if "running" in k})


def test_statistics_of_batch_norm_follow_training(tmp_path):
    gm = graph()
    before = {k: v for k, v in content(gm).items() if "running" in k}
    training.fit(gm, blobs(40), CLASSIFY, options(epochs=1), slot="t", ctx=context(tmp_path))
    assert before
    assert all(not torch.equal(v, content(gm)[k]) for k, v in before.items())


@pytest.fixture(scope="module")
def original(save_network):
    torch.manual_seed(0)
    return save_network("original", plain_cnn(8), torch.rand(2, 1, 16, 16), "image")


def test_finetuning_with_a_weight_of_1_imitates_the_original_even_against_the_labels(tmp_path, original):
    data = blobs(100)
    network = load_program(original)
    with torch.no_grad():
        said = unlift(network)(torch.from_numpy(data.inputs["image"])).numpy()
    wrong = ArrayDataset(data.inputs, (said.argmax(1) + 1) % 10)
    found = {}
    for weight in (1.0, 0.0):
        gm = unlift(network)
        with torch.no_grad():
            for p in gm.parameters():
                p.mul_(0.9)
        ctx = context(tmp_path, program=original, train=wrong)
        training.finetune(gm, ctx, epochs=8, batch_size=20, learning_rate=3e-3, teacher_weight=weight)
        with torch.no_grad():
            found[weight] = float(np.mean(gm(torch.from_numpy(data.inputs["image"])).numpy().argmax(1) == wrong.target))
    assert found[1.0] < 0.2
    assert found[0.0] > 0.5


def test_finetuning_leaves_inference_mode(tmp_path, original):
    gm = unlift(load_program(original))
    training.finetune(
        gm, context(tmp_path, program=original, train=blobs(40)), epochs=1, batch_size=16, learning_rate=1e-3
    )
    probe = torch.rand(3, 1, 16, 16)
    assert torch.equal(gm(probe), gm(probe))
    alone = torch.cat([gm(p[None]) for p in probe])
    torch.testing.assert_close(gm(probe), alone)


def test_finetuning_needs_a_training_set(tmp_path, original):
    with pytest.raises(InputError, match=r"spec\.data\.train"):
        training.finetune(
            unlift(load_program(original)), context(tmp_path), epochs=1, batch_size=16, learning_rate=1e-3
        )


def test_a_program_of_one_batch_size_is_refused(tmp_path):
    gm = unlift(export_program(plain_cnn(8), torch.rand(4, 1, 16, 16), dynamic=False))
    with pytest.raises(InputError, match="always 4 cannot be trained"):
        training.finetune(
            gm, context(tmp_path, train=blobs(40)), epochs=1, batch_size=16, learning_rate=1e-3, teacher_weight=0
        )


def test_digits_are_learned_in_a_few_epochs(tmp_path):
    train, evaluation = digits()
    gm = graph(mlp())
    how = options(epochs=5, batch_size=32, learning_rate=3e-3)
    training.fit(gm, train, CLASSIFY, how, slot="t", ctx=context(tmp_path))
    set_training(gm, on=False)
    objective = Objective(task=Task.CLASSIFICATION, metric=Metric.ACCURACY)
    assert training.evaluate(gm, evaluation, objective) > 0.93


def test_a_regression_is_learned_and_its_error_counted(tmp_path):
    data = curve(300)

    class Network(nn.Sequential):
        def forward(self, x):
            return super().forward(x)

    torch.manual_seed(0)
    network = Network(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    gm = unlift(export_program(network, torch.rand(2, 4), "x"))
    objective = Objective(task=Task.REGRESSION, metric=Metric.RMSE)
    held = part(data, 200, 300)
    before = training.evaluate(gm, held, objective)
    how = options(epochs=40, learning_rate=1e-2)
    training.fit(gm, part(data, 0, 200), task_loss(Task.REGRESSION), how, slot="t", ctx=context(tmp_path))
    after = training.evaluate(gm, held, objective)
    with torch.no_grad():
        error = gm(torch.from_numpy(held.inputs["x"])).numpy()[:, 0] - held.target
    assert after == pytest.approx(float(np.sqrt(np.mean(error.astype(np.float64) ** 2))), rel=1e-5)
    assert after < 0.3 * before
