"""Pruning a program: what is left is a part of the full network, whatever it is made of."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import networks
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lathe_api.recipe import PruneScope
from lathe_optimizers.passes import channel_rules, channel_rules_pointwise, pruner
from lathe_optimizers.passes.programs import count_parameters, load_program, quiet_torch, save_program, unlift
from lathe_optimizers.passes.pruner import NORMALIZED, UNPROVED, Cost, CutError, narrow_program, prune_program

pytestmark = pytest.mark.models


class Opaque(nn.Module):
    """An operator without a rule sits on the first layer's channels."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(256, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, image):
        return self.third(functional.relu(self.second(torch.cumsum(self.first(image.flatten(1)), 1))))


class Tied(nn.Module):
    """One weight is used by two layers, once transposed; another layer is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(256, 32), nn.Linear(32, 32), nn.Linear(256, 10)

    def forward(self, image):
        x = functional.relu(self.first(image.flatten(1)))
        x = self.again(functional.relu(self.again(x)))
        return self.last(torch.matmul(x, self.first.weight))


class Joined(nn.Module):
    """Dense connections by cat, a gated linear unit by chunk, a gate by split."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*networks.conv_bn(1, 16), nn.ReLU())
        self.grow = nn.Sequential(*networks.conv_bn(16, 16), nn.ReLU())
        self.gated = nn.Conv2d(32, 64, 1)
        self.parts = nn.Conv2d(32, 48, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, image):
        x = self.stem(image)
        x = torch.cat([x, self.grow(x)], 1)
        value, gate = self.gated(x).chunk(2, 1)
        value, first, second = self.parts(value * torch.sigmoid(gate)).split([16, 16, 16], 1)
        return self.head((value * first + second).mean((2, 3)))


class Blocks(nn.Module):
    """A depthwise convolution of large kernel, LayerNorm over channels-last maps, padding, PReLU, conv1d."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(1, 16, 4, 4), nn.Conv2d(16, 16, 5, groups=16)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)
        self.rows, self.slope, self.head = nn.Conv1d(16, 32, 3, padding=1), nn.PReLU(32), nn.Linear(32, 10)

    def forward(self, image):
        x = self.stem(image)
        y = self.norm(self.depthwise(functional.pad(x, (2, 2, 2, 2))).permute(0, 2, 3, 1))
        x = x + self.down(functional.gelu(self.up(y))).permute(0, 3, 1, 2)
        return self.head(self.slope(self.rows(x.flatten(2))).amax(2))


class FusedAttention(nn.Module):
    """Query, key and value by one layer; heads by unbind; products written out; scale from the head size."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out, self.head = (nn.Linear(*s) for s in ((16, 32), (32, 96), (32, 32), (32, 10)))

    def forward(self, image):
        x = self.embed(image.squeeze(1))
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, 8, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(4), -1)
        return self.head((x + self.out((weights @ v).transpose(1, 2).reshape(b, t, 32))).mean(1))


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.one, self.two = nn.Linear(256, 64), nn.Linear(64, 10), nn.Linear(64, 3)

    def forward(self, image):
        x = functional.silu(self.trunk(image.flatten(1)))
        return self.one(x), self.two(x)


NETWORKS = {
    "residual": (networks.residual_cnn, 0.5),
    "plain, flattened": (networks.plain_cnn, 0.5),
    "depthwise, gated": (networks.separable_cnn, 0.5),
    "grouped, shuffled": (networks.shuffled, 0.5),
    "BatchNorm over Linear": (networks.mlp, 0.5),
    "encoder": (networks.encoder, 0.4),
    "opaque operator": (Opaque, 0.15),
    "tied weights": (Tied, 0.25),
    "cat, chunk, split": (Joined, 0.4),
    "ConvNeXt block": (Blocks, 0.3),
    "fused attention": (FusedAttention, 0.3),
    "two outputs": (TwoOutputs, 0.4),
}
IMAGES = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(7))


def lively(network):
    """Statistics, scales and shifts as after training: an untrained BatchNorm would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
            for name, tensor in module.state_dict().items():
                if name != "num_batches_tracked":
                    tensor.uniform_(0.5, 1.5, generator=generator)
    return network


def program(make, *, dynamic=True):
    torch.manual_seed(0)
    return networks.export_program(lively(make()), IMAGES[:2], dynamic=dynamic)


def weights(ep):
    return {name: tuple(p.shape) for name, p in ep.named_parameters()}


def answers(ep, images):
    with torch.no_grad():
        out = unlift(ep)(images)
    return torch.cat([o.flatten() for o in (out if isinstance(out, tuple) else (out,))])


@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "after run_decompositions"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_cut_network_is_the_full_one_without_the_channels(name, decomposed, tmp_path):
    make, share = NETWORKS[name]
    full = program(make)
    if decomposed:
        with quiet_torch():
            full = full.run_decompositions()
        share = min(share, 0.2) if "attention" not in name else 0.05
    before = weights(full)

    small, report = prune_program(full, share, samples=(IMAGES,))

    assert report.slice_error is not None
    assert report.slice_error < 1e-5
    assert (report.reached, report.parameters_before) == (report.removed_share >= share, count_parameters(full))
    assert report.parameters_after == count_parameters(small)
    assert report.parameters_after < report.parameters_before
    assert report.reached or (decomposed and name == "fused attention")
    for path, shape in weights(small).items():
        for was, size in zip(before[path], shape, strict=True):
            assert size == was or size % 8 == 0 or was % 8 != 0, (path, before[path], shape)
    assert weights(full) == before
    save_program(small, tmp_path / "small.pt2")
    loaded = load_program(tmp_path / "small.pt2")
    torch.testing.assert_close(answers(loaded, IMAGES), answers(small, IMAGES))
    assert len(answers(loaded, IMAGES[:5])) * 6 == len(answers(loaded, IMAGES)) * 5


def test_a_program_of_fixed_batch_stays_so():
    small, report = prune_program(program(networks.residual_cnn, dynamic=False), 0.5)

    assert report.reached
    assert report.slice_error < 1e-5
    assert answers(small, IMAGES[:2]).shape == (20,)


def test_the_smallest_hidden_units_go_and_the_rest_keeps_its_weights():
    torch.manual_seed(0)
    first, second = nn.Linear(256, 16), nn.Linear(16, 10)
    small_ones = [1, 2, 5, 6, 8, 11, 13, 14]
    with torch.no_grad():
        first.weight[small_ones] *= 0.1
        first.bias[small_ones] *= 0.1
        second.weight[:, small_ones] *= 0.1
    full = networks.export_program(networks.ImageNetwork(nn.Flatten(), first, nn.ReLU(), second), IMAGES[:2])

    small, report = prune_program(full, 0.4)

    kept = [i for i in range(16) if i not in small_ones]
    assert [(g.layer, g.kept, g.total, g.multiple_of) for g in report.groups] == [("1", 8, 16, 8)]
    state = dict(small.named_parameters())
    torch.testing.assert_close(state["1.weight"], first.weight[kept])
    torch.testing.assert_close(state["1.bias"], first.bias[kept])
    torch.testing.assert_close(state["3.weight"], second.weight[:, kept])
    torch.testing.assert_close(state["3.bias"], second.bias)


def test_an_export_in_training_mode_is_pruned_as_one_in_inference_mode():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 64, dropout=0.5, batch_first=True)
    network = networks.ImageNetwork(nn.Flatten(1, 2), layer, nn.Linear(16, 10))
    programs = [networks.export_program(network, IMAGES[:2], training=training) for training in (False, True)]

    reports = [prune_program(p, 0.3)[1] for p in programs]

    assert [g.kept for g in reports[0].groups] == [g.kept for g in reports[1].groups]
    assert all(r.reached and r.slice_error < 1e-5 for r in reports)


def test_uniform_scope_cuts_the_same_share_of_every_group():
    _, report = prune_program(program(networks.residual_cnn), 0.5, scope=PruneScope.UNIFORM, round_to=1)

    shares = [g.kept / g.total for g in report.groups]
    assert max(shares) - min(shares) <= 1 / 16
    assert 0.5 <= report.removed_share < 0.6


def test_no_group_loses_more_than_max_cut():
    _, report = prune_program(program(networks.mlp), 0.7, round_to=1, max_cut=0.5)

    assert not report.reached
    assert [g.kept / g.total for g in report.groups] == [0.5, 0.5]


def test_coarse_steps_do_not_take_more_than_needed():
    _, report = prune_program(program(networks.shuffled), 0.4)

    assert 0.4 <= report.removed_share < 0.5


def test_an_operator_without_a_rule_keeps_its_channels_and_is_named():
    _, report = prune_program(program(Opaque), 0.5)

    assert not report.reached
    assert report.blocked["cumsum [cumsum]"] == "operator cumsum is not followed"
    assert report.refused["operator cumsum is not followed (cumsum)"] == 64
    assert [(g.layer, g.total) for g in report.groups] == [("second", 64)]
    details = report.details()
    assert details["reached"] is False
    assert details["parametersAfter"] == report.parameters_after


def test_the_model_width_of_an_encoder_is_kept_and_the_reason_is_told():
    small, report = prune_program(program(networks.encoder), 0.4)

    assert report.refused[NORMALIZED] == 32
    assert [g.layer for g in report.groups] == ["layers.0.query", "layers.0.up", "layers.1.query", "layers.1.up"]
    heads = weights(small)["layers.0.query.weight"][0] / 4
    assert heads == report.groups[0].kept
    assert weights(small)["embed.weight"] == (32, 16)


class Flipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(256, 32), nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, image):
        return self.third(torch.tanh(self.second(self.first(image.flatten(1)).flip(1))))


class Products(nn.Module):
    """Channels of two activations are contracted after a function that is not 0 at 0 (linear attention)."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.head = (nn.Linear(*s) for s in ((16, 32), (16, 32), (16, 64), (64, 10)))

    def forward(self, image):
        x = image.squeeze(1)
        weights = torch.exp(self.query(x)) @ torch.exp(self.key(x)).transpose(1, 2)
        return self.head((weights @ self.value(x)).mean(1))


def test_channels_whose_cut_cannot_be_proved_are_left_alone():
    _, report = prune_program(program(Products), 0.3)

    assert report.refused[f"{UNPROVED} (query)"] == 32
    assert [g.layer for g in report.groups] == ["value"]
    assert report.slice_error < 1e-5


def test_the_proof_catches_a_wrong_rule(monkeypatch):
    full = program(Flipped)
    _, right = prune_program(full, 0.2)
    monkeypatch.setitem(channel_rules.RULES, "flip", channel_rules_pointwise.RULES["relu"])

    _, wrong = prune_program(full, 0.8)

    assert right.refused["operator flip is not followed (flip)"] == 32
    assert wrong.refused[f"{UNPROVED} (first)"] == 32
    assert [g.layer for g in wrong.groups] == [g.layer for g in right.groups] == ["second"]


def test_nothing_is_given_out_that_cannot_be_proved(monkeypatch):
    monkeypatch.setattr(pruner, "tolerance", lambda _: -1.0)

    with pytest.raises(CutError, match="cutting channels out changes its answers"):
        prune_program(program(networks.mlp), 0.5)


@pytest.mark.parametrize("name", ["residual", "grouped, shuffled", "BatchNorm over Linear", "encoder"])
def test_a_narrow_program_keeps_about_its_width_of_every_group(name):
    full = program(NETWORKS[name][0])

    student, report = narrow_program(full, 0.5)

    assert report.reached
    assert report.slice_error < 1e-5
    assert all(g.kept / g.total == 0.5 for g in report.groups)
    assert answers(student, IMAGES).isfinite().all()
    if name == "encoder":
        assert weights(student)["embed.weight"] == (16, 16)
        assert weights(student)["layers.0.norm1.weight"] == (16,)


def test_groups_too_small_for_the_rounding_are_narrowed_by_a_finer_one():
    _, report = narrow_program(program(lambda: networks.residual_cnn(width=8)), 0.5)

    found = {(g.total, g.kept, g.multiple_of) for g in report.groups}
    assert found == {(8, 4, 4), (16, 8, 8)}


def choice(folder):
    """What is chosen for one network: report and digest of the file."""
    torch.manual_seed(0)
    small, report = prune_program(networks.export_program(networks.shuffled(), torch.rand(2, 1, 16, 16)), 0.4)
    save_program(small, folder / "small.pt2")
    digest = hashlib.sha256((folder / "small.pt2").read_bytes()).hexdigest()
    return json.dumps({"digest": digest, "report": report.details()})


def show(folder):
    sys.stdout.write(choice(Path(folder)))


def test_another_process_with_another_hash_seed_makes_the_same_choice(tmp_path):
    here = choice(tmp_path)
    script = "import sys; sys.path[:0] = sys.argv[1:3]; import test_prune_programs as t; t.show(sys.argv[3])"
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parent), str(tmp_path)]

    there = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *folders],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert there == here


@pytest.mark.parametrize("network", [networks.residual_cnn, networks.mlp], ids=["CNN", "MLP"])
def test_a_share_of_the_operations_is_removed(network):
    full = program(network)
    small, report = prune_program(full, 0.5, of=Cost.MACS)
    assert report.reached
    assert macs_by_torch(full) == report.macs_before
    assert macs_by_torch(small) == report.macs_after <= 0.5 * report.macs_before


def macs_by_torch(ep) -> int:
    """Of one sample, by torch's own counter of floating-point operations, two to a multiply-accumulate."""
    with FlopCounterMode(display=False) as counter:
        ep.module()(IMAGES[:2])
    return counter.get_total_flops() // 4
