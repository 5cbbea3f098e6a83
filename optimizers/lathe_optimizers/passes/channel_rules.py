"""All channel rules, by name of the ATen operator. What is not here freezes the channels that flow into it."""

from typing import Final

from lathe_optimizers.passes import channel_rules_layers, channel_rules_pointwise, channel_rules_shapes
from lathe_optimizers.passes.channel_rules_base import Rule

RULES: Final[dict[str, Rule]] = {
    **channel_rules_layers.RULES,
    **channel_rules_pointwise.RULES,
    **channel_rules_shapes.RULES,
}
