"""SACT and ACT: TensorFlow variable names (scope ``resnet_residual`` or ``resnet_v2``), CIFAR and ImageNet."""

_UNIT = r"resnet_v2/block(\d+)/unit_(\d+)/bottleneck_v2"

RULES = (
    (r"resnet_residual/Conv", "conv1"),
    (r"resnet_residual/BatchNorm", "bn"),
    (r"resnet_residual/logits", "fc"),
    (r"resnet_residual/block_(\d+)/unit_(\d+)/residual/preact", r"block\1_unit\2/bn1"),
    (r"resnet_residual/block_(\d+)/unit_(\d+)/residual/conv1/BatchNorm", r"block\1_unit\2/bn2"),
    (r"resnet_residual/block_(\d+)/unit_(\d+)/residual/(conv[12])", r"block\1_unit\2/\3"),
    (r"resnet_residual/block_(\d+)/unit_(\d+)/halting_proba/(\w+)", r"block\1_unit\2_halting/\3"),
    (r"resnet_v2/conv1", "conv1"),
    (r"resnet_v2/postnorm", "bn"),
    (r"resnet_v2/logits", "fc"),
    (rf"{_UNIT}/preact", r"block\1_unit\2/bn1"),
    (rf"{_UNIT}/conv1/BatchNorm", r"block\1_unit\2/bn2"),
    (rf"{_UNIT}/conv2/BatchNorm", r"block\1_unit\2/bn3"),
    (rf"{_UNIT}/(shortcut|conv[123])", r"block\1_unit\2/\3"),
    (r"resnet_v2/block(\d+)/unit_(\d+)/halting_proba/(\w+)", r"block\1_unit\2_halting/\3"),
)
