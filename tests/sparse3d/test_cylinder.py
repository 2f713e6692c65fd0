"""The cylindrical partition and its neighbours: against Cylinder3D's and LGM's code, real scans, and NumPy by hand."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from levels import quick

from dyn_jax.attacks.released.lgm_outdoor import OverflowingSigmoid
from dyn_jax.sparse3d import OUTDOOR_RELEASE, PAPER, Cylinder, any_of, capacity_for, near_cells, partition
from dyn_jax.sparse3d.cylinder import cells_of, check_partition, edges, filled_cells, polar_of
from dyn_jax.sparse3d.cylinder_count import near_on_host, reached_counts
from dyn_jax.sparse3d.voxelize import soft_features
from dyn_jax.types import PointCloud, Reach

NUSCENES = Cylinder(low=(0.0, -3.1415926, -5.0), high=(50.0, 3.1415926, 3.0))
SCANS = {
    "semantickitti_000000.bin": (4, Cylinder()),
    "kitti_000008.bin": (4, Cylinder()),
    "nuscenes_lidar_sweep.bin": (5, NUSCENES),
}
part = quick(partition, static_argnums=1)
near = quick(near_cells, static_argnums=1, static_argnames=("voxels", "pairs", "released"))


def cloud_of(xyz, intensity=None, batch=None, clouds=1):
    count = len(xyz)
    intensity = np.zeros(count, np.float32) if intensity is None else intensity
    xyz, intensity = jnp.asarray(xyz, jnp.float32), jnp.asarray(intensity, jnp.float32)[:, None]
    return PointCloud(xyz, intensity, jnp.ones(count, bool), None if batch is None else jnp.asarray(batch), clouds)


def some_points(count=400, seed=0):
    """Points inside and outside the bounds, on the cut of the angle and on faces of the grid."""
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(-np.pi, np.pi, count), rng.uniform(0.3, 60, count)
    xyz = np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.uniform(-5, 3, count)], 1)
    xyz[:40, 1] = rng.normal(0, 1e-3, 40)
    xyz[:40, 0] = -np.abs(xyz[:40, 0])
    xyz[40:45] = [(-3, 0, 0), (-3, -0.0, 0), (0, 0, 0), (50, 0, 2), (0.10438413, 0, -4)]
    return xyz.astype(np.float32)


def numpy_polar(xyz):
    return np.stack([np.sqrt(xyz[:, 0] ** 2 + xyz[:, 1] ** 2), np.arctan2(xyz[:, 1], xyz[:, 0]), xyz[:, 2]], 1)


@pytest.mark.parametrize("grid", [(480, 360, 32), (60, 45, 8), (3, 4, 5)])
def test_an_edge_is_the_first_number_of_its_cell(grid):
    """Also with an odd count on an axis that 0 halves (45 angles: 44 edges), where an edge falls next to 0."""
    cylinder = Cylinder(high=(50.0, 3.1415926, 4.0), grid=grid)
    for axis, edge in enumerate(edges(cylinder)):
        for value, cell in ((edge, 1), (np.nextafter(edge, np.float32(-np.inf)), 0)):
            got = cylinder.cell_of(np.repeat(value[:, None], 3, axis=1))[:, axis]
            np.testing.assert_array_equal(got, np.arange(len(edge)) + cell)


@pytest.mark.parametrize("name", ["kitti", "nusc"])
def test_partition_of_the_authors(golden, name):
    arrays = {k.removeprefix(name + "/"): v for k, v in golden("cyl_partition").items() if k.startswith(name + "/")}
    bounds = (tuple(arrays[f"{end}_bound"].tolist()) for end in ("min", "max"))
    cylinder = Cylinder(*bounds, tuple(arrays["grid_size"].tolist()))
    np.testing.assert_array_equal(cylinder.interval, arrays["intervals_f64"])
    cloud, gout = cloud_of(arrays["xyz"], arrays["intensity"]), arrays["lgm_f32/gout"]

    @quick
    def run(xyz):
        points = partition(cloud.replace(xyz=xyz), cylinder)
        slope = jax.grad(lambda x: jnp.vdot(partition(cloud.replace(xyz=x), cylinder).features, gout))(xyz)
        return points, *filled_cells(points), slope

    points, sites, groups, slope = run(cloud.xyz)
    np.testing.assert_array_equal(points.cells[:, 1:], arrays["grid_ind"])
    np.testing.assert_allclose(points.features, arrays["features9"], atol=1e-6)
    np.testing.assert_allclose(points.features, arrays["lgm_f32/features9"], atol=1e-5)  # torch's root is not exact
    np.testing.assert_allclose(slope, arrays["lgm_f32/grad_xyz"], rtol=1e-5, atol=1e-6)
    count = len(arrays["unq_coords"])
    assert int(sites.count) == count and not sites.overflow
    np.testing.assert_array_equal(sites.coordinates[:count, 1:], arrays["unq_coords"])
    np.testing.assert_array_equal(groups.group, arrays["unq_inverse"])
    np.testing.assert_array_equal(groups.count[:count], arrays["unq_counts"])


@pytest.mark.parametrize("name", SCANS)
def test_float32_under_jit_is_the_float64_reference(shared_dir, name):
    columns, cylinder = SCANS[name]
    xyz = np.fromfile(shared_dir / "data" / name, np.float32).reshape(-1, columns)[:, :3]
    cell, finite = quick(cells_of, static_argnums=1)(jnp.asarray(xyz), cylinder)
    assert finite.all()
    np.testing.assert_array_equal(cell, cylinder.cell_of(numpy_polar(xyz)))


def test_points_on_faces_beyond_the_bounds_and_on_the_axis():
    xyz = some_points()
    cylinder = Cylinder(grid=(48, 36, 8))
    points = part(cloud_of(xyz), cylinder)
    np.testing.assert_array_equal(points.cells[:, 1:], cylinder.cell_of(numpy_polar(xyz)))
    assert points.cells[43].tolist() == [0, 47, 17, 7]
    centre = (np.asarray(points.cells)[:, 1:] + 0.5) * cylinder.interval + np.array(cylinder.low)
    np.testing.assert_allclose(points.features[:, :3], numpy_polar(xyz) - centre, atol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(polar_of(x)))(jnp.asarray(xyz))
    assert np.isfinite(slope).all()
    bad = xyz.copy()
    bad[3, 0] = np.nan
    with jax.debug_nans(False):
        assert not part(cloud_of(bad), cylinder).valid[3]


@pytest.mark.parametrize(
    "released, step, rows, new",
    [(True, 0.005, 293, 178), (True, 0.0025, 129, 93), (False, 0.005, 3724, 873), (False, 0.0025, 1848, 438)],
)
def test_neighbours_on_a_real_scan(shared_dir, released, step, rows, new):
    """The release finds 293 of the 3,724 pairs of a point with a cell that it can reach."""
    scan = np.fromfile(shared_dir / "data" / "kitti_000008.bin", np.float32).reshape(-1, 4)
    cloud, cylinder = cloud_of(scan[:, :3], scan[:, 3]), Cylinder()
    form = OUTDOOR_RELEASE if released else PAPER
    pairs = near(cloud, cylinder, reach=Reach(step), voxels=8192, pairs=24576, released=released)
    assert int(pairs.points.count.sum()) - len(scan) == rows and not pairs.overflow
    assert int(pairs.sites.count) - int(pairs.exists.sum()) == new
    host = near_on_host(cloud, cylinder, Reach(step), form)
    assert rows <= len(host) - len(scan) <= 1.01 * rows + 2
    if not released and step == 0.005:
        own = capacity_for(cloud, cylinder, 5)
        assert own is not None and [own.levels[0] >= 6689, own.levels[1] >= 6294] == [True, True]
        counts = reached_counts(near_on_host(cloud, cylinder, None, form), cylinder.factors, cylinder.grid)
        assert counts == [6689, 6294, 2745, 1907, 925]


@pytest.mark.parametrize("name", ["full", "red"])
def test_occupancies_and_features_of_the_release(golden, name):
    arrays = {k.removeprefix(name + "/"): v for k, v in golden("cyl_lgm_outdoor").items() if k.startswith(name + "/")}
    cylinder = Cylinder(grid=tuple(arrays["grid"].tolist()))
    step, _, into, slope = arrays["step_budget_lamin_lamconv"].tolist()
    cloud, count = cloud_of(arrays["xyz"], arrays["intensity"]), len(arrays["xyz"])
    cells, row = np.unique(arrays["rows_grid_ind"], axis=0, return_inverse=True)
    row = row.reshape(-1)  # numpy 2.0.0 keeps an axis

    @quick
    def run(xyz):
        def values(xyz):
            moved = cloud.replace(xyz=xyz)
            pairs = near_cells(moved, cylinder, reach=Reach(step), voxels=2048, pairs=2048 + 64, released=True)
            occupied = any_of(OverflowingSigmoid(slope)(pairs.distance, pairs.inside), pairs.voxels)
            points = partition(moved, cylinder)
            relation = OverflowingSigmoid(into)(pairs.distance, pairs.inside)
            rows = jnp.concatenate([points.features, soft_features(points.features, relation, pairs)[row[count:]]])
            return (occupied[row], rows * occupied[row][:, None]), (pairs, rows)

        out, pullback, others = jax.vjp(values, xyz, has_aux=True)
        ends = (arrays["gout_occupy"], 0 * arrays["gout_feats"]), (0 * arrays["gout_occupy"], arrays["gout_feats"])
        return out, others, jnp.stack([pullback(end)[0] for end in ends])

    with jax.debug_nans(False):
        (occupied, _), (pairs, rows), slopes = run(cloud.xyz)
    assert int(pairs.sites.count) == len(cells) and not pairs.overflow
    np.testing.assert_array_equal(pairs.sites.coordinates[: len(cells), 1:], cells)
    # torch's root is off by its last bit, and that comes times a slope of 200 per cell
    np.testing.assert_allclose(occupied, arrays["rows_occupy"], atol=2e-3 if name == "full" else 1e-4)
    wanted = arrays["rows_feats9"]
    np.testing.assert_allclose(rows * arrays["rows_occupy"][:, None], wanted, rtol=1e-4, atol=1e-4)
    for got, wanted in zip(np.asarray(slopes), ("grad_xyz_of_occupy", "grad_xyz_of_feats")):
        expected = arrays[wanted]
        assert not np.isnan(got[~np.isnan(expected)]).any()
        error = np.nan_to_num(got - expected)
        assert np.linalg.norm(error) < 5e-3 * np.linalg.norm(np.nan_to_num(expected)), wanted


def distance_twin(xyz, cell, cylinder):
    """Cells from the centre of `cell`, one point and cell at a time, the long way round where that is shorter."""
    q = (numpy_polar(xyz[None].astype(np.float64))[0] - np.array(cylinder.low)) / cylinder.interval
    result = []
    for axis in range(3):
        signed, last = q[axis] - (cell[axis] + 0.5), cylinder.grid[axis] - 1
        if axis == 1:
            result.append(min(abs(signed), abs(signed - last), abs(signed + last)))
        else:
            result.append(max(signed, 0) if cell[axis] == 0 else max(-signed, 0) if cell[axis] == last else abs(signed))
    return result


def test_candidates_and_distances_by_a_search():
    cylinder, step = Cylinder(grid=(24, 36, 8)), 0.2
    xyz = some_points(200)
    pairs = near(cloud_of(xyz), cylinder, reach=Reach(step))
    polar, last = numpy_polar(xyz.astype(np.float64)), np.array(cylinder.grid) - 1
    own = cylinder.cell_of(numpy_polar(xyz))
    expected = set()
    for n, move in itertools.product(range(len(xyz)), itertools.product((0, -1, 1), repeat=3)):
        reachable = True
        for axis in range(3):
            face = cylinder.low[axis] + (own[n, axis] + (move[axis] > 0)) * cylinder.interval[axis]
            metres = abs(polar[n, axis] - face) * (polar[n, 0] if axis == 1 else 1)
            on_cut = axis == 1 and own[n, 1] == last[1] and move[1] == 1
            inside = axis == 1 or 0 <= own[n, axis] + move[axis] <= last[axis]
            reachable &= move[axis] == 0 or (inside and (metres < step or on_cut))
        if reachable:
            cell = own[n] + move
            cell[1] = min(cell[1], last[1]) % last[1] if any(move) else cell[1]
            expected.add((n, *cell.tolist()))
    used = np.asarray(pairs.points.group) < len(xyz)
    cells = np.asarray(pairs.sites.coordinates)[np.asarray(pairs.voxels.group)[used], 1:]
    points = np.asarray(pairs.points.group)[used]
    assert {(int(n), *cell.tolist()) for n, cell in zip(points, cells)} == expected
    assert any(cell[1] == 0 and own[n, 1] == last[1] - 1 for n, cell in zip(points, cells))  # over the cut
    twin = [distance_twin(xyz[n], cell, cylinder) for n, cell in zip(points, cells)]
    np.testing.assert_allclose(np.asarray(pairs.distance)[used], twin, atol=2e-4)
    none = near(cloud_of(xyz), cylinder, reach=Reach(step, jnp.asarray(xyz), 0.0, "all"))
    assert int(none.points.count.sum()) <= len(xyz) + 45  # points on a face or on the cut alone


@pytest.mark.parametrize(
    "reach, message",
    [
        (Reach(0.2), "expected at most one cell"),
        (Reach(np.nan), "expected at most one cell"),
        (Reach(0.01, rule="any"), "reach.rule"),
        (Reach(0.01, rule="all"), "got no origin and budget"),
        (Reach(np.zeros(3)), "reach.step: got shape"),
    ],
)
def test_bad_reach(reach, message):
    with pytest.raises(ValueError, match=message):
        near_cells(cloud_of(some_points(50)), Cylinder(), reach=reach)


def test_bad_bounds_and_partitions():
    with pytest.raises(ValueError, match="expected low < high"):
        Cylinder(low=(0.0, 4.0, -4.0))
    with pytest.raises(ValueError, match="grid"):
        Cylinder(grid=(1, 2, 3))
    cylinder = Cylinder(grid=(24, 36, 8))
    points = part(cloud_of(some_points(50)), cylinder)
    assert check_partition(points, cylinder).features.shape == (50, 9)
    for change, message in (
        ({"cells": points.cells.at[0, 2].set(36)}, "expected at least 0 and below"),
        ({"features": points.features[:, :8]}, r"expected \[points, 9\]"),
        ({"valid": points.valid & False}, "no valid point"),
        ({"features": points.features.at[0, 0].set(np.inf)}, "NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            check_partition(points.replace(**change), cylinder)
