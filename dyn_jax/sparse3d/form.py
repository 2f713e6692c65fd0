"""What LGM's paper and its released code compute differently under a soft occupancy, as values."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of a 3D network with a soft occupancy; without one all forms are the original network.

    Attributes:
      multiplies_norms: the occupancy multiplies every norm's output too, not only every convolution's.
      near_feed: convolutions read the voxels that are only near a point as well, not only those that hold one.
      normalises_scores: a point's score is divided by the sum of its relations (eq. 40).
      rounds_coordinates: coordinate features are rounded by a steep sigmoid (LGM's S3DIS code).
      multiplies_points: the occupancy multiplies the layers on points too (Cylinder3D).
      multiplies_scores: the occupancy multiplies the voxel scores, and a point has those of its own voxel, instead of
        eq. 39-40 (Cylinder3D).
      shifted_neighbours: candidates and distances of cells as LGM's Cylinder3D code has them, see
        `sparse3d.near_cells`.
    """

    multiplies_norms: bool = False
    near_feed: bool = False
    normalises_scores: bool = True
    rounds_coordinates: bool = False
    multiplies_points: bool = False
    multiplies_scores: bool = False
    shifted_neighbours: bool = False


PAPER = Form()
"""Eq. 27 and 40 of the LGM paper."""

RELEASE = Form(multiplies_norms=True, near_feed=True, normalises_scores=False, rounds_coordinates=True)
"""LGM's released code, from which the published numbers came."""

OUTDOOR_RELEASE = Form(
    multiplies_norms=True,
    near_feed=True,
    multiplies_points=True,
    multiplies_scores=True,
    shifted_neighbours=True,
)
"""The same on Cylinder3D."""


def check_form(form: Form) -> Form:
    """Returns `form`; TypeError if it is none."""
    if not isinstance(form, Form):
        raise TypeError(f"form: got {form!r}, expected a sparse3d.Form such as sparse3d.PAPER or sparse3d.RELEASE")
    return form
