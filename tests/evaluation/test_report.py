"""The page of a finished run: what it says for hand-made results, that it needs nothing else, and how it looks."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from dyn_jax import occupancy, plotting
from dyn_jax.evaluation import evaluate, files, report
from dyn_jax.evaluation.report import REPORT
from tests.evaluation import toy
from tests.evaluation.pages import EVIL, UNITS, Page, alone, page_of, pictures_of, put, result_of


def test_static_network(tmp_path):
    page = page_of(tmp_path, result_of(), pictures_of())
    for words in ("Robustness of a-net", "90.00 %", "35.00 %", "0.00 to 56.71 %", "not run", "No checks were run",
                  "The network has no adaptive units", "L∞ ball of radius 8/255", "8.00/255",
                  "not needed: nothing was left to attack", "broken by apgd-ce", "10 of the 11"):  # fmt: skip
        assert words in page.text, words
    assert "energy" not in page.ids and "rates" not in page.ids
    assert "Multiply-adds" not in page.text and "None" not in page.text
    assert len(page.all("img")) == 2 * 3
    assert all(attributes["alt"] for attributes in page.all("img"))


@pytest.mark.parametrize("kind", UNITS)
def test_adaptive_network(tmp_path, kind):
    shapes = UNITS[kind]
    page = page_of(tmp_path, result_of(shapes), pictures_of(shapes))
    for words in ("1.5 M", "2.4 M", "of 4 M with every unit on", "36.0 %", "19 of 20", "31.2", "61.11 %", "87.5 %",
                  "1 (12), 10 (8)", "energy-apgd@soft met gradients that are not finite on 2 of 20",
                  "1 M multiply-adds before, 3 M after", "most expensive image in the ball"):  # fmt: skip
        assert words in page.text, words
    several = sum(np.prod(shape) > 1 for shape in shapes)
    assert len(page.all("img")) == 2 * (3 + several)
    cells = [a["class"] for a in page.all("span") if a.get("title", "").startswith("unit")]
    assert cells == ["cell switched-on"] * 2 * (len(shapes) - several)
    if several:
        count = int(np.prod(shapes[0]))
        assert f"unit0: 1 elements switched on and 0 off, of {count}" in [a["alt"] for a in page.all("img")]
    else:
        assert "2 of 2 gates switched: unit0 on, unit1 on." in page.text


def test_who_found_what_adds_up(tmp_path):
    """20 images: 2 wrong to begin with, 11 broken, 3 robust, so 4 without a finite answer; bars as long as counts."""
    result = result_of(robust_acc="15.00", invalid=5, unreliable=True)
    page = page_of(tmp_path, result, pictures_of())
    bars = [float(a["style"].removeprefix("width:").removesuffix("%")) for a in page.all("span") if "style" in a]
    assert bars == [55, 0, 15, 10, 20] and sum(bars) == 100
    assert "no finite answer under attack4 of 20" in page.text
    assert "no finite answer under attack" not in page_of(tmp_path, result_of(), pictures_of()).text


def test_many_gates(tmp_path):
    """Of 20 that switched eight are named; 40 units have three tables of rates."""
    shapes = ((),) * 40
    pictures = pictures_of(shapes)
    for k in range(20, 40):
        pictures[f"on_after/{k}"] = pictures[f"on_before/{k}"]
    page = page_of(tmp_path, result_of(shapes), pictures)
    assert "20 of 40 gates switched: unit0 on, unit1 on" in page.text and "unit7 on, and 12 more." in page.text
    assert len(page.all("table")) == 2 + 3
    assert len([a for a in page.all("td") if "--rate" in a.get("style", "")]) == 2 * 40


def test_pictures_are_the_run_s(tmp_path):
    """The pixels of the page: the clean image, the difference (all of it eps), the first element switched on."""
    import base64
    import io

    shapes = ((4, 4),)
    pictures = pictures_of(shapes)
    pictures["clean"] = 0.5 + 0 * pictures["clean"]
    pictures["adversarial"] = pictures["clean"] + np.float32(8 / 255)
    page = page_of(tmp_path, result_of(shapes), pictures)
    decoded = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(a["src"].partition(",")[2])))) for a in page.all("img")[:4]
    ]
    clean, attacked, difference, units = decoded
    assert np.all(clean == 128) and np.all(attacked == 136) and np.all(difference == 255)
    assert np.all(units[0, 0] == np.round(255 * np.array(plotting.SWITCHED_ON)))
    expected = plotting.flip_map(pictures["on_before/0"][0], pictures["on_after/0"][0])
    assert np.all(units == np.round(255 * expected))


def test_random_network(tmp_path):
    row = {"mean_acc": "71.25", "worst_acc": "10.00", "majority_acc": "85.00"}
    result = result_of(UNITS["gates"], random={"draws": 16, "clean": row, "adversarial": row | {"mean_acc": "33.33"}})
    result["settings"]["draws"] = [4, 16]
    page = page_of(tmp_path, result, pictures_of(UNITS["gates"]))
    assert "Over 16 fresh draws" in page.text and "71.25 %" in page.text and "33.33 %" in page.text
    assert "draws=(4, 16)," in page.text


def test_findings_come_first(tmp_path):
    checks = [
        {"code": "zero-gradients", "severity": "error", "share": 0.755, "message": "hard <gates>", "remedy": "soften"},
        {"code": "odd", "severity": "warning", "share": None, "message": "seen", "remedy": None},
    ]
    page = page_of(tmp_path, result_of(checks=checks), pictures_of())
    assert page.ids.index("findings") < page.ids.index("headline")
    for words in ("zero-gradients", "on 75.5 % of the images", "hard <gates>", "What to do: soften", "odd"):
        assert words in page.text, words
    assert page.text.count("What to do:") == 1
    assert {"finding error", "finding warning"} <= {a.get("class") for a in page.all("article")}
    assert "No checks" not in page.text
    clean = page_of(tmp_path, result_of(checks=[]), pictures_of())
    assert "findings" not in clean.ids and "The checks found nothing" in clean.text


def test_nothing_is_said_of_what_is_not_known(tmp_path):
    """Every field that can be null, none of the images shown, an unreliable run, voxels without a dense cost."""
    result = result_of(UNITS["gates"], name=None, dataset=None, broken_in_8_bits=None, unreliable=True, invalid=2,
                       not_confirmed=1)  # fmt: skip
    result["energy"] |= {"dense_macs": None, "macs_clean": None, "macs_worst_in_ball": None, "recovery_in_ball": None}
    result["energy"] |= {"recovery": {"energy-apgd@soft": None}, "on_before": [None, 1.0], "on_worst": [0.0, None]}
    result["attacks"][2] |= {"psnr": None, "accuracy_kept": None, "units_changed": None, "macs": None}
    paths = {"apgd-ce": [None, None], "apgd-t": [-1e9, -1e9], "one": [1.0]}
    result["curves"]["steps"] = {name: {"loss": path} for name, path in paths.items()}
    nothing = {name: value[:0] for name, value in pictures_of().items()}
    page = page_of(tmp_path, result, nothing)
    assert "an unnamed network" in page.text and "not known" in page.text
    assert not re.search(r"\bNone\b|\bnan\b|\bnull\b|undefined", page.text)
    assert "On 2 of 20 images the network gave no finite answer" in page.text
    assert "1 of 20 images that an attack called broken" in page.text
    assert "there is nothing to show" in page.text and not page.all("img")
    assert len(page.all("svg")) == 2


def test_curves(tmp_path):
    radii = [k * 16 / 255 / 40 for k in range(41)]
    accuracy = [90.0 - 2 * k for k in range(41)]
    curves = {"eps": {"eps": radii, "accuracy": accuracy, "median": 4 / 255}, "steps": {}}
    page = page_of(tmp_path, result_of(curves=curves), pictures_of())
    (line,) = (a["points"].split() for a in page.all("polyline"))
    x, y = np.array([point.split(",") for point in line], float).T
    assert len(x) == 41 and np.allclose(np.diff(x), np.diff(x)[0], atol=0.11) and np.all(np.diff(y) > 0)
    (mark,) = (a for a in page.all("line") if a["class"] == "mark")
    assert float(mark["x1"]) == pytest.approx((x[0] + x[-1]) / 2, abs=0.1)  # eps is the middle of the axis
    assert "Median smallest distance: 4.00/255." in page.text and "16/255" in page.text


def test_l2_and_attacks_outside_the_ball(tmp_path):
    result = result_of(threat="L2", eps="0.5")
    result["attacks"][0]["distance_of_broken"] = 0.43
    pictures = pictures_of()
    pictures["clean"] = 0 * pictures["clean"]
    pictures["adversarial"] = pictures["clean"] + np.float32(0.2)
    page = page_of(tmp_path, result, pictures)
    assert "L2 ball of radius 0.5" in page.text and "0.43" in page.text
    assert "full colour: 51.0/255" in page.text  # an L2 radius is no number of a pixel


def test_names_are_escaped(tmp_path):
    shapes = UNITS["maps"]
    result = result_of(shapes, name=EVIL, dataset=EVIL, authors=EVIL)
    result["facts"] = {"command": EVIL, EVIL: EVIL, "classes": f"zero,{EVIL},two"}
    result["energy"]["units"] = [EVIL] * len(shapes)
    result["attacks"][0]["attack"] = EVIL
    result["curves"]["steps"] = {EVIL: {"accuracy": [90.0, 10.0]}}
    result["checks"] = [dict.fromkeys(("code", "severity", "message", "remedy"), EVIL) | {"share": 0.5}]
    page = page_of(tmp_path, result, pictures_of(shapes))  # which looks for scripts
    assert page.text.count(EVIL) >= 12
    assert f"Label {EVIL}; answer {EVIL} before, two after" in page.text


def test_facts_and_how_to_reproduce(tmp_path):
    result = result_of(facts={"name": "a-net", "command": "dyn-jax evaluate a-net", "weights": "w.msgpack"})
    (tmp_path / "manifest.json").write_text(json.dumps({"weights": "abc123", "data": "def456", "code": "789"}))
    page = page_of(tmp_path, result, pictures_of())
    for words in ("dyn-jax evaluate a-net", "w.msgpack", "abc123", 'eps="8/255"', 'norm="linf"', "seed=7", "not given",
                  'attacks="apgd-ce,apgd-t"', "lambdas=(1.0, 10.0)"):  # fmt: skip
        assert words in page.text, words


def test_same_bytes_twice(tmp_path):
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        put(tmp_path / name, result_of(UNITS["maps"]), pictures_of(UNITS["maps"]))
        contents.append(report(tmp_path / name).read_bytes())
        assert report(str(tmp_path / name)).read_bytes() == contents[-1]
    assert contents[0] == contents[1]


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*result.json: no such file"):
        report(tmp_path / "nowhere")
    (tmp_path / "shards").mkdir()
    with pytest.raises(FileNotFoundError, match="its run is not finished"):
        report(tmp_path)
    put(tmp_path, result_of(), pictures_of())
    text = (tmp_path / files.RESULT).read_text()
    lacking = result_of()
    del lacking["interval_95"]
    for broken, why in (
        (text[: len(text) // 2], "result.json: not a readable JSON file"),
        ("[1, 2]", "result.json: got a JSON list"),
        ("{}", "result.json: not the result of an evaluation.*it lacks name, .* and 24 more"),
        (json.dumps(lacking), "result.json: not the result of an evaluation.*it lacks interval_95"),
        (json.dumps(result_of(threat="L7")), "result.json: not the result of an evaluation.*L7"),
        (json.dumps(result_of(eps="wide")), "result.json: not the result of an evaluation.*wide"),
    ):
        (tmp_path / files.RESULT).write_text(broken)
        with pytest.raises(ValueError, match=why):
            report(tmp_path)
    (tmp_path / files.RESULT).write_text(text)
    whole = (tmp_path / files.PICTURES).read_bytes()
    (tmp_path / files.PICTURES).write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"pictures.npz: not pictures of a run, or truncated or damaged"):
        report(tmp_path)
    lacking = {name: value for name, value in pictures_of().items() if name != "clean"}
    (tmp_path / files.PICTURES).write_bytes(files.packed(lacking))
    with pytest.raises(ValueError, match=r"pictures.npz: not the pictures of this run.*clean"):
        report(tmp_path)
    (tmp_path / files.PICTURES).unlink()
    with pytest.raises(FileNotFoundError, match=r"pictures.npz"):
        report(tmp_path)
    assert not (tmp_path / REPORT).exists()
    assert not list(tmp_path.glob(".*")), "something half written was left"


@pytest.mark.parametrize("net", ["gated", "static", "noisy", "gated_at_random"])
def test_real_runs(tmp_path, net, quick_programs):
    """What `evaluate` writes is what the page reads: with and without units, with and without draws."""
    images, labels = toy.data(6)
    units = net.startswith("gated")
    attacks = "fgsm,energy-apgd@straight-through,fmn" if net == "gated" else "fgsm"
    given = {"occupancy": occupancy.gumbel_sigmoid()} if net == "gated_at_random" else {}
    found = evaluate(getattr(toy, net), toy.weights(), images, labels, eps="16/255", attacks=attacks, draws=(2, 3),
                     budget=toy.SHORT, output=tmp_path, facts={"name": net}, **given)  # fmt: skip
    assert found is not None
    text = report(tmp_path).read_text("utf-8")
    page = Page(text)
    alone(page, text)
    assert f"Robustness of {net}" in page.text and not re.search(r"\bNone\b|\bnan\b", page.text)
    assert f"{found.summary['robust_acc']} %" in page.text
    assert ("energy" in page.ids, "rates" in page.ids) == (units, units)
    assert ("random" in page.ids) == (net in ("noisy", "gated_at_random"))
    assert len(page.all("polyline")) == (3 if net == "gated" else 0)  # accuracy at every eps, two searches
    assert [one["code"] in page.text for one in found.summary["checks"]] == [True] * len(found.summary["checks"])


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def screenshot(page: pathlib.Path, width: int, height: int, place: pathlib.Path) -> tuple[np.ndarray, str]:
    """(pixels, what the browser's console said) of a page in a headless browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is on the path")
    target = place / f"{page.stem}-{width}.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={place / 'profile'}", f"--window-size={width},{height}", f"--screenshot={target}"]
    done = subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return np.asarray(Image.open(target).convert("RGB")), console


def test_a_browser_shows_it(tmp_path):
    """At the width of a screen and of a phone: pictures and colours are there, nothing runs over the edge."""
    shapes = UNITS["gates"] + UNITS["maps"] + UNITS["vectors"]
    path = report(put(tmp_path, result_of(shapes, name="a-network-with-quite-a-long-name"), pictures_of(shapes)))
    for width, height in ((960, 2600), (500, 4200)):
        pixels, console = screenshot(path, width, height, tmp_path)
        assert pixels.shape == (height, width, 3)
        assert not console, console
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
        for colour in (plotting.SWITCHED_ON, plotting.ON):
            there = np.all(np.abs(pixels - np.round(255 * np.array(colour))) <= 2, axis=-1)
            assert np.sum(there) > 100, f"{colour} is nowhere at {width} pixels"
        assert np.all(pixels[:, -8:] == pixels[0, -1]), f"something runs over the right edge at {width} pixels"
    wrong = tmp_path / "wrong.html"
    wrong.write_text("<!doctype html><title>x</title><script>console.error('seen')</script>")
    pixels, console = screenshot(wrong, 500, 400, tmp_path)
    assert "seen" in console and len(np.unique(pixels.reshape(-1, 3), axis=0)) == 1  # what the test would catch
