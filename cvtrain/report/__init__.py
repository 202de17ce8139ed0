"""What a run leaves for people: pictures, tables, summary.json and environment.json."""

from cvtrain.report.environment import write_environment
from cvtrain.report.plots import plot_confusion, plot_curves, plot_images
from cvtrain.report.summary import write_json
from cvtrain.report.tables import write_per_class_csv, write_predictions_csv

__all__ = [
    "plot_confusion",
    "plot_curves",
    "plot_images",
    "write_environment",
    "write_json",
    "write_per_class_csv",
    "write_predictions_csv",
]
