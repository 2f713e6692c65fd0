"""Robust-MoE-CNN: a ResNet of expert convolutions; every one of them lists the shared router among its children."""

_ROUTER = r"(?:layer\d+\.\d+\.conv\d\.)?router"

RULES = (
    (r"(conv1|bn1|linear)", r"\1"),
    (r"layer(\d+)\.(\d+)\.((?:conv|bn)\d)", r"layer\1_\2/\3"),
    (r"layer(\d+)\.(\d+)\.shortcut\.0", r"layer\1_\2_downsample/conv"),
    (r"layer(\d+)\.(\d+)\.shortcut\.1", r"layer\1_\2_downsample/bn"),
    (_ROUTER + r"\.(conv1|bn1|fc)", r"router/\1"),
    (_ROUTER + r"\.layer(\d+)\.(\d+)\.((?:conv|bn)\d)", r"router/layer\1_\2/\3"),
)
