"""Each sub-command at its smallest, what it says about mistakes, and how it ends."""

import os
import subprocess
import sys

import flax.linen as nn
import numpy as np
import pytest

import dyn_jax
from dyn_jax import cli
from dyn_jax.datasets import ImageData
from dyn_jax.networks.checkpoint import load_variables, save_variables
from dyn_jax.training import embedded, runs
from dyn_jax.types import Output

SACT = ["train", "sact-digits", "--output"]


@pytest.fixture
def no_data(monkeypatch):
    """What is wrong must be said before any data are read."""
    monkeypatch.setitem(embedded.DATA, "digits", lambda split, folder: pytest.fail("data were read"))


class Linear(nn.Module):
    """A network that compiles at once."""

    @nn.compact
    def __call__(self, images, *, occupancy=None, train=False):
        return Output(nn.Dense(3)(images.reshape(images.shape[0], -1)))


@pytest.fixture
def quick(monkeypatch):
    """A small network and few images in place of the digits'."""
    images = np.random.default_rng(0).random((64, 4, 4, 3)).astype(np.float32)
    data = ImageData(images, np.arange(64, dtype=np.int32) % 3, "made up")
    monkeypatch.setattr(dyn_jax.networks, "create", lambda name: Linear())
    monkeypatch.setitem(embedded.DATA, "digits", lambda split, folder: data)


def complaint(capsys, argv):
    """The one line on standard error of a command that is refused."""
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("dyn-jax: ") and error.count("\n") == 1
    return error


def test_list_prints_every_name(capsys):
    assert cli.main(["list"]) == 0
    assert "skipnet-rl-rnn-110-cifar10" in capsys.readouterr().out.split()


KEEPING = """
import sys
from dyn_jax import cli
sys.argv = ["dyn-jax", "list"]
cli.main()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x + 1)(1.0).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize(
    "variables, kept",
    [
        ({}, "home/dyn_jax/compiled"),
        ({"JAX_COMPILATION_CACHE_DIR": "other"}, "other"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, None),
        ({"XDG_CACHE_HOME": os.devnull}, None),
    ],
)
def test_command_keeps_compiled_programs(tmp_path, variables, kept):
    clean = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    environment = {**clean, "XDG_CACHE_HOME": "home", **variables}
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(dyn_jax.__file__))
    done = subprocess.run(
        [sys.executable, "-c", KEEPING], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == str(kept)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert bool(files) == (kept is not None)
    assert all(path.is_relative_to(tmp_path / str(kept)) for path in files)


def test_main_called_from_python_leaves_jax_alone(capsys, monkeypatch):
    import jax

    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    before = jax.config.jax_compilation_cache_dir
    assert cli.main(["list"]) == 0
    assert jax.config.jax_compilation_cache_dir == before
    assert "TF_CPP_MIN_LOG_LEVEL" not in os.environ


@pytest.mark.parametrize("given, wanted", [({}, "3"), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, "0")])
def test_command_silences_jaxlib_before_it_is_imported(given, wanted):
    """What jaxlib writes about kept programs is decided when it is imported."""
    code = (
        "import os, sys; sys.argv = ['dyn-jax', '--version']\n"
        "from dyn_jax.cli import main\n"
        "assert 'jax' not in sys.modules\n"
        "try: main()\n"
        "finally: print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"} | given
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(dyn_jax.__file__))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["dyn-jax", dyn_jax.__version__, wanted]


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"dyn-jax {dyn_jax.__version__}\n"


def test_reader_that_leaves():
    """`dyn-jax list | head -1`, with a reader that is gone before the first line."""
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from dyn_jax.cli import main; sys.exit(main(['list']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_of_train_names_every_network(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out.replace("{vgg16,resnet56,mobilenet}", "resnet56")
    assert all(name.replace("vgg16", "resnet56").replace("mobilenet", "resnet56") in text for name in embedded.RECIPES)


def test_unknown_network_names_the_nearest(capsys, tmp_path):
    error = complaint(capsys, ["train", "skipnet-digit", "--output", str(tmp_path / "x")])
    assert "skipnet-digit" in error and "skipnet-digits" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["missing/net"], "its folder"),
        (["."], "is a folder"),
        (["net", "--epochs", "0"], "epochs: got 0"),
        (["net", "--seed=-1"], "seed: got -1"),
        (["net", "--data", "."], "folder: got '.', expected none: the data of sact-digits come with the package"),
        (["net", "--every", "0"], "every: got 0"),
        (["net", "--checkpoint", "missing/run"], "checkpoint: got 'missing/run'"),
        (["net", "--checkpoint", "./net"], "--checkpoint: got the file of --output"),
    ],
)
def test_train_is_refused_before_work(capsys, tmp_path, monkeypatch, no_data, options, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in complaint(capsys, [*SACT, *options])
    assert not list(tmp_path.iterdir())


def test_checkpoint_of_another_run(capsys, tmp_path, no_data):
    """Refused before work, and left as it is; the message names what differs."""
    net, recipe = dyn_jax.networks.create("sact-digits"), embedded.recipe_of("sact-digits")
    state = runs.State({}, {}, {})
    runs.save(tmp_path / "net.run", runs.identify(net, recipe, 1, initial=None), state, runs.Position())
    kept = (tmp_path / "net.run").read_bytes()
    assert "seed is 1 there and 0 here" in complaint(capsys, [*SACT, str(tmp_path / "net")])
    assert "recipe.epochs is 15 there and 2 here" in complaint(
        capsys, [*SACT, str(tmp_path / "net"), "--seed", "1", "--epochs", "2"]
    )
    assert (tmp_path / "net.run").read_bytes() == kept


def test_interrupted_then_finished(capsys, tmp_path, monkeypatch, quick):
    """Ctrl-C keeps the checkpoint and says so; the same command goes on, writes the output, removes the checkpoint."""
    output, run = tmp_path / "net", tmp_path / "net.run"
    command = ["train", "cnn-resnet56-digits", "--epochs", "2", "--output", str(output)]
    save = runs.save

    def interrupted(*given):
        save(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "save", interrupted)
    assert cli.main(command) == 130
    assert capsys.readouterr().err == f"dyn-jax: interrupted; the same command goes on from {run}\n"
    assert run.exists() and not output.exists()
    monkeypatch.setattr(runs, "save", save)
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "going on from" in printed and "epoch   2 of 2" in printed and '"accuracy"' in printed
    assert "epoch   1" not in printed
    assert not run.exists() and set(load_variables(output)) == {"params", "batch_stats"}


def test_nothing_to_go_on_from(capsys, tmp_path, monkeypatch):
    def stopped(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "train", stopped)
    assert cli.main([*SACT, str(tmp_path / "net")]) == 130
    assert capsys.readouterr().err == "dyn-jax: interrupted\n"


def test_output_that_is_no_checkpoint(capsys, tmp_path, no_data):
    save_variables(tmp_path / "net.run", {"params": {}})
    assert "no checkpoint of a training run" in complaint(capsys, [*SACT, str(tmp_path / "net")])


@pytest.mark.parametrize(
    "options",
    [
        *(["--examples=0"], ["--examples=-3"], ["--examples=501"], ["--points", "--rooms=17"]),
        *(["--rooms=3"], ["--points", "--data=."], ["--lidar", "--examples=3"], ["--lidar", "--points"]),
        *(["--output=FILE"], ["--points", "--output=FILE/below"]),
    ],
)
def test_demo_refuses_what_cannot_be_done_or_says_nothing(capsys, tmp_path, monkeypatch, options):
    """Before anything runs: no count that there is not, no option of another demo, no folder that is a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    assert options[-1].split("=")[0] in complaint(capsys, ["demo", *options])
