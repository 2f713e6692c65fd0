"""SkipNet, CIFAR and ImageNet, recurrent and feed-forward gates.

``group{g}_ds0`` and ``group{g}_layer0.downsample`` are one module that the released network lists twice.
"""

RULES = (
    (r"(conv1|bn1|fc)", r"\1"),
    (r"(group\d+_layer\d+)\.((?:conv|bn)\d)", r"\1/\2"),
    (r"(group\d+_ds\d+)\.0", r"\1/conv"),
    (r"(group\d+_ds\d+)\.1", r"\1/bn"),
    (r"(group\d+)_layer(\d+)\.downsample\.0", r"\1_ds\2/conv"),
    (r"(group\d+)_layer(\d+)\.downsample\.1", r"\1_ds\2/bn"),
    (r"(group\d+_gate\d+)\.1", r"\1"),
    (r"(group\d+_gate\d+)\.((?:conv|bn)\d|linear_layer)", r"\1/\2"),
    (r"control\.(rnn|proj)", r"control/\1"),
)
