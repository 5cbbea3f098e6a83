import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from support.data import ArrayDataset, Recorder, Slots, blobs, context, curve, digits, part
from support.networks import ImageNetwork, encoder, export_program, mlp, plain_cnn, residual_cnn, separable_cnn
from torch import nn

from lathe_api.data import Task
from lathe_api.recipe import FeaturePair
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import distill, features, training
from lathe_optimizers.passes.initialise import initialise
from lathe_optimizers.passes.losses import task_loss
from lathe_optimizers.passes.programs import count_parameters, load_program, save_program, set_training, unlift
from lathe_optimizers.passes.pruner import narrow_program
from lathe_optimizers.passes.views import scoring, tapped

pytestmark = pytest.mark.models
FEATURE = {"type": "Feature", "weight": "0.1"}
RESPONSE = {"type": "Response", "temperature": "2", "weight": "0.5"}
IMAGE = torch.rand(2, 1, 16, 16)


def stage(**changes):
    block = {"student": {"from": "Teacher", "width": "0.5"}, "epochs": 2, "batchSize": 32, "losses": [RESPONSE]}
    return {"name": "small", "type": "Distill", "distill": block | changes}


def saved(path, network, example=IMAGE, name="image", seed=0):
    save_program(export_program(network, example, name), path)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A network that was trained on digits for a short while."""
    torch.manual_seed(0)
    network, (data, _) = mlp(64), digits()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(12):
        for index in torch.randperm(len(data)).split(64):
            inputs, classes = data.take(index.numpy())
            loss = nn.functional.cross_entropy(network(torch.from_numpy(inputs[0])), torch.from_numpy(classes))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return saved(tmp_path_factory.mktemp("teacher") / "teacher.pt2", network)


@pytest.fixture
def ctx(tmp_path, teacher):
    def make(recipe=None, **changes):
        train, evaluation = digits()
        given = {
            "program": teacher,
            "train": part(train, 0, 900),
            "validation": part(train, 900, 1078),
            "evaluation": evaluation,
            "stage": recipe if recipe is not None else stage(),
        }
        return context(tmp_path, **(given | changes))

    return make


def quality(path, ctx):
    gm = unlift(load_program(path))
    set_training(gm, on=False)
    return training.evaluate(gm, ctx.data.evaluation, ctx.objective)


def test_a_student_half_as_wide_keeps_the_accuracy_of_its_teacher(ctx, teacher):
    context_ = ctx(stage(epochs=8, losses=[RESPONSE, FEATURE]))
    output = distill.run(context_)
    before, after = quality(teacher, context_), quality(output.program, context_)
    assert before > 0.93
    assert after > before - 0.02
    counts = output.details["parameters"]
    assert counts["student"] < 0.55 * counts["teacher"]
    assert counts["student"] == count_parameters(load_program(output.program))
    assert output.details["validation"]["samples"] == 178
    assert set(output.details["validation"]["accuracy"]) == {"distilled", "control"}
    assert output.details["pairs"]


def test_the_control_has_the_same_start_order_and_number_of_steps(ctx, monkeypatch):
    seen = {}
    fit = training.fit

    def spy(network, data, loss, options, *, slot, **rest):
        seen[slot] = {
            "start": {k: v.clone() for k, v in network.state_dict().items()}, "options": options, "order": [],
        }  # fmt: skip

        def recording(batch, outputs):
            seen[slot]["order"].append(batch.index)
            return loss(batch, outputs)

        seen[slot]["result"] = fit(network, data, recording, options, slot=slot, **rest)
        return seen[slot]["result"]

    monkeypatch.setattr(training, "fit", spy)
    output = distill.run(ctx(stage(losses=[RESPONSE, FEATURE])))
    train, control = seen["train"], seen["control"]
    assert train["start"].keys() == control["start"].keys()
    assert all(torch.equal(v, control["start"][k]) for k, v in train["start"].items())
    assert train["options"] == control["options"]
    assert len(train["order"]) == len(control["order"]) == 2 * 29
    assert all(np.array_equal(a, b) for a, b in zip(train["order"], control["order"], strict=True))
    assert output.details["steps"] == {"distilled": 58, "control": 58}


def test_progress_names_both_trainings(ctx):
    recorder = Recorder()
    distill.run(ctx(report=recorder))
    ends = [(p.step, p.epoch, p.fraction) for p in recorder.reports if p.epoch]
    for expected in [("train", 1, 0.25), ("train", 2, 0.5), ("control", 1, 0.75), ("control", 2, 1.0)]:
        assert expected in ends


@pytest.mark.parametrize(
    ("better", "winner"), [("control", "control"), ("distilled", "distilled"), (None, "distilled")]
)
def test_the_better_one_on_held_out_samples_goes_on_and_a_tie_is_the_students(ctx, monkeypatch, better, winner):
    given, networks = ctx(), []

    def evaluate(network, data, objective):
        assert data is given.data.validation
        networks.append(network)
        name = ("distilled", "control")[len(networks) - 1]
        return 0.9 if name == better else 0.8

    monkeypatch.setattr(training, "evaluate", evaluate)
    output = distill.run(given)
    expected = networks[1 if winner == "control" else 0]
    with torch.no_grad():
        torch.testing.assert_close(unlift(load_program(output.program))(IMAGE), expected(IMAGE))
        assert not torch.equal(networks[0](IMAGE), networks[1](IMAGE))
    assert output.details["winner"] == winner
    assert [("0.9000 against 0.8000" in w, "178" in w) for w in output.warnings] == (
        [(True, True)] if winner == "control" else []
    )


def test_a_student_that_died_while_its_control_was_trained_ends_in_the_same_bytes(ctx):
    class Killed(Exception):  # noqa: N818 - the end of a process
        pass

    def report(progress):
        if (progress.step, progress.epoch) == ("control", 1):
            raise Killed

    recipe, slots = stage(losses=[RESPONSE, FEATURE]), Slots()
    whole = distill.run(ctx(recipe)).program.read_bytes()
    with pytest.raises(Killed):
        distill.run(ctx(recipe, checkpoints=slots, report=report))
    recorder = Recorder()
    resumed = distill.run(ctx(recipe, checkpoints=slots, report=recorder)).program.read_bytes()
    assert set(recorder.epochs) - {("control", 1)} == {("control", 2)}
    assert whole == resumed


def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path, teacher):
    script = textwrap.dedent("""
        import hashlib, sys
        from pathlib import Path
        from lathe_optimizers.passes import distill
        from support.data import blobs, context
        losses = [{"type": "Feature"}, {"type": "Response"}]
        block = {"student": {"width": "0.5", "init": "Random"}, "epochs": 1, "losses": losses}
        recipe = {"name": "small", "type": "Distill", "distill": block}
        tmp, teacher = map(Path, sys.argv[1:])
        given = {"program": teacher, "train": blobs(80), "validation": blobs(20, 1), "stage": recipe}
        print(hashlib.sha256(distill.run(context(tmp, **given)).program.read_bytes()).hexdigest())
    """)
    found = []
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1", "PYTHONPATH": "tests"}
        command = [sys.executable, "-c", script, str(tmp_path), str(teacher)]
        found.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found[0].strip()) == 64
    assert found[0] == found[1]


def test_a_student_of_fresh_weights_learns_too(ctx):
    recipe = stage(epochs=12, learningRate="0.005", student={"width": "0.5", "init": "Random"})
    given = ctx(recipe)
    assert quality(distill.run(given).program, given) > 0.85


def test_a_regression_is_distilled(tmp_path):
    class Network(nn.Sequential):
        def forward(self, x):
            return super().forward(x)

    data = curve(400)
    torch.manual_seed(0)
    network = Network(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    x, y = torch.from_numpy(data.inputs["x"]), torch.from_numpy(data.target)
    for _ in range(300):
        loss = nn.functional.mse_loss(network(x)[:, 0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = saved(tmp_path / "t.pt2", network, torch.rand(2, 4), "x")
    sets = {"train": part(data, 0, 300), "validation": part(data, 300, 350), "evaluation": part(data, 350, 400)}
    recipe = stage(epochs=20, learningRate="0.01", losses=[RESPONSE, FEATURE])
    given = context(tmp_path, program=path, stage=recipe, task=Task.REGRESSION, **sets)
    output = distill.run(given)
    assert quality(output.program, given) < 0.25
    assert output.details["parameters"]["student"] < 110


def test_a_given_student_is_trained(ctx, tmp_path):
    torch.manual_seed(1)
    student = saved(tmp_path / "s.pt2", ImageNetwork(nn.Flatten(), nn.Linear(256, 24), nn.ReLU(), nn.Linear(24, 10)))
    recipe = stage(student={"from": "Pt2", "uri": "s.pt2"}, epochs=16, learningRate="0.003", losses=[RESPONSE, FEATURE])
    given = ctx(recipe, extras={"student.uri": student})
    output = distill.run(given)
    assert quality(output.program, given) > 0.85
    assert output.details["parameters"]["student"] == 256 * 24 + 24 + 24 * 10 + 10
    assert output.details["student"]["from"] == "Pt2"


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(256, 10)

    def forward(self, image, other):
        return self.head((image + other).flatten(1))


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.side = nn.Linear(256, 32), nn.Linear(32, 10), nn.Linear(32, 3)

    def forward(self, image):
        x = self.body(image.flatten(1)).relu()
        return self.head(x), self.side(x)


@pytest.mark.parametrize(
    ("student", "example", "names", "found"),
    [
        (ImageNetwork(nn.Flatten(), nn.Linear(256, 7)), IMAGE, "image", r"shape \[7\], the teacher \[10\]"),
        (ImageNetwork(nn.Flatten(), nn.Linear(64, 10)), torch.rand(2, 1, 8, 8), "image", "does not take the teacher's"),
        (TwoInputs(), (IMAGE, IMAGE), ("image", "other"), "does not take the teacher's"),
        (TwoOutputs(), IMAGE, "image", r"shape \[10\], \[3\], the teacher \[10\]"),
    ],
    ids=["other-classes", "other-size", "more-inputs", "more-outputs"],
)
def test_a_given_student_that_does_not_fit_is_refused(ctx, tmp_path, student, example, names, found):
    path = saved(tmp_path / "s.pt2", student, example, names)
    given = ctx(stage(student={"from": "Pt2", "uri": "s.pt2"}), extras={"student.uri": path})
    with pytest.raises(InputError, match=found) as refusal:
        distill.run(given)
    assert refusal.value.where == "spec.recipe.stages.small.distill.student.uri"


def test_a_given_student_with_its_inputs_in_another_order_is_refused(tmp_path):
    class Swapped(TwoInputs):
        def forward(self, other, image):
            return super().forward(image, other)

    first = saved(tmp_path / "t.pt2", TwoInputs(), (IMAGE, IMAGE), ("image", "other"))
    second = saved(tmp_path / "s.pt2", Swapped(), (IMAGE, IMAGE), ("other", "image"))
    data = ArrayDataset(blobs(30).inputs | {"other": blobs(30).inputs["image"]}, blobs(30).target)
    given = context(
        tmp_path, program=first, train=data, validation=data, extras={"student.uri": second},
        stage=stage(student={"from": "Pt2", "uri": "s.pt2"}),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"order other, image.*order: image, other"):
        distill.run(given)


@pytest.mark.parametrize(
    ("student", "where"),
    [
        ({"from": "Registered", "component": "tiny"}, "distill.student.from: .*Teacher with a width, Pt2"),
        ({"from": "Teacher", "depth": "0.5"}, 'distill.student.depth: .*width: "0.5"'),
        ({"from": "Teacher", "width": "0.5", "depth": "0.5"}, "distill.student.depth"),
    ],
    ids=["registered", "depth", "depth-and-width"],
)
def test_students_that_cannot_be_made_are_refused(ctx, student, where):
    with pytest.raises(InputError, match=where):
        distill.run(ctx(stage(student=student)))


def test_a_network_without_hidden_channels_is_refused(tmp_path):
    path = saved(tmp_path / "t.pt2", ImageNetwork(nn.Flatten(), nn.Linear(256, 10)))
    given = context(tmp_path, program=path, train=blobs(30), validation=blobs(10), stage=stage())
    with pytest.raises(InputError, match=r"student\.width.*nothing of this model can be made narrower.*from: Pt2"):
        distill.run(given)


def test_a_network_of_one_batch_size_is_refused(tmp_path):
    path = tmp_path / "t.pt2"
    save_program(export_program(mlp(16), IMAGE, dynamic=False), path)
    with pytest.raises(InputError, match="always 2 cannot be trained"):
        distill.run(context(tmp_path, program=path, train=blobs(30), validation=blobs(10), stage=stage()))


def test_without_training_data_there_is_no_distillation(ctx):
    with pytest.raises(InputError, match=r"spec\.data\.train"):
        distill.run(ctx(train=None, validation=None))


def test_missing_held_out_samples_and_further_outputs_are_told(tmp_path):
    torch.manual_seed(0)
    path = saved(tmp_path / "t.pt2", TwoOutputs())
    given = context(tmp_path, program=path, train=blobs(40), validation=part(blobs(40), 0, 0), stage=stage())
    output = distill.run(given)
    assert any("validationShare" in w for w in output.warnings)
    assert any("first of 2 outputs" in w for w in output.warnings)
    with torch.no_grad():
        assert [tuple(o.shape) for o in unlift(load_program(output.program))(IMAGE)] == [(2, 10), (2, 3)]


@pytest.mark.parametrize("network", [residual_cnn, plain_cnn, separable_cnn, encoder, mlp])
def test_a_student_cut_from_its_teacher_is_compared_at_the_same_layers(network):
    torch.manual_seed(0)
    teacher = export_program(network(), IMAGE)
    student, _ = narrow_program(teacher, 0.5)
    own, other = unlift(student), unlift(teacher)
    taps = features.choose_taps(other, own, (), "losses[0]")
    assert 1 <= len(taps) <= 3
    assert all(t.teacher.name == t.student.name for t in taps)
    positions = [list(other.graph.nodes).index(t.teacher) for t in taps]
    assert positions == sorted(positions)


@pytest.mark.parametrize("network", [residual_cnn, encoder, mlp])
def test_looking_at_features_changes_no_answer_and_no_graph(network):
    torch.manual_seed(0)
    gm = unlift(export_program(network(), IMAGE))
    set_training(gm, on=False)
    nodes = [t.teacher for t in features.choose_taps(gm, gm, (), "losses[0]")]
    with torch.no_grad():
        before, code = gm(IMAGE), gm.code
        answer, *found = tapped(gm, nodes)(IMAGE)
    assert torch.equal(before, answer)
    assert len(found) == len(nodes)
    assert gm.code == code
    assert all(len(f) == len(IMAGE) for f in found)


def test_training_a_view_trains_the_network_it_was_made_from(tmp_path):
    gm = unlift(export_program(mlp(), IMAGE))
    view = tapped(gm, [])
    before = [p.clone() for p in gm.parameters()]
    training.training_mode(view)
    options = training.FitOptions(1, 16, 1e-3)
    training.fit(view, blobs(40), task_loss(Task.CLASSIFICATION), options, slot="t", ctx=context(tmp_path))
    assert all(not torch.equal(a, b) for a, b in zip(before, gm.parameters(), strict=True))


@pytest.mark.parametrize(
    ("teacher", "student", "projected"),
    [((None, 8), (None, 8), False), ((3, 16), (3, 8), True)],
    ids=["same-width", "narrower-sequence"],
)
def test_channels_are_found_in_features_of_any_rank(teacher, student, projected):
    dimension = features._channel_dimension(teacher, student)
    assert dimension == 1
    assert (teacher[dimension] != student[dimension]) is projected


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ((16,), (8,), 0),
        ((16, 9), (8, 9), 0),
        ((9, 16), (9, 8), 1),
        ((9, 16), (7, 8), None),
        ((16, 8, 8), (8, 8, 8), 0),
        ((16, 8, 8), (8, 4, 4), 0),
        ((8, 8, 16), (8, 8, 4), 2),
        ((16, None, None), (8, None, None), 0),
        ((16, None, 8), (8, 4, 8), None),
        ((16,), (8, 4), None),
        ((None,), (8,), None),
    ],
)
def test_what_can_be_compared_is_known_by_its_shape(teacher, student, expected):
    assert features._channel_dimension(teacher, student) == expected


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("image", (8, 16, 4, 4)), ("smaller-image", (8, 16, 2, 2)), ("sequence", (8, 6, 16)), ("vector", (8, 16))],
)
def test_equal_features_cost_nothing_and_others_are_measured_by_their_size(kind, shape):
    torch.manual_seed(0)
    feature = torch.randn(*shape)
    other = torch.randn(8, 16, 4, 4) if kind == "smaller-image" else torch.randn(*shape)
    assert features.feature_loss((feature,), (feature,)) == 0
    loss = features.feature_loss((feature,), (other,))
    assert loss > 0.5
    torch.testing.assert_close(loss, features.feature_loss((10 * feature,), (10 * other,)))


def test_projections_bring_students_to_the_width_of_their_teacher_by_seed():
    torch.manual_seed(0)
    teacher = export_program(residual_cnn(), IMAGE)
    student, _ = narrow_program(teacher, 0.5)
    other, own = unlift(teacher), unlift(student)
    taps = features.choose_taps(other, own, (), "losses[0]")
    with torch.no_grad():
        _, *wide = tapped(other, [t.teacher for t in taps])(IMAGE)
        _, *narrow = tapped(own, [t.student for t in taps])(IMAGE)
        first = features.Projections(taps, 0)(tuple(narrow))
        again = features.Projections(taps, 0)(tuple(narrow))
        another = features.Projections(taps, 1)(tuple(narrow))
    assert [f.shape for f in first] == [f.shape for f in wide]
    assert [f.shape for f in narrow] != [f.shape for f in wide]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], another[0])


def test_layers_are_paired_by_module_path_or_node_name():
    gm = unlift(export_program(residual_cnn(8, 2, 1), IMAGE))
    pairs = (FeaturePair(teacher="3", student="3"), FeaturePair(teacher="relu_1", student="relu_1"))
    by_path, by_name = features.choose_taps(gm, gm, pairs, "losses[0]")
    assert by_path.names == "3 -> 3"
    assert by_name.teacher.name == "relu_1"


@pytest.mark.parametrize(
    ("pair", "where"),
    [
        (
            {"teacher": "stem", "student": "3"},
            r"losses\[0\]\.pairs\[0\]\.teacher: no layer is called 'stem'.*Write one",
        ),
        ({"teacher": "3", "student": "3.skipped"}, r"losses\[0\]\.pairs\[0\]\.student"),
        ({"teacher": "3", "student": "linear"}, r"losses\[0\]\.pairs\[0\]: features of shapes"),
    ],
    ids=["teacher", "student", "shapes"],
)
def test_pairs_that_do_not_exist_or_fit_are_refused(pair, where):
    gm = unlift(export_program(residual_cnn(8, 2, 1), IMAGE))
    with pytest.raises(InputError, match=where):
        features.choose_taps(gm, gm, (FeaturePair(**pair),), "losses[0]")


def test_values_without_the_samples_in_their_first_dimension_are_no_features():
    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.head = nn.Linear(16, 8), nn.Linear(128, 10)

        def forward(self, image):
            x = self.rows(image.reshape(-1, 16)).relu()
            return self.head(x.reshape(-1, 128).tanh())

    gm = unlift(export_program(Merged(), IMAGE))
    assert [t.teacher.name for t in features.choose_taps(gm, gm, (), "losses[0]")] == ["tanh"]


@pytest.mark.parametrize("quantised", [False, True])
def test_classifiers_that_answer_with_probabilities_are_trained_on_their_scores(quantised):
    torch.manual_seed(0)
    gm = unlift(export_program(ImageNetwork(nn.Flatten(), nn.Linear(256, 10), nn.Softmax(1)), IMAGE))
    if quantised:
        gm.add_module("round", nn.Identity())
        (output,) = gm.graph.find_nodes(op="output")
        answer = output.all_input_nodes[0]
        with gm.graph.inserting_before(output):
            output.replace_input_with(answer, gm.graph.call_module("round", (answer,)))
        gm.recompile()
    with torch.no_grad():
        (scores,) = scoring(gm, Task.CLASSIFICATION)(IMAGE)
        torch.testing.assert_close(scores.softmax(1), gm(IMAGE))
    assert not torch.allclose(scores.sum(1), torch.ones(2))
    assert scoring(gm, Task.REGRESSION) is gm


@pytest.mark.parametrize("network", [mlp, residual_cnn, encoder])
def test_classifiers_that_answer_with_scores_are_trained_as_they_are(network):
    gm = unlift(export_program(network(), IMAGE))
    assert scoring(gm, Task.CLASSIFICATION) is gm


def test_fresh_weights_depend_on_the_seed_alone_and_statistics_are_cleared():
    networks = []
    for weights, seed in ((0, 7), (1, 7), (1, 8)):
        torch.manual_seed(weights)
        module = residual_cnn()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for t in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
                    t.uniform_(2, 3)
        networks.append(unlift(export_program(module, IMAGE)))
        initialise(networks[-1], seed)
    first, second, third = (n.state_dict() for n in networks)
    assert all(torch.equal(t, second[k]) for k, t in first.items())
    assert any(not torch.equal(t, third[k]) for k, t in first.items())
    fresh = {k: set(t.flatten().tolist()) for k, t in first.items() if "running" in k or "1.bias" in k}
    assert fresh
    assert all(v == ({1.0} if "var" in k else {0.0}) for k, v in fresh.items())
    assert set(first["1.weight"].tolist()) == {1.0}
    deviation = first["3.body.0.weight"].std()
    assert float(deviation) == pytest.approx((3 * 16 * 9) ** -0.5, rel=0.05)


def test_fresh_weights_of_an_encoder_keep_tables_small_and_norms_neutral():
    gm = unlift(export_program(encoder(), IMAGE))
    initialise(gm, 0)
    found = gm.state_dict()
    assert float(found["position"].std()) == pytest.approx(0.02, rel=0.2)
    assert all(set(t.tolist()) == {1.0} for k, t in found.items() if "norm" in k and k.endswith("weight"))
    assert all(set(t.tolist()) == {0.0} for k, t in found.items() if k.endswith("bias"))
