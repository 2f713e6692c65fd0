"""DynConv, CIFAR and ImageNet."""

RULES = (
    (r"(conv1|bn1|fc)", r"\1"),
    (r"layer(\d+)\.(\d+)\.((?:conv|bn)\d)", r"layer\1_\2/\3"),
    (r"layer(\d+)\.(\d+)\.downsample\.0", r"layer\1_\2_downsample/conv"),
    (r"layer(\d+)\.(\d+)\.downsample\.1", r"layer\1_\2_downsample/bn"),
    (r"layer(\d+)\.(\d+)\.masker\.maskconv\.(conv|fc)", r"layer\1_\2_masker/\3"),
)
