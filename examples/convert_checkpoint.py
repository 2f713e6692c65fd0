"""A PyTorch state dict becomes flax variables: every key and shape must match, or all that do not are listed.

python examples/convert_checkpoint.py CHECKPOINT OUTPUT    (needs `pip install '.[convert]'` to read the file)
"""

import sys

import numpy as np

import dyn_jax
import weights_convert
from dyn_jax.networks.checkpoint import load_variables, save_variables

name = "resnet-20-cifar10"
net = dyn_jax.networks.create(name)
if len(sys.argv) == 3:
    from weights_convert.torch_io import read_state_dict  # a pickle that tries to run code is refused

    variables = weights_convert.convert(name, read_state_dict(sys.argv[1]))
    save_variables(sys.argv[2], variables)
    output = net.apply(load_variables(sys.argv[2]), np.zeros((1, 32, 32, 3), np.float32))
    print("class of a black image", int(output.logits.argmax()))
else:  # no file at hand: what a state dict that does not fit is answered with
    try:
        weights_convert.convert(name, {"module.conv1.weight": np.zeros((16, 3, 5, 5), np.float32)})
    except weights_convert.ConversionError as error:
        print("\n".join(str(error).splitlines()[:3]), "\n  ...")
