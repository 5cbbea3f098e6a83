"""Channel rules, one operator at a time: what can go, what stays and why, and that nothing is cut wrongly."""

import pytest
import torch
from support import networks
from torch import nn
from torch.nn import functional

from lathe_optimizers.passes.channels import ChannelGraph
from lathe_optimizers.passes.programs import unlift
from lathe_optimizers.passes.pruner import narrow_program, prune_program

pytestmark = pytest.mark.models

IMAGES = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))


class Around(nn.Module):
    """A function between two layers: `before` makes its channels, `after` reads them."""

    def __init__(self, before, function, after, extra=None):
        super().__init__()
        self.before, self.after, self.extra = before, after, extra
        self.function = function

    def forward(self, image):
        y = self.before(image)
        y = self.function(y) if self.extra is None else self.function(y, self.extra)
        return self.after(y)


def maps(function, extra=None, *, into=16):
    """Feature maps (batch, 16, 16, 16) -> maps of `into` channels."""
    return lambda: Around(nn.Conv2d(1, 16, 3, padding=1), function, nn.Conv2d(into, 8, 3), extra and extra())


def rows(function, extra=None, *, into=16):
    """Sequences (batch, 16 steps, 16 channels) -> sequences of `into` channels."""
    return lambda: Around(
        nn.Sequential(nn.Flatten(1, 2), nn.Linear(16, 16)), function, nn.Linear(into, 8), extra and extra()
    )


def heads(x):
    return x.view(x.shape[0], 16, 4, 4).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


class Mixed(nn.Module):
    """Attention of `batch_first` MultiheadAttention."""

    def __init__(self):
        super().__init__()
        self.mix = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return self.mix(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


class JoinedWithInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, image):
        return self.last(self.first(image) + image)


def call(x, module):
    return module(x)


CUT = {
    "reshaped groups": maps(lambda x: x.view(-1, 2, 8, 16, 16).flatten(1, 2)),
    "transposed": maps(lambda x: x.permute(0, 2, 3, 1).transpose(1, 3).transpose(2, 3)),
    "padded maps": maps(lambda x: functional.pad(x, (1, 1, 1, 1))),
    "pooled with indices": maps(lambda x: functional.max_pool2d(x, 2, return_indices=True)[0]),
    "pooled": maps(lambda x: functional.avg_pool2d(x, 2)),
    "upsampled": maps(lambda x: functional.interpolate(x, scale_factor=2)),
    "repeated by cat": maps(lambda x: torch.cat([x, -x], 1), into=32),
    "halves swapped": maps(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "unequal parts": maps(lambda x: torch.cat(list(x.split([4, 12], 1))[::-1], 1)),
    "reduced over maps": maps(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    "largest of maps": maps(lambda x: x - x.amax((2, 3), keepdim=True)),
    "masked": maps(lambda x: x.masked_fill(x.detach().abs() < 0, 1.0)),
    "in place": maps(lambda x: functional.relu(x, inplace=True).add_(1)),
    "PReLU of one slope": maps(call, nn.PReLU),
    "PReLU of each channel": maps(call, lambda: nn.PReLU(16)),
    "depthwise with two outputs each": maps(call, lambda: nn.Conv2d(16, 32, 3, groups=16), into=32),
    "grouped": maps(call, lambda: nn.Conv2d(16, 32, 3, groups=4), into=32),
    "sliced in time": rows(lambda x: x[:, 2:9]),
    "one step": rows(lambda x: x[:, 0]),
    "two steps side by side": rows(lambda x: x.reshape(x.shape[0], 8, 32), into=32),
    "unsqueezed": rows(lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1).mean(1)),
    "attention heads": rows(lambda x: joined(functional.scaled_dot_product_attention(heads(x), heads(x), heads(x)))),
    "causal attention": rows(
        lambda x: joined(functional.scaled_dot_product_attention(heads(x), heads(x), heads(x), is_causal=True))
    ),
    "unflattened": rows(lambda x: x.unflatten(2, (4, 4)).transpose(1, 2).transpose(1, 2).flatten(2)),
}
KEPT = {
    "cumsum": (maps(lambda x: x.cumsum(1)), "operator cumsum is not followed"),
    "softmax over channels": (maps(lambda x: x.softmax(1)), "softmax over channels"),
    "mean over channels": (maps(lambda x: x - x.mean(1, keepdim=True)), "reduced"),
    "mean of everything": (maps(lambda x: x - x.mean()), "operator mean is not followed"),
    "one channel selected": (maps(lambda x: x - x[:, :1]), "sliced"),
    "channel taken out": (maps(lambda x: x * x[:, 3].unsqueeze(1)), "one of them is selected"),
    "channels taken apart": (maps(lambda x: torch.stack(x.unbind(1), 1)), "taken apart"),
    "padded channels": (maps(lambda x: functional.pad(x, (0, 0, 0, 0, 1, 1)), into=18), "padded"),
    "pooled channels": (rows(lambda x: functional.avg_pool1d(x, 2), into=8), "pooled"),
    "GroupNorm": (maps(call, lambda: nn.GroupNorm(4, 16)), "operator group_norm is not followed"),
    "ConvTranspose": (
        maps(call, lambda: nn.ConvTranspose2d(16, 16, 2, 2)),
        "operator conv_transpose2d is not followed",
    ),
    "LSTM": (rows(call, Recurrent), "operator lstm is not followed"),
    "LayerNorm over maps": (maps(call, lambda: nn.LayerNorm([16, 16, 16])), "normalised over several dimensions"),
    "joined with the input": (JoinedWithInput, "meets channels that are not followed"),
    "indexed": (maps(lambda x: x[:, [3, 1, 2, 0]], into=4), "operator index is not followed"),
}


def program(make):
    torch.manual_seed(0)
    return networks.export_program(make(), IMAGES[:2])


def layer(graph, name):
    """Whether the channels that a layer makes may go, and why not."""
    return [g.frozen for g in graph.groups if any(s.path == f"{name}.weight" and s.dim == 0 for s in g.slots)]


@pytest.mark.parametrize("name", CUT)
def test_channels_are_followed_through(name):
    full = program(CUT[name])
    before = "before.1" if "before.1.weight" in dict(full.named_parameters()) else "before"
    assert layer(ChannelGraph(unlift(full)), before).count(None) >= 1, layer(ChannelGraph(unlift(full)), before)

    _, report = prune_program(full, 0.3, round_to=1, samples=(IMAGES,))

    assert report.reached
    assert report.slice_error < 1e-5
    narrow, report = narrow_program(full, 0.5, round_to=1)
    assert report.slice_error < 1e-5
    assert dict(narrow.named_parameters())[f"{before}.weight"].shape[0] == 8


@pytest.mark.filterwarnings("ignore:The tensor attributes .* were assigned during export:UserWarning")  # nn.LSTM
@pytest.mark.parametrize("name", KEPT)
def test_channels_are_kept_with_a_reason(name):
    make, why = KEPT[name]
    full = program(make)

    found = [
        g.frozen
        for g in ChannelGraph(unlift(full)).groups
        if any(s.path in ("before.weight", "before.1.weight", "first.weight") and s.dim == 0 for s in g.slots)
    ]

    assert found
    assert all(f is not None for f in found)
    assert any(f.startswith(why) for f in found), found
    _, report = prune_program(full, 0.5, round_to=1, samples=(IMAGES,))
    assert report.slice_error is not None
    assert report.slice_error < 1e-5


def test_heads_of_multihead_attention_are_kept():
    graph = ChannelGraph(unlift(program(rows(call, Mixed))))

    (inner,) = [g for g in graph.groups if any(s.path == "extra.mix.in_proj_weight" and s.dim == 0 for s in g.slots)]

    assert inner.frozen is not None
    assert inner.frozen.endswith("(extra.mix)")


def test_a_mask_of_each_head_keeps_the_heads():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.randn(1, 4, 16, 16))

        def forward(self, x):
            h = heads(x)
            return joined(functional.scaled_dot_product_attention(h, h, h, attn_mask=self.bias))

    found = layer(ChannelGraph(unlift(program(rows(call, Biased)))), "before.1")

    assert found == ["attention mask of each head (extra)"]


def test_fewer_heads_for_keys_than_for_queries_are_kept():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.key = nn.Linear(16, 8)

        def forward(self, x):
            k = self.key(x).view(x.shape[0], 16, 2, 4).transpose(1, 2)
            return joined(functional.scaled_dot_product_attention(heads(x), k, k, enable_gqa=True))

    full = program(rows(call, Grouped))

    assert None not in layer(ChannelGraph(unlift(full)), "extra.key")
    assert prune_program(full, 0.5, round_to=1)[1].slice_error < 1e-5


def test_a_group_names_the_layer_and_the_size_of_a_head():
    graph = ChannelGraph(unlift(program(CUT["attention heads"])))

    (group,) = [g for g in graph.groups if g.frozen is None]

    assert (group.name, len(group.channels), group.multiplicity, group.normalized) == ("before.1", 4, 4, False)
