"""The statistics that a store keeps of every patch."""

from __future__ import annotations

from gridrad_cube.schema.channels import Channel

#: Bins of a channel's training histogram, over its typical range.
HISTOGRAM_BINS = 64
#: Statistics of every channel, float32, in the channel's units (fractions: 1); echo pixels only where the
#: channel has echoes.
#: ``dead_lines`` counts rows and columns that repeat one value in a field that varies.
STATISTICS = ("valid_fraction", "mean", "std", "minimum", "maximum", "dead_lines")
#: Further statistics of channels with echoes. ``mean_linear`` of dBZ is the mean of linear Z, back in dBZ.
ECHO_STATISTICS = ("echo_fraction", "mean_linear")
#: Further statistics of rain: mean and standard deviation of log10 of its value in the channel's units.
LOG_STATISTICS = ("mean_log10", "std_log10")


def statistics_of(channel: Channel) -> tuple[str, ...]:
    """Names of the statistics that a store keeps of this channel.

    Companion fields are not looked through for dead lines: categories repeat a value by nature.
    """
    if channel.kind == "companion":
        return tuple(name for name in STATISTICS if name != "dead_lines")
    names = STATISTICS + ECHO_STATISTICS if channel.has_echo else STATISTICS
    return names + LOG_STATISTICS if channel.kind == "rain" else names


def statistic_units(channel: Channel, statistic: str) -> str:
    """Units of a statistic: the channel's, but 1 for fractions, counts and logarithms."""
    pure = statistic.endswith(("_fraction", "_log10")) or statistic == "dead_lines"
    return "1" if pure else channel.units
