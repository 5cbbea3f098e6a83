"""The Prune stage: what it leaves, what it tells, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import networks
from support.passing import context, images, stripes
from torch import nn

from lathe_api.manifest import ArtifactManifest, Role, Signature
from lathe_optimizers.context import Artifact, Datasets
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import prune, training
from lathe_optimizers.passes.batch_norm import recompute_statistics
from lathe_optimizers.passes.programs import count_parameters, load_program, save_program, unlift
from lathe_optimizers.passes.training_mode import set_training

pytestmark = pytest.mark.models


def given(network, folder, *, dynamic=True):
    """A program as an earlier stage leaves it."""
    path = folder / "given.pt2"
    example = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    save_program(networks.export_program(network, example, dynamic=dynamic), path)
    return Artifact(ArtifactManifest(files={}, signature=Signature(inputs=(), outputs=())), {Role.PROGRAM: path})


def stage(**settings):
    return {"name": "slim", "type": "Prune", "prune": {"method": "StructuredMagnitude", **settings}}


def made(make, seed=0):
    torch.manual_seed(seed)
    return make()


def test_a_trained_network_is_pruned_and_recovers(tmp_path):
    gm = unlift(networks.export_program(made(networks.plain_cnn), torch.rand(2, 1, 16, 16)))
    train, test = stripes(640, 1), stripes(200, 2)
    ctx = context(
        tmp_path, test, stage=stage(parameters="0.8", finetune={"epochs": 6, "learningRate": "0.003"}), train=train
    )
    loss = training.task_loss(ctx.objective.task)
    set_training(gm, on=True)
    training.fit(gm, train, loss, training.FitOptions(3, 64, 0.003), slot="teacher", ctx=ctx)
    set_training(gm, on=False)
    network = made(networks.plain_cnn)
    network.load_state_dict(gm.state_dict(), strict=False)
    before = given(network, tmp_path)
    told = []

    output = prune.run(replace(ctx, input=before, original=before, report=told.append))

    quality, report = output.details["quality"], output.details["report"]
    assert list(quality) == ["before", "pruned", "statistics", "tuned"]
    assert quality["before"] > 0.9
    assert quality["before"] - 0.08 < quality["tuned"] > quality["pruned"] + 0.1
    assert report["removedShare"] >= 0.8
    assert report["sliceError"] < 1e-5
    assert output.details["batchNormRecomputed"] == 2
    assert output.warnings == ()
    small = load_program(output.program)
    assert count_parameters(small) == report["parametersAfter"]
    assert training.evaluate(unlift(small), test, ctx.objective) == quality["tuned"]
    fractions = [p.fraction for p in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_without_training_data_the_cut_stands_and_a_warning_says_so(tmp_path):
    ctx = context(tmp_path, images(), stage=stage(parameters="0.5"), given=given(made(networks.mlp), tmp_path))

    output = prune.run(ctx)

    assert output.warnings == ("there is no data.train, so that nothing of what pruning cost was recovered",)
    assert list(output.details["quality"]) == ["before", "pruned"]
    assert load_program(output.program) is not None


def test_the_same_stage_gives_the_same_file(tmp_path):
    settings = stage(parameters="0.5", finetune={"epochs": 1})
    before = given(made(networks.mlp), tmp_path)
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        output = prune.run(context(tmp_path / name, images(), stage=settings, given=before, train=images(80, seed=1)))
        contents.append(output.program.read_bytes())

    assert contents[0] == contents[1]


def test_a_program_of_fixed_batch_is_pruned_but_not_fine_tuned(tmp_path):
    before = given(made(networks.residual_cnn), tmp_path, dynamic=False)
    data = images(41)

    output = prune.run(context(tmp_path, data, stage=stage(parameters="0.5"), given=before, train=data))

    assert output.details["batchNormRecomputed"] == 10
    assert output.details["quality"] == {}
    settings = stage(parameters="0.5", finetune={"epochs": 1})
    with pytest.raises(InputError, match="batch is always 2 cannot be fine-tuned"):
        prune.run(context(tmp_path, data, stage=settings, given=before, train=data))


class Summed(nn.Module):
    """Most channels sit at an operator without a rule."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow, self.head = nn.Linear(256, 64), nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, image):
        return self.head(self.narrow(torch.cumsum(self.wide(image.flatten(1)), 1)))


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = nn.Linear(256, 10)

    def forward(self, image):
        return self.only(image.flatten(1))


@pytest.mark.parametrize(
    ("make", "settings", "where", "says"),
    [
        pytest.param(
            Summed,
            {"parameters": "0.5"},
            "spec.recipe.stages.slim.prune.parameters",
            "50% of the parameters cannot be removed, 3.4% can. In the way: operator cumsum is not followed (cumsum): "
            '64 channels. Write parameters: "0.03" at most, or a roundTo below 8.',
            id="an operator is in the way",
        ),
        pytest.param(
            networks.mlp,
            {"parameters": "0.8", "maxCut": "0.5"},
            "spec.recipe.stages.slim.prune.parameters",
            '80% of the parameters cannot be removed, 54.8% can. Write parameters: "0.54" at most, '
            'or a maxCut above "0.5".',
            id="maxCut is in the way",
        ),
        pytest.param(
            networks.encoder,
            {"parameters": "0.8"},
            "spec.recipe.stages.slim.prune.parameters",
            "LayerNorm takes its statistics over these channels: 32 channels",
            id="LayerNorm is in the way",
        ),
        pytest.param(
            Locked,
            {"parameters": "0.1"},
            "spec.recipe.stages.slim.prune.parameters",
            "No channel of this model can be removed: leave the stage out.",
            id="nothing can go",
        ),
        pytest.param(
            Locked,
            {"latency": "0.5"},
            "spec.recipe.stages.slim.prune.latency",
            'this target is not available. Write macs: "0.5" instead.',
            id="another target",
        ),
        pytest.param(
            networks.mlp,
            {"parameters": "0.3", "finetune": {"epochs": 1}},
            "spec.data.train",
            "this stage trains",
            id="fine-tuning without training data",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_remedy(make, settings, where, says, tmp_path):
    ctx = context(tmp_path, images(), stage=stage(**settings), given=given(made(make), tmp_path))

    with pytest.raises(InputError) as refusal:
        prune.run(ctx)

    assert refusal.value.where == where
    assert says in str(refusal.value)
    assert not list(ctx.workdir.iterdir())


def test_a_model_that_came_as_onnx_is_refused(tmp_path):
    manifest = ArtifactManifest(files={}, signature=Signature(inputs=(), outputs=()))
    ctx = context(tmp_path, images(), stage=stage(parameters="0.5"), given=Artifact(manifest, {}))

    with pytest.raises(InputError, match=r"spec\.recipe\.stages\.slim: this stage needs an exported program"):
        prune.run(ctx)


def test_statistics_are_those_of_all_samples():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(256), nn.Dropout(0.5)

        def forward(self, image):
            return self.drop(self.norm(image.flatten(1)))

    ep = networks.export_program(Normed(), torch.rand(2, 1, 16, 16))
    gm, data = unlift(ep), images(130)
    x = torch.from_numpy(data.inputs["image"])

    assert recompute_statistics(gm, ep, data) == 1

    state = gm.state_dict()
    used = x[np.random.default_rng(0).permutation(130)[:128]].flatten(1)  # two whole batches of 64
    torch.testing.assert_close(state["norm.running_mean"], used.mean(0))
    torch.testing.assert_close(state["norm.running_var"], used.var(0), rtol=0.02, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(gm(x), gm(x))


@pytest.mark.parametrize("samples", [0, 1])
def test_too_few_samples_leave_the_statistics_alone(samples):
    ep = networks.export_program(made(networks.mlp), torch.rand(2, 1, 16, 16))
    gm = unlift(ep)
    before = {k: v.clone() for k, v in gm.state_dict().items()}

    assert recompute_statistics(gm, ep, images(samples)) == 0
    torch.testing.assert_close(gm.state_dict(), before)


def test_quality_is_taken_on_held_out_training_samples(tmp_path):
    ctx = context(tmp_path, images(), stage=stage(parameters="0.3"), given=given(made(networks.mlp), tmp_path))
    held_out = images(30, seed=5)
    ctx = replace(ctx, data=Datasets(evaluation=ctx.data.evaluation, validation=held_out))

    output = prune.run(ctx)

    original = unlift(load_program(ctx.input.files[Role.PROGRAM]))
    assert output.details["quality"]["before"] == training.evaluate(original, held_out, ctx.objective)
