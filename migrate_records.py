"""One-off: brings the records made before 0.2 into the form of experiments/_record.py.

Commit and date of a record are those of the commit that brought its file, where the record did not keep a date itself.
Settings are the record's own and the options' and constants' values in the script of that commit. What nobody kept
(versions of flax, numpy, jaxlib; the processor) stays null.
"""

import json
import pathlib
import subprocess

from experiments import _record

NOTE = (
    "made before 0.2, brought into this form afterwards: `commit` is the commit that brought the file, `settings` holds "
    "the record's own and the script's defaults in that commit; what was not kept is null"
)
ROOMS = {"points": 12288, "voxel size (m)": 0.1, "eps (m)": [0.005, 0.01, 0.02, 0.05]}
ENERGY = {"learning_rate": 0.01}
EXITS = {"epochs": 10, "surrogate_epochs": 12, "examples": 200, "pgd_steps": 10}
KNOWN = {  # name: (seeds, settings)
    "digits_fgm_lgm": (
        None,
        {
            "eps": ["8/255", "16/255"],
            "lambdas": [1, 3, 10, 30, 300],
            "straight-through lambdas": [3, 10, 300],
            "bim_steps": 10,
        },
    ),
    "early_exit_rq1": (None, EXITS),
    "early_exit_rq2": (None, EXITS),
    "early_exit_rq3": (None, EXITS),
    "early_exit_rq4": (
        None,
        {
            "epochs": 10,
            "learning_rate": 0.05,
            "alphas": [0.001, 0.01, 0.1, 1.0, 20.0, 40.0],
            "baselines' eps": 32 / 255,
            "baselines' steps": 10,
        },
    ),
    "energy_accuracy_attacks": (None, {"eps": ["8/255", "16/255"], "lambdas": [1, 3, 10, 30], "bim_steps": 10}),
    "energy_other_networks": (
        None,
        ENERGY | {"number of rooms": 2, "point_eps (m)": [0.01, 0.05], "point_learning_rate (m)": 0.005},
    ),
    "gradauto_reach": (None, ENERGY | {"flat below": 0.01}),
    "gradauto_table1": (None, ENERGY),
    "gradauto_table2": (None, ENERGY),
    "gradauto_table3": (None, ENERGY),
    "lgm_table1_static": ([], {"attack": "fgsm", "batch_size": 125}),
    "lgm_table4_rooms": (
        [],
        ROOMS
        | {"rooms": 4, "protocols": ["paper", "release"], "slope of FGM's sigmoid": 20, "slope of LGM's sigmoid": 10},
    ),
    "lgm_table5_occupancies": ([0, 1, 2, 3], ROOMS | {"rooms": 4, "protocol": "release", "slope of the sigmoid": 10}),
    "lgm_table6_scannet": (
        None,
        {"network": "minkunet-34c-scannet", "voxel size (m)": 0.02, "step (m)": [0.0025, 0.01, 0.01, 0.01]},
    ),
    "lgm_table7_lambda": ([], ROOMS | {"rooms": 2}),
    "lgm_table11_objects": (
        [0],
        {"objects": 60, "batch": 20, "eps (m)": [0.02, 0.05, 0.1, 0.2], "constant": 10, "slope of FGM's sigmoid": 20},
    ),
    "bim_resnet32_cpu": ([], {}),
    "early_attack_cpu": ([0], {}),
    "grad_auto_cpu": ([0], {}),
    "sparse3d_cpu": ([0], {}),
}
BENCH = {
    "bim_resnet32_cpu": "python -m benchmarks.bim_resnet32 --checkpoint resnet32.th --data FOLDER --steps 10",
    "early_attack_cpu": "python -m benchmarks.early_attack --steps 8 --output benchmarks/results/early_attack_cpu.json",
    "grad_auto_cpu": "python -m benchmarks.grad_auto --steps 4 --output benchmarks/results/grad_auto_cpu.json",
    "sparse3d_cpu": "python -m benchmarks.sparse3d --scannet FILE --nuscenes FILE --growth --repeats 3",
}
SETTINGS = {
    "data",
    "network",
    "images",
    "steps",
    "point_steps",
    "iterations",
    "batch",
    "rounds",
    "repeats",
    "eps",
    "lambda",
    "protocol",
    "start",
    "epochs",
    "surrogate_epochs",
    "examples",
    "learning_rate",
}

for path in sorted(
    [*pathlib.Path("experiments/results").glob("*.json"), *pathlib.Path("benchmarks/results").glob("*.json")]
):
    old = json.loads(path.read_text())
    if "settings" in old:
        continue
    commit, date = subprocess.check_output(
        ["git", "log", "-1", "--format=%H %ad", "--date=short", "--", str(path)], text=True
    ).split()
    seeds, known = KNOWN[path.stem]
    if "seeds" in old:
        seeds = old.pop("seeds")
    elif "seed" in old:
        seeds = [old.pop("seed")]
    platform = old.pop("device")
    cores = old.pop("cores", None)
    if path.parent.parent.name == "benchmarks" and cores is None:
        cores = 2  # the README's sentence above its table
    new = {
        "command": old.pop("command", BENCH.get(path.stem)).strip(),
        "commit": commit,
        "date": old.pop("date", date),
        "versions": {name: None for name in _record.VERSIONS}
        | {"python": old.pop("python", None), "jax": old.pop("jax"), "dyn_jax": "0.1.0"},
        "device": {"platform": platform, "model": None, "cores": cores},
        "seeds": seeds,
        "settings": {k: old.pop(k) for k in list(old) if k in SETTINGS} | known,
        "note": NOTE,
        **{k: v for k, v in old.items() if k != "rows"},
        "rows": old["rows"],
    }
    assert not _record.faults(new), (path, _record.faults(new))
    print(
        path.name,
        {
            k: v
            for k, v in new.items()
            if k not in ("rows", "densities", "note", "claimed", "networks", "summary", "transfer", "rooms")
        },
    )
    path.write_text(json.dumps(new, indent=1) + "\n")
