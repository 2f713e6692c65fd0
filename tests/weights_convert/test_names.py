"""Prefixes and counters that wrappers leave, and files with two state dicts: taken off, chosen, or named."""

import numpy as np
import pytest

import weights_convert
from dyn_jax.networks.resnet import ResNet
from weights_convert import ConversionError, names
from weights_convert.__main__ import main

NET = ResNet(depths=(1,), widths=(2,), num_classes=3)


def state(value=1.0):
    """A ResNet of one block; every number is `value`."""
    shapes = {"conv1.weight": (2, 3, 3, 3), "linear.weight": (3, 2), "linear.bias": (3,)}
    shapes |= {f"layer1.0.conv{i}.weight": (2, 2, 3, 3) for i in (1, 2)}
    norms = ("bn1", "layer1.0.bn1", "layer1.0.bn2")
    shapes |= {f"{norm}.{leaf}": (2,) for norm in norms for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {key: np.full(shape, value, np.float32) for key, shape in shapes.items()}


def under(prefix, content=None):
    return {prefix + key: value for key, value in (content or state()).items()}


def inside(part):
    """torch.compile or FSDP around every block."""
    return {key.replace("layer1.0.", f"layer1.0.{part}."): value for key, value in state().items()}


PLAIN = {
    "plain": state(),
    **{
        prefix: under(prefix)
        for prefix in (
            *("module.", "_orig_mod.", "model.", "net.", "network.", "module._orig_mod.", "_orig_mod.module."),
            *("module.module.", "model._orig_mod.module.", "model.net.", "_forward_module.model."),
        )
    },
    "compiled blocks": inside("_orig_mod"),
    "FSDP": under("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module._checkpoint_wrapped_module")),
    "SWA": {"n_averaged": np.array(5), **under("module.")},
    "SWA of DataParallel": {"module.n_averaged": np.array(5), **under("module.module.")},
    "thop": {**state(), "total_ops": np.zeros(1), "conv1.total_ops": np.zeros(1), "layer1.0.total_params": np.zeros(1)},
    "thop and DataParallel": {**under("module."), "module.total_ops": np.zeros(1), "total_params": np.zeros(1)},
    "counters of norms": {**under("module."), "module.bn1.num_batches_tracked": np.array(3)},
    "a prefix that nobody knows": under("backbone.trunk."),
    "an average alone": under("ema_model.module."),
}


@pytest.mark.parametrize("case", PLAIN)
def test_what_wrappers_add_changes_nothing(case):
    got, expected = weights_convert.convert(NET, PLAIN[case]), weights_convert.convert(NET, state())
    assert sorted(got) == sorted(expected)
    np.testing.assert_equal(got, expected)


@pytest.mark.parametrize("first", ["model", "module", "net"])
@pytest.mark.parametrize("second", ["model_ema", "ema", "teacher", "swa_model", "ema_model", "shadow"])
def test_two_models_under_two_prefixes(first, second):
    both = {**under(f"{first}."), **under(f"{second}.", state(2.0))}
    with pytest.raises(ValueError, match="2 state dicts, under the prefixes ") as caught:
        weights_convert.convert(NET, both)
    assert f"'{first}'" in str(caught.value) and f"'{second}'" in str(caught.value) and "entry=" in str(caught.value)
    for entry, value in ((first, 1.0), (second, 2.0)):
        np.testing.assert_equal(names.plain(both, entry), state(value))
    with pytest.raises(ValueError, match=f"entry: got 'emma', expected one of .*{second}"):
        names.plain(both, "emma")


def test_a_prefix_that_some_keys_lack_is_named():
    with pytest.raises(
        ConversionError, match=r"17 of 18 keys have the prefix 'model\.', not criterion.weight: "
    ) as caught:
        weights_convert.convert(NET, {**under("model."), "criterion.weight": np.ones(3)})
    assert "entry='model' (on the command line: --entry model)" in str(caught.value)


def test_two_keys_that_become_one():
    with pytest.raises(ValueError, match=r"two keys are 'conv1\.weight' without what torch\.compile"):
        weights_convert.convert(NET, {**state(), "_orig_mod.conv1.weight": np.ones(3)})


def test_long_listings_and_names_are_cut():
    many = {f"{'x' * 1000}{i}.weight": np.ones(1) for i in range(5000)}
    with pytest.raises(ConversionError, match="and 4992 more") as caught:
        weights_convert.convert(NET, many)
    assert len(str(caught.value)) < 10_000
    with pytest.raises(ConversionError) as caught:
        weights_convert.convert(NET, {"a\x1b[2J\nb.weight": np.ones(1)})
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("key", [3, None, ("a",)])
def test_keys_that_are_no_names(key):
    with pytest.raises(TypeError, match="state_dict: got the key"):
        weights_convert.convert(NET, {**state(), key: np.ones(1)})


# --- files -------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")


def tensors(value):
    return {key: torch.from_numpy(array) for key, array in state(value).items()}


def read(path, content, **options):
    from weights_convert.torch_io import read_state_dict

    torch.save(content, path)
    return read_state_dict(path, **options)


RAW, AVERAGE = tensors(1.0), tensors(2.0)
AVERAGES = (
    *("state_dict_ema", "model_ema", "ema", "teacher", "params_ema", "ema_state_dict", "averaged_model", "shadow"),
    *("ema_model", "swa_state_dict", "net_ema", "best_state_dict", "model_avg"),
)


@pytest.mark.torch
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("raw", ["state_dict", "model"])
def test_two_state_dicts_are_named_and_chosen(path, raw, average):
    content = {raw: RAW, average: AVERAGE, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}
    with pytest.raises(ValueError, match=f"2 state dicts, '{raw}', '{average}', expected one: choose one with entry="):
        read(path, content)
    for entry, value in ((raw, 1.0), (average, 2.0)):
        np.testing.assert_equal(read(path, content, entry=entry), state(value))


@pytest.mark.torch
@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"params": RAW, "params_ema": AVERAGE}, "'params', 'params_ema'"),
        ({"model": {"state_dict": RAW}, "model_ema": {"state_dict": AVERAGE}}, "'model', 'model_ema'"),
        ({"state_dict": {"model": RAW, "ema": AVERAGE}}, "'model', 'ema'"),
        ({"model": RAW, "ema": {"decay": 0.9, "module": AVERAGE}}, "'model', 'ema'"),
        ({"model": RAW, "ema": {"decay": 0.9, "shadow_params": list(AVERAGE.values())}}, "'model', 'ema'"),
        ({"state_dict": RAW, "momentum": AVERAGE}, "'state_dict', 'momentum'"),
        ({"state_dict": {**under("model.", RAW), **under("model_ema.module.", AVERAGE)}}, "'model', 'model_ema'"),
    ],
)
def test_other_forms_of_two(path, content, found):
    with pytest.raises(ValueError, match=f"it holds 2 state dicts.*{found}"):
        read(path, content)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("content", "entry"),
    [
        ({"model": {"state_dict": RAW}, "model_ema": {"state_dict": AVERAGE}}, "model_ema"),
        ({"state_dict": {"model": RAW, "ema": AVERAGE}}, "ema"),
        ({"run": {"last": RAW, "mean": AVERAGE}}, "run/mean"),
        ({"model": RAW, "ema": {"decay": 0.9, "module": AVERAGE}}, "ema/module"),
        ({"state_dict": {**under("model.", RAW), **under("model_ema.module.", AVERAGE)}}, "model_ema"),
        ({"weights": AVERAGE}, "weights"),
    ],
)
def test_an_entry_at_any_depth(path, content, entry):
    np.testing.assert_equal(read(path, content, entry=entry), state(2.0))


@pytest.mark.torch
@pytest.mark.parametrize(
    "beside",
    [
        {"criterion": {"weight": torch.ones(3)}},
        {"scaler": {"scale": torch.ones(1)}},
        {"best_avg": torch.tensor(0.9)},
        {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}},
        {"ema_decay": 0.99},
    ],
)
def test_what_is_no_second_state_dict(path, beside):
    np.testing.assert_equal(read(path, {"state_dict": RAW, **beside}), state(1.0))


@pytest.mark.torch
def test_an_unknown_entry(path):
    with pytest.raises(ValueError, match="in.pth': entry: got 'emma', expected one of bn1, conv1, layer1, linear"):
        read(path, {"state_dict": RAW}, entry="emma")


@pytest.mark.torch
def test_on_the_command_line(path, tmp_path, capsys):
    from dyn_jax.networks.checkpoint import load_variables

    torch.save({"model": RAW, "model_ema": AVERAGE}, path)
    arguments = ["resnet-20-cifar10", str(path), str(tmp_path / "out"), "--classes", "3"]
    arguments += ["--field", "depths=(1,)", "--field", "widths=(2,)"]
    assert main(arguments) == 2 and "--entry model_ema" in capsys.readouterr().err
    assert main([*arguments, "--entry", "model_ema"]) == 0
    assert set(load_variables(tmp_path / "out")["params"]["fc"]["bias"]) == {2.0}
