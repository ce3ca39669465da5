"""What a test process sets up: `tests.support.small_runs`, or nothing large in the process that hands out the tests to others."""

from tests.support import compiling


def pytest_configure(config) -> None:
    if _hands_out(config):
        compiling.start()
    else:
        config.pluginmanager.import_plugin("tests.support.small_runs")


def pytest_unconfigure(config) -> None:
    if _hands_out(config):
        compiling.end()


def _hands_out(config) -> bool:
    """Return whether other processes run the tests, so that this one needs neither torch nor the package."""
    is_worker, collects = hasattr(config, "workerinput"), config.option.collectonly
    return bool(getattr(config.option, "numprocesses", None)) and not is_worker and not collects
