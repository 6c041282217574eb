"""One static page: what ran, the metrics beside their ceilings, curves, and articles it wrote.

python -m stages.report DATA TARGET

reads   DATA/01_ingest, 06_align, 09_train_sft, 10_train_preference, 11_predict, 12_evaluate, of
        the corpora and runs that params.yaml names
writes  TARGET/index.html, TARGET/pictures/

The page needs no script and no network. It holds no date, id or path, so that the same results give
the same bytes. Pictures are drawn anew: what cameras write into files, such as a place, stays out.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2

from stages.report import charts, gather
from stages.report.gather import Run
from stages.shared import images, params, tracking
from stages.shared.stage import output, stage

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Params:
    examples: int
    thumbnail: int
    crisp: int
    bins: int


@dataclass(frozen=True)
class Picture:
    """A picture as a file beside the page; `crisp`: so small that it is shown enlarged."""

    path: str
    width: int
    height: int
    crisp: bool


def save_picture(content: bytes, name: str, folder: Path, params: Params) -> Picture:
    """Write a picture anew, at most `thumbnail` pixels long, to pictures/ of the page's folder."""
    image = images.decode(content)
    crisp = max(image.size) <= params.crisp
    image.thumbnail((params.thumbnail, params.thumbnail))
    path = f"pictures/{name[:16]}.{'png' if crisp else 'jpg'}"
    (folder / "pictures").mkdir(exist_ok=True)
    image.save(folder / path)
    return Picture(path, *image.size, crisp)


def draw_charts(run: Run, params: Params) -> list[dict[str, str]]:
    """The run's charts, title and SVG each, as far as it has what they show."""
    found = []
    if "grounding" in run.metrics:
        by_phase = {name: phase["grounding"]["by_slot"] for name, phase in run.phases.items()}
        ceilings = {
            f"ceiling, {gather.INPUTS[inputs]}": run.ceilings[inputs]["realised"]
            for inputs in ("topic", "picture")
            if inputs in run.ceilings
        }
        svg = charts.slots(f"{run.name} slots", by_phase, ceilings)
        found.append({"title": "Grounding by slot", "svg": svg})
    for phase, steps in run.steps.items():
        svg = charts.loss(f"{run.name} {phase} loss", steps)
        found.append({"title": f"Loss, {phase}", "svg": svg})
        if charts.watched(steps):
            svg = charts.watch(f"{run.name} {phase} watch", steps)
            found.append({"title": f"Watched while training, {phase}", "svg": svg})
    if run.sigmas:
        svg = charts.histogram(f"{run.name} sigma", run.sigmas, params.bins)
        found.append({"title": "Similarity of picture and topic", "svg": svg})
    return found


def run_section(run: Run, data: Path, folder: Path, params: Params) -> dict[str, Any]:
    """All that the page shows of a run; its pictures are written on the way."""
    articles = run.articles(params.examples)
    names = {chunk["image"] for article in articles for chunk in article["chunks"]} - {None}
    files = gather.pictures(data, run.params["corpus"], names)
    saved = {
        name: save_picture(content, name, folder, params) for name, content in sorted(files.items())
    }
    return {"run": run, "charts": draw_charts(run, params), "articles": articles, "pictures": saved}


def number(value: float | str | None) -> str:
    """A figure for a table cell; a word stays a word."""
    if value is None:
        return "\N{EM DASH}"
    return value if isinstance(value, str) else f"{value:.3f}"


def render(**content: Any) -> str:
    """The page, everything escaped but our own charts and style sheet."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    style = (HERE / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(style=style, **content)


def main(settings: Params, data: Path, target: Path) -> None:
    everything = params.read()
    with tracking.run(stage="report", name="", params={"report": asdict(settings)}) as tracked:
        with output(target) as folder:
            runs = gather.runs(data, everything["runs"])
            page = render(
                corpora=gather.corpora(data, everything["corpora"]),
                encoder=gather.encoder(data),
                sections=[run_section(run, data, folder, settings) for run in runs],
            )
            (folder / "index.html").write_text(page, encoding="utf-8")
        tracked.artifact(target / "index.html", "index.html")


if __name__ == "__main__":
    with stage():
        main(params.load(Params, "report"), *map(Path, sys.argv[1:]))
