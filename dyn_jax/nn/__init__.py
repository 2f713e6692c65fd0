"""Layers that the networks share."""

from dyn_jax.nn.conv import conv2d as conv2d
from dyn_jax.nn.depthwise import DepthwiseConv as DepthwiseConv
from dyn_jax.nn.depthwise import depthwise_conv3x3 as depthwise_conv3x3
from dyn_jax.nn.layers import Conv as Conv
from dyn_jax.nn.layers import Dense as Dense
from dyn_jax.nn.layers import add_relu as add_relu
from dyn_jax.nn.layers import global_mean as global_mean
from dyn_jax.nn.layers import relu as relu
from dyn_jax.nn.layers import window_mean as window_mean
from dyn_jax.nn.lstm import LSTM as LSTM
from dyn_jax.nn.lstm import lstm_step as lstm_step
from dyn_jax.nn.norm import BatchNorm as BatchNorm
from dyn_jax.nn.normalization import CIFAR10_MEAN_STD as CIFAR10_MEAN_STD
from dyn_jax.nn.normalization import DIGITS_MEAN_STD as DIGITS_MEAN_STD
from dyn_jax.nn.normalization import IMAGENET_MEAN_STD as IMAGENET_MEAN_STD
from dyn_jax.nn.normalization import normalize as normalize
from dyn_jax.nn.pooling import flatten as flatten
from dyn_jax.nn.pooling import max_pool as max_pool
from dyn_jax.nn.pooling import mixed_pool as mixed_pool
from dyn_jax.nn.residual import BasicBranch as BasicBranch
from dyn_jax.nn.residual import BottleneckBranch as BottleneckBranch
from dyn_jax.nn.residual import Projection as Projection
from dyn_jax.nn.residual import pad_shortcut as pad_shortcut
from dyn_jax.nn.residual import stem as stem
