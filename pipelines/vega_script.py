"""Write the Vega library beside the plots of DVC, which then need no network.

python -m pipelines.vega_script     run in the project; `make` and `polymuse run` do the same

`dvc plots show` fills the page .dvc/plots_page.html, which loads the library from this file.

writes  dvc_plots/vega.js     Vega, Vega-Lite and Vega-Embed, from the package vl-convert-python
"""

from pathlib import Path

from pipelines.cli import run_in_project
from pipelines.project import write_atomically

VEGA_SCRIPT = Path("dvc_plots/vega.js")


def write_vega_script() -> None:
    """Write the library into the current folder's project, unless it is there."""
    if not VEGA_SCRIPT.exists():
        import vl_convert

        # Its type stub requires the argument, which has a default.
        library = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]
        write_atomically(VEGA_SCRIPT, library)


if __name__ == "__main__":
    run_in_project(write_vega_script)
