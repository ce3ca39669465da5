"""Pictures of a run. In all of them real data are blue and generated samples orange."""

from drifting.plotting.figures import Measured, draw_fields, draw_points, points_figure, save_image
from drifting.plotting.images import (
    RunColumn,
    draw_comparison,
    draw_images,
    draw_reconstruction,
    draw_runs,
    image_grid,
    pixels_in_grid,
    runs_figure,
)

__all__ = [
    "Measured",
    "RunColumn",
    "draw_comparison",
    "draw_fields",
    "draw_images",
    "draw_points",
    "draw_reconstruction",
    "draw_runs",
    "image_grid",
    "pixels_in_grid",
    "points_figure",
    "runs_figure",
    "save_image",
]
