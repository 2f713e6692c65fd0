"""Networks, one family a file, and their names."""

from dyn_jax.networks import adavit as adavit
from dyn_jax.networks import avit as avit
from dyn_jax.networks import dynconv as dynconv
from dyn_jax.networks import evit as evit
from dyn_jax.networks import manidp as manidp
from dyn_jax.networks import rdi as rdi
from dyn_jax.networks import resnet as resnet
from dyn_jax.networks import sact as sact
from dyn_jax.networks import sdn as sdn
from dyn_jax.networks import sdn_mobilenet as sdn_mobilenet
from dyn_jax.networks import sdn_resnet as sdn_resnet
from dyn_jax.networks import sdn_vgg as sdn_vgg
from dyn_jax.networks import skipnet as skipnet
from dyn_jax.networks.embed import embed as embed
from dyn_jax.networks.pretrained import PRETRAINED as PRETRAINED
from dyn_jax.networks.pretrained import pretrained as pretrained
from dyn_jax.networks.pretrained import untrained as untrained
from dyn_jax.networks.registry import create as create
from dyn_jax.networks.registry import names as names
