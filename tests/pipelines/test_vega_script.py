"""`dvc plots show` draws without a network."""

import re
import shutil
import subprocess

from pipelines import vega_script
from tests.support.project_files import ROOT
from tests.support.tiny_dvc_project import DVC_COMMAND


def test_the_page_of_dvc_loads_vega_from_the_project_and_nothing_from_the_network(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for command in (["git", "init", "-q"], [*DVC_COMMAND, "init", "-q"]):
        subprocess.run(command, check=True)
    for name in ("config", "plots_page.html"):
        shutil.copy(ROOT / ".dvc" / name, tmp_path / ".dvc")
    (tmp_path / "history.csv").write_text("step,loss\n1,0.5\n2,0.25\n")
    (tmp_path / "dvc.yaml").write_text("plots: [{history.csv: {x: step, y: loss}}]\n")
    subprocess.run([*DVC_COMMAND, "plots", "show"], check=True, capture_output=True)
    vega_script.write_vega_script()
    page = tmp_path / "dvc_plots/index.html"
    text = page.read_text()
    (source,) = re.findall(r'<script src="([^"]+)"', text)
    library = (page.parent / source).read_text()
    for name in ("vega", "vegaLite", "vegaEmbed"):
        assert f"window.{name}=" in library
    assert "vegaEmbed('#" in text and '"loss"' in text
    assert not re.search(r"(?:src|href)=[\"']https?:", text)
