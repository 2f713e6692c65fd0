"""Every experiment and benchmark from its command line to its record, with toy networks, few images and few steps."""

from __future__ import annotations

import inspect
import io
import json
import pathlib
from unittest import mock

import jax
import numpy as np
import pytest
from cases import CASES, here, tiny, variables_of
from PIL import Image
from toys import Gated, Points

import weights_convert
from benchmarks import _turns
from benchmarks import all as every
from docs import tables
from dyn_jax import networks
from dyn_jax.networks.checkpoint import save_variables
from dyn_jax.networks.minkfcnn import MinkowskiFCNN
from dyn_jax.networks.minkunet import MinkUNet
from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.training import embedded, loop
from experiments import _record

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # means over the none that a tiny attack fools

ROOT = pathlib.Path(__file__).parents[2]


def test_every_benchmark_has_its_minutes():
    assert {f"benchmarks.{name}" for name in every.PLANS} | {"benchmarks.all"} == {
        name for name in CASES if name.startswith("benchmarks.")
    }
    assert sum(plan.minutes for plan in every.PLANS.values()) <= 40


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    """A folder with what the scripts ask for: images, scans, weights; they keep trained networks there as well."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    labels = np.array([9, 0, 1], np.uint8)
    files = [io.BytesIO() for _ in images]
    for file, image in zip(files, images):
        Image.fromarray(image).save(file, format="JPEG")
    content = [file.getvalue() for file in files]
    jpeg = {"jpeg": np.frombuffer(b"".join(content), np.uint8), "offset": np.cumsum([0, *map(len, content)])}
    for split in ("train", "test"):
        np.savez(folder / f"cifar10_lossless_{split}.npz", image=images, label=labels)
        np.savez(folder / f"cifar10_jpeg_{split}.npz", label=labels, **jpeg)
    rng.uniform(0, 1, (60, 6)).astype(np.float32).tofile(folder / "scene.bin")
    rng.uniform(-2, 2, (60, 5)).astype(np.float32).tofile(folder / "sweep.bin")
    rng.uniform(-2, 2, (60, 4)).astype(np.float32).tofile(folder / "scan.bin")
    stands = {"robust_after_apgd_ce": np.array([True, False, True]), "robust": np.array([True, False, False])}
    seconds = {"eps": np.float32(1 / 255), "cpu_seconds": np.ones(4)}
    np.savez(folder / "eval_aa_resnet20_eps1.npz", index=np.arange(3), label=labels, **stands, **seconds)
    save_variables(folder / "seed0-dynconv-digits.msgpack", variables_of(tiny("dynconv-digits")))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Toy networks, no training, code that is made fast rather than fast; and NaN is a value, the mean of none."""
    untrained = lambda name, *, seed, **_: variables_of(tiny(name), seed)
    monkeypatch.setattr(networks, "create", tiny)
    monkeypatch.setattr(networks, "pretrained", lambda name: (tiny(name), variables_of(tiny(name))))
    monkeypatch.setattr(embedded, "train", mock.create_autospec(embedded.train, side_effect=untrained))
    fit = mock.create_autospec(loop.fit, side_effect=lambda net, *_, seed: variables_of(net, seed))
    monkeypatch.setattr("experiments._early_exit.fit", fit)
    made = lambda name, state: variables_of(tiny(name) if isinstance(name, str) else name)
    monkeypatch.setattr(weights_convert, "convert", made)
    for name in ("_weights", "lgm_table1_static"):
        monkeypatch.setattr(f"experiments.{name}.read_state_dict", lambda path: {})
    monkeypatch.setattr(_turns, "PEAK_SIZE", 8)
    monkeypatch.setattr(_turns, "thread_counts", lambda torch: (1,))  # PyTorch's threads wait for others in a loop
    monkeypatch.setattr(_record, "RESULTS", None)  # nothing may be written beside the committed records
    with jax.debug_nans(False):
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
    tables.record.cache_clear()


@pytest.mark.parametrize("toy, network", [(Gated, SkipNet), (Points, MinkUNet), (Points, MinkowskiFCNN)])
def test_toys_take_what_networks_take(toy, network):
    assert list(inspect.signature(toy.__call__).parameters) == list(inspect.signature(network.__call__).parameters)


def test_every_script_has_a_case():
    scripts = {
        f"{folder}.{path.stem}"
        for folder in ("experiments", "benchmarks")
        for path in (ROOT / folder).glob("[a-z]*.py")
    }
    assert scripts == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_runs(name, data, monkeypatch, tmp_path):
    case, (folder, stem) = CASES[name], name.split(".")
    results = tmp_path / "results"
    output = f"--output {results}/{case.record}.json" if folder == "benchmarks" else f"--results {results}"
    output = f"--output {results} --figures {results}" if stem == "all" else output
    options = f"{case.options} {output}".replace("{}", str(data)).split()
    for constant, value in case.constants.items():
        monkeypatch.setattr(constant if "." in constant else f"{name}.{constant}", value)
    status = here(name, options)
    if stem == "all":
        assert status == 1 and [path.name for path in results.iterdir()] == ["grad_auto_cpu.json"]
        return
    if stem == "gradauto_figures":
        assert len(list(results.glob("gradauto_fig[123].png"))) == 3
        return
    path = f"{case.record or stem}.json"
    made, committed = json.loads((results / path).read_text()), ROOT / folder / "results" / path
    assert made["command"].startswith(f"python -m {name} --")
    assert not _record.faults(made)
    if not committed.is_file():  # then a page says that nobody has measured it
        assert any(f"Not measured yet: `python -m {name}" in page.read_text() for page in tables.pages())
        return
    kept = json.loads(committed.read_text())
    assert set(made) == set(kept) - {"note", "earlier"}
    assert set(kept["settings"]) <= set(made["settings"])
    made_keys, kept_keys = ({key for row in record["rows"] for key in row} for record in (made, kept))
    assert made_keys <= kept_keys if folder == "benchmarks" else made_keys == kept_keys


def test_parts_make_one_record(tmp_path):
    common = {"seed": 0, "images": 3}
    for seed, name in enumerate(("a", "b")):
        _record.save(name, [{"who": name}], folder=tmp_path, facts={name: seed}, networks=[name], **common)
    parts = [str(tmp_path / f"{name}.json") for name in "ab"]
    whole = json.loads(_record.join("c", parts, folder=tmp_path).read_text())
    assert whole["rows"] == [{"who": "a"}, {"who": "b"}] and whole["facts"] == {"a": 0, "b": 1}
    assert whole["settings"] == {"images": 3, "networks": ["a", "b"]} and not _record.faults(whole)
    _record.save("b", [{"who": "b"}], folder=tmp_path, **common | {"images": 4}, networks=["b"])
    with pytest.raises(ValueError, match="b.json: got images 4, expected 3"):
        _record.join("c", parts, folder=tmp_path)


def test_rows_of_some_networks_are_renewed(tmp_path):
    rows = [{"who": "a", "n": 0}, {"who": "b", "n": 1}, {"who": "b", "n": 2}, {"who": "c", "n": 3}]
    kept = json.loads(_record.save("t", rows, folder=tmp_path, seed=0).read_text())
    whole = _record.renewed(kept, [{"who": "b", "n": 9}], "who")
    assert [row["n"] for row in whole["rows"]] == [0, 9, 3]
    made = json.loads(_record.save("t", **whole, folder=tmp_path, seed=0).read_text())
    assert [part["commit"] for part in made["earlier"]] == [kept["commit"]] and not _record.faults(made)
