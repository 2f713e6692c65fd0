"""CIFAR ResNets with option-A shortcuts (``linear`` head) and torchvision's ImageNet ResNets (``fc`` head)."""

RULES = (
    (r"(conv1|bn1)", r"\1"),
    (r"(?:linear|fc)", "fc"),
    (r"layer(\d+)\.(\d+)\.((?:conv|bn)\d)", r"layer\1_\2/\3"),
    (r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.0", r"layer\1_\2_downsample/conv"),
    (r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.1", r"layer\1_\2_downsample/bn"),
)
