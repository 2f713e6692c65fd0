"""ManiDP, CIFAR (``conv_1_3x3``, ``stage_*``) and ImageNet (``conv1_7x7``, ``layer*``) forms."""

RULES = (
    (r"conv_1_3x3|conv1_7x7", "conv1"),
    (r"bn_?1", "bn1"),
    (r"classifier|fc", "classifier"),
    (r"stage_(\d+)\.(\d+)\.((?:conv|bn)_[ab])", r"stage_\1_\2/\3"),
    (r"stage_(\d+)\.(\d+)\.downsample\.0", r"stage_\1_\2/downsample"),
    (r"(?:stage_|layer)(\d+)\.(\d+)\.(mb[12])", r"stage_\1_\2/\3"),
    (r"(?:stage_|layer)(\d+)\.(\d+)\.(mb[12])\.(fc[12])", r"stage_\1_\2/\3/\4"),
    (r"layer(\d+)\.(\d+)\.(conv|bn)1", r"stage_\1_\2/\3_a"),
    (r"layer(\d+)\.(\d+)\.(conv|bn)2", r"stage_\1_\2/\3_b"),
    (r"layer(\d+)\.(\d+)\.downsample\.0", r"stage_\1_\2/downsample/conv"),
    (r"layer(\d+)\.(\d+)\.downsample\.1", r"stage_\1_\2/downsample/bn"),
)
