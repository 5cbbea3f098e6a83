import numpy as np
import pytest
import torch
from support.data import blobs
from torch import Tensor, nn
from torch.nn import functional

from lathe_api.data import Task
from lathe_optimizers.passes import teacher
from lathe_optimizers.passes.losses import TrainingBatch, imitation_loss, response_loss, task_loss

pytestmark = pytest.mark.models


def batch(target):
    count = len(target)
    return TrainingBatch(np.arange(count, dtype=np.int64), (torch.zeros(count, 1),), torch.as_tensor(target))


def test_the_loss_of_a_classifier_is_cross_entropy_with_class_numbers():
    scores = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    found = task_loss(Task.CLASSIFICATION)(batch([0, 2]), (scores,))
    assert float(found) == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32])
def test_class_numbers_may_come_in_any_number_type(dtype):
    scores = torch.randn(4, 3)
    target = torch.tensor([0, 1, 2, 1])
    loss = task_loss(Task.CLASSIFICATION)
    assert torch.equal(loss(batch(target.to(dtype)), (scores,)), loss(batch(target), (scores,)))


def test_one_score_per_sample_is_a_classifier_of_two():
    scores = torch.randn(6, 1)
    target = torch.tensor([0, 1, 1, 0, 1, 0])
    pair = torch.cat([torch.zeros(6, 1), scores], 1)
    loss = task_loss(Task.CLASSIFICATION)
    torch.testing.assert_close(loss(batch(target), (scores,)), loss(batch(target), (pair,)))


@pytest.mark.parametrize(("answer", "target"), [((5, 1), (5,)), ((5,), (5, 1)), ((5, 3), (5, 3))])
def test_a_regression_brings_the_target_to_the_shape_of_the_answer(answer, target):
    torch.manual_seed(0)
    a, t = torch.randn(answer), torch.randn(target, dtype=torch.float64)
    found = task_loss(Task.REGRESSION)(batch(t), (a,))
    assert float(found) == pytest.approx(float(np.mean((a.numpy().ravel() - t.numpy().ravel()) ** 2)), rel=1e-5)


def test_imitation_is_the_divergence_of_softened_answers_times_the_temperature_squared():
    student, other, temperature = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[3.0, 0.0, 1.0]]), 4.0
    p, q = (np.exp(t.numpy()[0] / temperature) for t in (other, student))
    p, q = p / p.sum(), q / q.sum()
    expected = float((p * np.log(p / q)).sum()) * temperature**2
    found = response_loss(Task.CLASSIFICATION, student, other, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_gradients_of_imitation_keep_their_size_at_any_high_temperature():
    other, sizes = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), []
    for temperature in (10.0, 40.0):
        student = torch.zeros(8, 5, requires_grad=True)
        response_loss(Task.CLASSIFICATION, student, other, temperature).backward()
        sizes.append(float(student.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


@pytest.mark.parametrize("task", list(Task))
def test_equal_answers_cost_nothing(task):
    answer = torch.randn(4, 3)
    assert float(response_loss(task, answer, answer.clone(), 2.0)) == pytest.approx(0, abs=1e-6)


def test_imitating_one_score_is_imitating_both_of_its_classes():
    own, other = torch.randn(4, 1), torch.randn(4, 1)
    pairs = [torch.cat([t, torch.zeros(4, 1)], 1) for t in (own, other)]
    torch.testing.assert_close(
        response_loss(Task.CLASSIFICATION, own, other, 2.0), response_loss(Task.CLASSIFICATION, *pairs, 2.0)
    )


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_labels_and_teacher_are_mixed_by_weight(task, weight):
    answer, other = torch.randn(4, 3), torch.randn(4, 3)
    target = torch.tensor([0, 2, 1, 1]) if task is Task.CLASSIFICATION else torch.randn(4, 3)
    found = imitation_loss(task, lambda _: (other,), weight, 2.0)(batch(target), (answer,))
    hard = task_loss(task)(batch(target), (answer,))
    soft = response_loss(task, answer, other, 2.0)
    torch.testing.assert_close(found, (1 - weight) * hard + weight * soft)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += len(x)
        return x.flatten(1)[:, :3], functional.relu(x)


@pytest.mark.parametrize("room", [1 << 29, 1000])
def test_a_teacher_answers_alike_whether_its_answers_fit_in_memory_or_not(monkeypatch, room):
    monkeypatch.setattr(teacher, "CACHE_BYTES", room)
    network, data = Counting(), blobs(300)
    ask = teacher.teacher_of(network, data)
    asked = network.asked
    for seed in range(2):
        index = np.random.default_rng(seed).permutation(300)[:50].astype(np.int64)
        inputs, target = teacher.tensors(data, index)
        found = ask(TrainingBatch(index, inputs, target))
        assert torch.equal(found[0], inputs[0].flatten(1)[:, :3])
        assert torch.equal(found[1], functional.relu(inputs[0]))
        assert not any(f.requires_grad for f in found)
    assert (network.asked == asked) is (room > 1000)
    assert asked <= 300 + 2
