"""How sensitive is each layer to each scheme: ranges and statistics, and the Fisher score."""

from autoquant.profile.fisher import output_probe
from autoquant.profile.ranges import input_ranges, weight_stats
from autoquant.profile.run import measure_profile

__all__ = ["input_ranges", "measure_profile", "output_probe", "weight_stats"]
