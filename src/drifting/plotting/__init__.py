"""The pictures of a run. Real data is blue, generated samples are orange, in every one of them."""

from drifting.plotting.comparison import RunColumn, draw_runs, runs_figure
from drifting.plotting.images import draw_comparison, draw_images, draw_reconstruction, image_grid, pixels_in_grid
from drifting.plotting.panels import save_image
from drifting.plotting.points import draw_points, points_figure

__all__ = [
    "RunColumn",
    "draw_comparison",
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
